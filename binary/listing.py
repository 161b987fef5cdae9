"""Collect what an `Analysis` stores about instructions, one block after the other."""

from typing import Any

import numpy as np

from binary.instructions import Instruction
from binary.symbols import ascii_name


class Listing:
    """The instructions of a binary's blocks, and what they refer to."""

    def __init__(self) -> None:
        self.forms: list[str] = []
        self.strings: list[tuple[int, bytes]] = []  # in the order of the operands
        self.first = [0]
        self.variables: set[tuple[int, int, str]] = set()
        self.taken: set[tuple[int, int]] = set()
        self.references: set[tuple[int, int]] = set()
        self.sizes: list[int] = []
        self.text: list[bytes] = []

    def add(self, block: int, instruction: Instruction, form: str, strings: list[bytes]) -> None:
        """Add the next instruction of a block: its form, and the literals among its operands."""
        self.forms.append(form)
        self.strings += [(block, literal) for literal in strings]
        self.sizes.append(instruction.size)

    def refer(self, address: int) -> None:
        """Note an address that the instruction that was added last refers to."""
        self.references.add((len(self.sizes) - 1, address))

    def end_block(self, instructions: list[Instruction]) -> None:
        """End a block, whose instructions were all added."""
        self.first.append(len(self.forms))
        self.text.append("\n".join(i.line for i in instructions).encode())

    def fields(self, imports: int, literals: dict[int, bytes]) -> dict[str, Any]:
        """Return fields of an `Analysis`; ``imports`` nodes without code follow the blocks."""
        rows, variables = sorted(set(self.strings)), sorted(self.variables)
        taken = sorted(self.taken)
        row = {reference: i for i, reference in enumerate(rows)}
        forms = sorted(set(self.forms))
        number = {form: i for i, form in enumerate(forms)}
        references = np.array(sorted(self.references), np.uint64).reshape(-1, 2)
        named = sorted(set(references[:, 1].tolist()) & literals.keys())
        return {
            "string_block": np.array([block for block, _ in rows], np.int32),
            "string": [literal for _, literal in rows],
            "variable_block": np.array([block for block, _, _ in variables], np.int32),
            "variable_address": np.array([address for _, address, _ in variables], np.uint64),
            "variable_name": [ascii_name(name) for _, _, name in variables],
            "taker_block": np.array([block for block, _ in taken], np.int32),
            "taken_block": np.array([target for _, target in taken], np.int32),
            "first_instruction": np.array(self.first + [len(self.forms)] * imports, np.int64),
            "instruction_form": np.array([number[form] for form in self.forms], np.int32),
            "form": forms,
            "operand_string": np.array([row[reference] for reference in self.strings], np.int32),
            "instructions": self.text + [b""] * imports,
            "instruction_size": np.array(self.sizes, np.uint8),
            "reference_instruction": references[:, 0].astype(np.int32),
            "reference_address": references[:, 1],
            "literal_address": np.array(named, np.uint64),
            "literal": [literals[address] for address in named],
        }
