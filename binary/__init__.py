"""One binary: disassembled, its functions found, what its code refers to; cached by content."""
