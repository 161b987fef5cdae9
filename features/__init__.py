"""Features of a binary's functions and blocks: bags of words, and normalised code."""
