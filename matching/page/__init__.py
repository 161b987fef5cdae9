"""The page that diff.py writes: a table of functions, and the code of both beside each other."""
