"""Make readable disassembly: names and strings in place of addresses.

A line is a list of texts and references, in the order in which they are shown. A reference is a
list, too: its kind, then the values that the kind has.

    ["mov edi, ", ["s", "0x420d6c", "usage: %s\\n"]]      a string literal, and where it lies
    ["call ", ["f", 17]]                                 a function of the same binary
    ["call ", ["i", "malloc", "malloc"]]                 an imported function and its symbol
    ["jne ", ["b", "0x401234"]]                          code
    ["mov rax, qword ptr [", ["d", "0x61f2a0", ""], "]"] data, with a name if it is imported
"""

import re

import numpy as np

from binary.analysis import STEP_OVER, Analysis

NUMBER = re.compile(r"-?0x[0-9a-f]+")
RELATIVE = re.compile(r"[re]ip ([+-]) (0x[0-9a-f]+|\d+)")
LONGEST = 400  # characters of a string literal
SHOWN = 48  # characters of a string or a name in a line; the rest is in the tooltip


class Listing:
    """Writes the lines of one binary's blocks.

    Parameters
    ----------
    analysis : Analysis
    names : list of str
        Name of each function, the imported ones at the end.
    """

    def __init__(self, analysis: Analysis, names: list[str]):
        self.analysis = analysis
        self.names = [shorten(name) for name in names]
        n = analysis.code_blocks
        self.first = analysis.first_instruction[: n + 1].tolist()
        places = np.searchsorted(analysis.reference_instruction, np.arange(self.first[-1] + 1))
        self.references = places.tolist()  # of each instruction
        self.addresses = analysis.reference_address.tolist()
        self.sizes = analysis.instruction_size.tolist()
        self.function_of = analysis.function.tolist()
        entries = analysis.function_address[: analysis.code_functions].tolist()
        self.function_at = {address: f for f, address in enumerate(entries)}
        self.block_at = {int(a): b for b, a in enumerate(analysis.address[:n])}
        literals = zip(analysis.literal_address.tolist(), analysis.literal, strict=True)
        self.literal_at = {address: readable(text) for address, text in literals}
        data = zip(analysis.variable_address.tolist(), analysis.variable_name, strict=True)
        self.data_at = dict(data)
        self.leads_to: list[list[int]] = [[] for _ in range(n)]  # blocks and imports
        for (source, target), kind in zip(
            analysis.edges.tolist(), analysis.kind.tolist(), strict=True
        ):
            if kind != STEP_OVER and source < n:
                self.leads_to[source].append(target)

    def lines(self, block: int) -> list[list]:
        """Return the lines of a block."""
        texts = self.analysis.instructions[block].decode("ascii", "replace").split("\n")
        lines, following = [], int(self.analysis.address[block])
        for index, text in enumerate(texts, self.first[block]):
            following += self.sizes[index]
            start, end = self.references[index : index + 2]
            addresses = self.addresses[start:end]
            relative = RELATIVE.search(text)
            if relative and not addresses:  # such as an address inside of a string
                distance = int(relative[2], 0)
                addresses = [following + (distance if relative[1] == "+" else -distance)]
            named = [(a, self._reference(a)) for a in addresses]
            lines.append(_line(text, named) if named else [text])
        architecture = self.analysis.architecture
        last = architecture.branching(texts)
        if last.split(" ")[-1].startswith("0x") or architecture.branch.match(last):
            at = max(i for i, text in enumerate(texts) if text == last)
            lines[at] = self._branch(block, last, lines[at])
        return lines

    def _reference(self, address: int) -> list:
        place = f"0x{address:x}"
        if address in self.literal_at:
            return ["s", place, self.literal_at[address]]
        if address in self.function_at:
            return ["f", self.function_at[address]]
        if address in self.block_at:
            return ["b", place]
        return ["d", place, self.data_at.get(address, "")]

    def _branch(self, block: int, text: str, line: list) -> list:
        """Name the target of the last instruction, using the edges of the graph.

        They say more than the operand: the import behind a stub, or the target of a pointer.
        """
        targets = [self._target(block, t) for t in self.leads_to[block]]
        number = NUMBER.search(text)
        if number and text.endswith(number[0]) and "[" not in text:
            address = int(number[0], 16)
            away = [t for t in targets if t[0] in "fi"]
            near = [t for t in targets if t[0] == "b" and int(t[1], 16) & ~1 == address & ~1]
            target = (near or away)[:1]
            return [text[: number.start()].rstrip("#"), *target] if target else line
        if len(targets) == 1 and targets[0][0] in "fi" and targets[0] not in line:
            return [*line, "  ; ", targets[0]]
        return line

    def _target(self, block: int, target: int) -> list:
        if target >= len(self.leads_to):
            symbol = self.analysis.import_name[target - len(self.leads_to)]
            return ["i", self.names[self.function_of[target]], symbol]
        function, address = self.function_of[target], int(self.analysis.address[target])
        inside = function == self.function_of[block]
        entry = self.function_at.get(address) == function
        return ["f", function] if entry and not inside else ["b", f"0x{address:x}"]

    def shown(self, part: str | list) -> str:
        """Return a part of a line as the page shows it."""
        if isinstance(part, str):
            return part
        kind, *about = part
        if kind == "s":
            return f'"{shorten(about[1])}"'
        if kind == "f":
            return self.names[about[0]]
        if kind == "i":
            return about[0]
        return shorten(about[1]) if kind == "d" and about[1] else about[0]


def readable(literal: bytes) -> str:
    """Return a string literal with unprintable characters escaped."""
    text = literal.replace(b"\0", b"").decode("utf-8", "backslashreplace")[:LONGEST]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str) -> str:
    """Cut a text that would make a box too wide to read."""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _line(text: str, named: list[tuple[int, list]]) -> list:
    """Put references in place of their addresses, or else after the instruction."""
    inside: list[tuple[re.Match, list]] = []
    after: list = []
    for address, reference in named:
        places = [m for m in NUMBER.finditer(text) if int(m[0], 16) == address]
        places = places or list(RELATIVE.finditer(text))
        if places and all(
            place.end() <= p.start() or p.end() <= place.start()
            for place in places[:1]
            for p, _ in inside
        ):
            inside.append((places[0], reference))
        else:
            after.append(reference)
    parts, at = [], 0
    for place, reference in sorted(inside, key=lambda found: found[0].start()):
        parts += [text[at : place.start()].rstrip("#"), reference]
        at = place.end()
    parts.append(text[at:])
    for reference in after:
        parts += ["  ; ", reference]
    return [part for part in parts if part]
