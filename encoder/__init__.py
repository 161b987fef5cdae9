"""Vectors of functions: input, network, training, index."""
