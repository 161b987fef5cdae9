"""How scripts meet people: arguments, help, exit codes, progress, output that cannot act."""

VERSION = "1.0.0"  # of the whole project, which `--version` prints
