"""The result of a comparison for people's other tools; one file a kind."""
