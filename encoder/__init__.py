"""What makes a vector of a function."""
