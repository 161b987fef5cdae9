"""Match the functions and blocks of two binaries, and find what changed."""
