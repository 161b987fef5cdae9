"""Two binaries: their control-flow graphs merged, and walked."""
