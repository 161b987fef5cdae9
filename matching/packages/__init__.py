"""Compare whole packages: their files, which of them correspond, and what changed in each."""
