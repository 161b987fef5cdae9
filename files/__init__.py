"""What is read from files is checked first: a schema says what each array of a file must be."""
