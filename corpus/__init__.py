"""The corpus as token ids, and its split into training and held-out data."""
