"""Pairs of binaries: merging their control-flow graphs and walking them."""
