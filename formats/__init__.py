"""Model files of other projects."""
