"""Reading files that are checked against a schema first."""
