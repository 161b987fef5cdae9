"""Export the result of a comparison for other tools; one file per format."""
