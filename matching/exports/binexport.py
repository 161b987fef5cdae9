"""Write an analysed binary as a BinExport file, which BinDiff and its plugins read."""

import re
from collections.abc import Hashable
from pathlib import Path

import numpy as np

from binary.analysis import CALL, JUMP, STEP_OVER, Analysis
from binary.binexport import (
    ALWAYS,
    ELSE,
    IF,
    IMMEDIATE,
    IMPORTED,
    NORMAL,
    PROCESSORS,
    REGISTER,
    SWITCH,
    SYMBOL,
    messages,
)
from binary.demangle import demangle
from binary.operands import parse
from features.extract import Features
from terminal.escape import printable

NUMBER = re.compile(r"#?(-?(?:0x[0-9a-f]+|\d+))")
MASK = (1 << 64) - 1


def import_addresses(analysis: Analysis) -> list[int]:
    """Return an address for each import: where its address is stored, or one after all else."""
    known: dict[str, int] = {}
    for name, address in zip(
        analysis.imported_name, analysis.imported_address.tolist(), strict=True
    ):
        at = int(np.searchsorted(analysis.data_address, address, side="right")) - 1
        if at >= 0 and address < int(analysis.data_address[at] + analysis.data_size[at]):
            known.setdefault(name, address)
    ends = analysis.data_address + analysis.data_size
    end = max(int(a) for part in (analysis.address, ends) if len(part) for a in part)
    after = (end + 0x10000) & ~0xFFF
    return [known.get(name, after + 16 * i) for i, name in enumerate(analysis.import_name)]


def as_binexport(path: str, sha256: str, code: Features) -> bytes:
    """Return a binary as a BinExport file.

    Parameters
    ----------
    path : str
        The executable.
    sha256 : str
        Hash of its content.
    code : Features
        Its analysis and features.
    """
    return _Writer(path, sha256, code).file.SerializeToString(deterministic=True)


class _Numbers(dict):
    """Numbers things in the order in which they first occur."""

    def of(self, thing: Hashable) -> int:
        return self.setdefault(thing, len(self))


class _Writer:
    def __init__(self, path: str, sha256: str, code: Features):
        self.analysis, self.code = code.analysis, code
        self.file = messages().File()
        odd = (self.analysis.address & np.uint64(1)) == 1
        self.thumb = (
            set(self.analysis.address[odd].tolist()) if "arm" in self.analysis.processor else set()
        )
        self.mnemonics, self.operands, self.expressions = _Numbers(), _Numbers(), _Numbers()
        meta = self.file.meta_information
        meta.executable_name, meta.executable_id = printable(Path(path).name), sha256
        names = {processor: name for name, processor in PROCESSORS.items()}
        meta.architecture_name = names.get(self.analysis.processor, self.analysis.processor)
        self._instructions()
        self._flow_graphs()
        self._call_graph()
        self._references()

    def _targets(self) -> list[list[int]]:
        """Return the addresses outside of a block's function that it calls or jumps to."""
        analysis, n = self.analysis, self.analysis.code_blocks
        blocks = map(self._even, analysis.address[:n].tolist())
        where = [*blocks, *import_addresses(analysis)]
        function = analysis.function.tolist()
        called: list[list[int]] = [[] for _ in range(n)]
        for (source, target), kind in zip(
            analysis.edges.tolist(), analysis.kind.tolist(), strict=True
        ):
            leaves = kind == CALL or (kind == JUMP and function[source] != function[target])
            if source < n and leaves:
                called[source].append(where[target])
        return called

    def _instructions(self) -> None:
        analysis, file = self.analysis, self.file
        at, called = 0, self._targets()
        for block in range(analysis.code_blocks):
            address, code = self._even(int(analysis.address[block])), analysis.code[block]
            begin = at
            for line in analysis.instructions[block].decode("ascii", "replace").split("\n"):
                size = int(analysis.instruction_size[at])
                mnemonic, _, operands = line.partition(" ")
                entry = file.instruction.add(raw_bytes=code[:size])
                if at == begin:  # omitted for those that follow without a gap
                    entry.address = address
                entry.mnemonic_index = self.mnemonics.of(mnemonic)
                entry.operand_index.extend(self._operands(operands))
                code, at = code[size:], at + 1
            entry.call_target.extend(called[block])
            span = file.basic_block.add().instruction_index.add(begin_index=begin)
            if at > begin + 1:
                span.end_index = at
        for name in self.mnemonics:
            file.mnemonic.add(name=name)
        for kind, text in self.expressions:
            expression = file.expression.add(type=kind)
            if kind == IMMEDIATE:
                expression.immediate = int(text, 0) & MASK
            expression.symbol = text
        for number in self.operands:
            file.operand.add(expression_index=[number])

    def _operands(self, text: str) -> list[int]:
        """Return the operands of an instruction, each as one expression."""
        found = []
        for operand in parse(text).operands:
            number = NUMBER.fullmatch(operand)
            if number:
                expression = IMMEDIATE, number[1]
            else:
                expression = (REGISTER if operand.isalnum() else SYMBOL), operand
            found.append(self.operands.of(self.expressions.of(expression)))
        return found

    def _flow_graphs(self) -> None:
        analysis, n = self.analysis, self.analysis.code_blocks
        function = analysis.function.tolist()
        flow: list[list[int]] = [[] for _ in range(n)]
        for (source, target), kind in zip(
            analysis.edges.tolist(), analysis.kind.tolist(), strict=True
        ):
            if source < n and target < n and kind != CALL and function[source] == function[target]:
                flow[source].append(target)
        for f, inside in enumerate(self.code.blocks):
            graph = self.file.flow_graph.add(basic_block_index=inside.tolist())
            entries = np.flatnonzero(analysis.address[inside] == analysis.function_address[f])
            graph.entry_basic_block_index = int(inside[entries[0] if len(entries) else 0])
            for source in inside.tolist():
                for target, kind in zip(
                    flow[source], self._kinds(source, flow[source]), strict=True
                ):
                    edge = graph.edge.add(
                        source_basic_block_index=source, target_basic_block_index=target, type=kind
                    )
                    edge.is_back_edge = target <= source

    def _kinds(self, source: int, targets: list[int]) -> list[int]:
        """Return the kinds of a block's outgoing edges."""
        if len(targets) == 1:
            return [ALWAYS]
        if len(targets) != 2:
            return [SWITCH] * len(targets)
        address, code = self.analysis.address, self.analysis.code[source]
        following = (int(address[source]) & ~1) + len(code)  # the fall-through address
        return [ELSE if int(address[t]) & ~1 == following else IF for t in targets]

    def _call_graph(self) -> None:
        analysis, graph = self.analysis, self.file.call_graph
        n, functions = analysis.code_blocks, analysis.code_functions
        entries = map(self._even, analysis.function_address[:functions].tolist())
        where = [*entries, *import_addresses(analysis)]
        symbols = [*analysis.function_name[:functions], *analysis.import_name]
        found = {
            address: (symbol, NORMAL if f < functions else IMPORTED)
            for f, (address, symbol) in enumerate(zip(where, symbols, strict=True))
        }
        # An import may have both a stub and a slot for its address.
        for address, name in zip(
            analysis.imported_address.tolist(), analysis.imported_name, strict=True
        ):
            if name in analysis.import_name:
                found.setdefault(address, (name, IMPORTED))
        number = {address: i for i, address in enumerate(sorted(found))}
        readable = demangle([found[address][0] for address in number])
        for address, name in zip(number, readable, strict=True):
            symbol, kind = found[address]
            vertex = graph.vertex.add(address=address, mangled_name=symbol, type=kind)
            if name != symbol:
                vertex.demangled_name = name
        function = [*analysis.function[:n].tolist(), *range(functions, len(where))]
        calls = {
            (number[where[function[source]]], number[where[function[target]]])
            for (source, target), kind in zip(
                analysis.edges.tolist(), analysis.kind.tolist(), strict=True
            )
            if source < n and kind != STEP_OVER and function[source] != function[target]
        }
        for source, target in sorted(calls):
            graph.edge.add(source_vertex_index=source, target_vertex_index=target)

    def _even(self, address: int) -> int:
        """Return an address as it is written; in an analysis, those of Thumb code are odd."""
        return address & ~1 if address in self.thumb else address

    def _references(self) -> None:
        analysis, file = self.analysis, self.file
        literal = dict(zip(analysis.literal_address.tolist(), analysis.literal, strict=True))
        texts = _Numbers()
        for instruction, address in zip(
            analysis.reference_instruction.tolist(),
            analysis.reference_address.tolist(),
            strict=True,
        ):
            file.data_reference.add(instruction_index=instruction, address=self._even(address))
            if address in literal:
                text = literal[address].replace(b"\0", b"").decode("utf-8", "replace")
                file.string_reference.add(
                    instruction_index=instruction, string_table_index=texts.of(text)
                )
        file.string_table.extend(texts)
        for address, size, constant in zip(
            analysis.data_address.tolist(),
            analysis.data_size.tolist(),
            analysis.data_constant.tolist(),
            strict=True,
        ):
            file.section.add(
                address=address, size=size, flag_r=True, flag_w=not constant, flag_x=False
            )
