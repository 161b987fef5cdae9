"""Which functions and blocks of two binaries correspond, and what changed."""
