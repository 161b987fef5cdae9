"""Whole packages: what files two of them hold, which correspond, and what changed in each."""
