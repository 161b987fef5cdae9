"""The corpus as token ids, and what of it is held out."""
