"""Other projects' model files."""
