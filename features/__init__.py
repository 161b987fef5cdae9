"""A binary's functions and blocks as bags of weighted words."""
