"""The HTML page of diff.py: a table of functions, and the code of both binaries side by side."""
