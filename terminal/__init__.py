"""The command line: arguments, help, exit codes, progress, escaped output."""

VERSION = "1.0.0"  # of the whole project, printed by `--version`
