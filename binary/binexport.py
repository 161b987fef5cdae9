"""BinExport files: disassembled programs, as IDA, Ghidra and Binary Ninja export them for BinDiff.

The format is one protocol buffer. FIELDS describes only the fields that this project reads or
writes; the parser skips all others. In the file, everything refers to everything else by its index
in a list; the names below do the same.
"""

import bisect
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import utils
from binary.addresses import Finder
from binary.analysis import CALL, JUMP, STEP_OVER, Analysis
from binary.architectures import ARCHITECTURES
from binary.instructions import Instruction, Operand, form_of, read_instructions, read_operands
from binary.listing import Listing
from binary.references import places
from binary.symbols import ascii_name
from terminal.escape import printable

SUFFIX = ".binexport"  # of file names, in lower case
# message -> field -> number and type; "*" means a list; a type with a capital letter is a message.
FIELDS = {
    "Meta": {
        "executable_name": "1 string", "executable_id": "2 string",
        "architecture_name": "3 string",
    },
    "Vertex": {
        "address": "1 uint64", "type": "2 int32", "mangled_name": "3 string",
        "demangled_name": "4 string",
    },
    "Call": {"source_vertex_index": "1 int32", "target_vertex_index": "2 int32"},
    "CallGraph": {"vertex": "1 *Vertex", "edge": "2 *Call"},
    "Expression": {
        "type": "1 int32", "symbol": "2 string", "immediate": "3 uint64", "parent_index": "4 int32",
    },
    "Operand": {"expression_index": "1 *int32"},
    "Mnemonic": {"name": "1 string"},
    "Instruction": {
        "address": "1 uint64", "call_target": "2 *uint64", "mnemonic_index": "3 int32",
        "operand_index": "4 *int32", "raw_bytes": "5 bytes",
    },
    "Range": {"begin_index": "1 int32", "end_index": "2 int32"},
    "BasicBlock": {"instruction_index": "1 *Range"},
    "Edge": {
        "source_basic_block_index": "1 int32", "target_basic_block_index": "2 int32",
        "type": "3 int32", "is_back_edge": "4 bool",
    },
    "FlowGraph": {
        "basic_block_index": "1 *int32", "edge": "2 *Edge", "entry_basic_block_index": "3 int32",
    },
    "StringReference": {
        "instruction_index": "1 int32", "instruction_operand_index": "2 int32",
        "operand_expression_index": "3 int32", "string_table_index": "4 int32",
    },
    "DataReference": {"instruction_index": "1 int32", "address": "2 uint64"},
    "Section": {
        "address": "1 uint64", "size": "2 uint64", "flag_r": "3 bool", "flag_w": "4 bool",
        "flag_x": "5 bool",
    },
    "File": {
        "meta_information": "1 Meta", "expression": "2 *Expression", "operand": "3 *Operand",
        "mnemonic": "4 *Mnemonic", "instruction": "5 *Instruction", "basic_block": "6 *BasicBlock",
        "flow_graph": "7 *FlowGraph", "call_graph": "8 CallGraph", "string_table": "9 *string",
        "string_reference": "11 *StringReference", "section": "13 *Section",
        "data_reference": "15 *DataReference",
    },
}  # fmt: skip
LARGEST = 1 << 26  # maximum number of bytes of a section; its content is made from strings
NORMAL, LIBRARY, IMPORTED, THUNK = range(4)  # Vertex.type
SYMBOL, IMMEDIATE, FLOAT, OPERATOR, REGISTER, SIZE, DEREFERENCE = range(1, 8)  # Expression.type
IF, ELSE, ALWAYS, SWITCH = range(1, 5)  # Edge.type; ALWAYS is the default
# The exporters' names of processors, and LLVM's names of their 32-bit and 64-bit versions.
PROCESSORS = {
    "x86-64": "x86_64", "x86-32": "i386", "aarch64-64": "aarch64", "arm-64": "aarch64",
    "arm-32": "arm", "mips-32": "mips", "mips-64": "mips64", "ppc-32": "powerpc",
    "ppc-64": "powerpc64le",
}  # fmt: skip
# archinfo's name of each of these, and its byte order.
ARCHINFO = {
    "x86_64": ("ArchAMD64", "LE"), "i386": ("ArchX86", "LE"), "aarch64": ("ArchAArch64", "LE"),
    "arm": ("ArchARMEL", "LE"), "mips": ("ArchMIPS32", "BE"), "mips64": ("ArchMIPS64", "BE"),
    "powerpc": ("ArchPPC32", "BE"), "powerpc64le": ("ArchPPC64", "LE"),
}  # fmt: skip


@functools.cache
def messages() -> SimpleNamespace:
    """Return a class for each message of FIELDS."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    proto = descriptor_pb2.FieldDescriptorProto
    kinds = {
        "string": proto.TYPE_STRING, "bytes": proto.TYPE_BYTES, "bool": proto.TYPE_BOOL,
        "int32": proto.TYPE_INT32, "uint64": proto.TYPE_UINT64,
    }  # fmt: skip
    file = descriptor_pb2.FileDescriptorProto(
        name="binexport", package="binexport", syntax="proto2"
    )
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, text in fields.items():
            number, kind = text.split()
            field = described.field.add(name=name, number=int(number))
            repeated = kind.startswith("*")
            field.label = proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in kinds:
                field.type = kinds[kind]
            else:
                field.type, field.type_name = proto.TYPE_MESSAGE, f".binexport.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {m: pool.FindMessageTypeByName(f"binexport.{m}") for m in FIELDS}
    return SimpleNamespace(**{m: message_factory.GetMessageClass(d) for m, d in found.items()})


class _Memory:
    """Replaces angr's memory; a BinExport file contains only the bytes of instructions."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.starts: list[int] = []

    def load(self, address: int, size: int) -> bytes:
        at = bisect.bisect_right(self.starts, address) - 1
        if at >= 0:
            start = self.starts[at]
            found = self.pieces[start][address - start : address - start + size]
            if len(found) == size:
                return found
        raise KeyError(address)

    def unpack_word(self, address: int, size: int = 0) -> int:
        raise KeyError(address)


class _Piece(NamedTuple):
    """A run of instructions that ends at a call or where its basic block ends."""

    addr: int  # has this name in angr's nodes, too; odd for Thumb code
    size: int
    thumb: bool
    called: tuple[int, ...]
    function: int


def read_binexport(path: str | os.PathLike[str]) -> Analysis:
    """Read a BinExport file as if angr had disassembled the program.

    Functions, basic blocks, calls, strings and references to data are taken from the file.
    Instructions are disassembled again from their bytes, so that files of different tools can be
    compared with each other and with angr's analyses.

    Raises
    ------
    UserError
        The file is damaged, or is for an unknown processor.
    """
    from google.protobuf.message import DecodeError

    file = messages().File()
    try:
        file.ParseFromString(Path(path).read_bytes())
    except OSError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise utils.UserError(f"{path} is not a BinExport file, or is cut short") from error
    name = _text(file.meta_information.architecture_name)
    if name.lower() not in PROCESSORS:
        raise utils.UserError(
            f"{path} is for the processor {printable(name) or 'without a name'}; known are "
            f"{', '.join(PROCESSORS)}"
        )
    try:
        return _Reader(file, PROCESSORS[name.lower()]).analysis()
    except (IndexError, KeyError, OverflowError, ValueError) as error:
        raise utils.UserError(f"{path} is damaged: {error}") from error


def _at(items: Sequence, index: int, what: str) -> Any:
    if not 0 <= index < len(items):
        raise IndexError(f"it has no {what} {index}")
    return items[index]


class _Reader:
    def __init__(self, file: Any, processor: str) -> None:
        import archinfo

        self.file, self.processor = file, processor
        name, endness = ARCHINFO[processor]
        self.arch = getattr(archinfo, name)(getattr(archinfo.Endness, endness))
        self.addresses = self._instruction_addresses()
        self.by_address = {v.address: v for v in file.call_graph.vertex}
        self.imports = self._imports()  # address -> name
        self.pieces: list[_Piece] = []
        self.memory = _Memory()
        self.inside: list[tuple[int, int]] = []  # consecutive pieces
        self.ends: dict[tuple[int, int], int] = {}  # function, basic block -> its last piece
        self.begins: dict[tuple[int, int], int] = {}
        self.entries: list[int] = []
        self.thumb: set[int] = set()  # instructions
        for graph in file.flow_graph:
            self._function(graph)
        if not self.pieces:
            raise ValueError("it holds no function with code")

    def _instruction_addresses(self) -> list[int]:
        """Return each instruction's address; the file omits those that follow from the previous."""
        found, following = [], 0
        for instruction in self.file.instruction:
            address = instruction.address if instruction.HasField("address") else following
            found.append(address)
            following = address + len(instruction.raw_bytes)
        return found

    def _imports(self) -> dict[int, str]:
        """Return the address of each imported function and of each stub that leads to one."""
        vertices = self.file.call_graph.vertex
        with_code = {
            self._block_address(_at(self.file.basic_block, g.entry_basic_block_index, "block"))
            for g in self.file.flow_graph
            if g.basic_block_index
        }
        found = {
            v.address: _text(v.mangled_name)
            for v in vertices
            if v.type in (LIBRARY, IMPORTED) and v.address not in with_code and v.mangled_name
        }
        leads = defaultdict(set)
        for edge in self.file.call_graph.edge:
            source = _at(vertices, edge.source_vertex_index, "vertex")
            target = _at(vertices, edge.target_vertex_index, "vertex")
            if source.type == THUNK:
                leads[source.address].add(target.address)
        for stub, targets in leads.items():
            if len(targets) == 1 and targets <= found.keys():
                found[stub] = found[min(targets)]
        return found

    def _block_address(self, block: Any) -> int:
        begin = _at(block.instruction_index, 0, "instruction of a block").begin_index
        return _at(self.addresses, begin, "instruction")

    def _function(self, graph: Any) -> None:
        """Cut the basic blocks of a function into pieces."""
        blocks = [_at(self.file.basic_block, i, "block") for i in graph.basic_block_index]
        entry = self._block_address(
            _at(self.file.basic_block, graph.entry_basic_block_index, "block")
        )
        if not blocks or entry in self.imports:
            return
        function = len(self.entries)
        spans = [list(self._span(block)) for block in blocks]
        thumb = self.processor == "arm" and self._is_thumb([i for span in spans for i in span])
        self.entries.append(entry | thumb)
        if thumb:
            self.thumb.update(i for span in spans for i in span)
        for number, span in zip(graph.basic_block_index, spans, strict=True):
            first = len(self.pieces)
            for piece in self._cut(span):
                self._add(piece, thumb, function)
            self.begins[function, number] = first
            self.ends[function, number] = len(self.pieces) - 1
            self.inside += itertools.pairwise(range(first, len(self.pieces)))

    def _is_thumb(self, instructions: list[int]) -> bool:
        """Whether ARM code is Thumb code, which the file does not say.

        Only Thumb code has instructions of two bytes. If all have four bytes, disassemble them both
        ways, and compare the mnemonics with those in the file.
        """
        if any(len(self.file.instruction[i].raw_bytes) == 2 for i in instructions):
            return True
        alike = [0, 0]
        for i in instructions[:32]:
            said = _at(self.file.mnemonic, self.file.instruction[i].mnemonic_index, "mnemonic").name
            code = self.file.instruction[i].raw_bytes
            for thumb, capstone in enumerate((self.arch.capstone, self.arch.capstone_thumb)):
                for _, _, mnemonic, _ in capstone.disasm_lite(code, self.addresses[i], 1):
                    alike[thumb] += mnemonic[:3] == _text(said)[:3].lower()
        return alike[1] > alike[0]

    def _span(self, block: Any) -> Iterator[int]:
        for span in block.instruction_index:
            end = span.end_index if span.HasField("end_index") else span.begin_index + 1
            _at(self.addresses, span.begin_index, "instruction")
            _at(self.addresses, end - 1, "instruction")
            yield from range(span.begin_index, end)

    def _cut(self, span: list[int]) -> Iterator[list[int]]:
        """Cut a block after its calls, as angr does, and at gaps."""
        piece: list[int] = []
        for i in span:
            if piece:
                last = self.file.instruction[piece[-1]]
                follows = self.addresses[piece[-1]] + len(last.raw_bytes) == self.addresses[i]
                if last.call_target or not follows:
                    yield piece
                    piece = []
            piece.append(i)
        if piece:
            yield piece

    def _add(self, piece: list[int], thumb: bool, function: int) -> None:
        code = b"".join(self.file.instruction[i].raw_bytes for i in piece)
        if not code:
            raise ValueError("an instruction has no bytes")
        address = self.addresses[piece[0]]
        called = tuple(self.file.instruction[piece[-1]].call_target)
        self.pieces.append(_Piece(address | thumb, len(code), thumb, called, function))
        self.memory.pieces[address] = max(code, self.memory.pieces.get(address, b""), key=len)

    def analysis(self) -> Analysis:
        """Make the analysis; a block of several functions is given to the first one."""
        self.memory.starts = sorted(self.memory.pieces)
        project = self._project()
        first: dict[int, int] = {}
        for i, piece in enumerate(self.pieces):
            first.setdefault(piece.addr, i)
        kept = [first[address] for address in sorted(first)]
        place = {self.pieces[i].addr: n for n, i in enumerate(kept)}
        code = {self.pieces[i]: read_instructions(project, self.pieces[i]) for i in kept}
        if not all(code.values()):
            raise ValueError("the bytes of a block are not instructions")
        names = sorted(set(self.imports.values()))
        edges = sorted(self._edges(list(code.values()), kept, place, names))
        texts = self._texts(project, code, place)
        entry = sorted({e for e in self.entries if e in place})
        # Leave out an entry in the middle of another function's block.
        number = {address: f for f, address in enumerate(entry)}
        function = [number.get(self.entries[self.pieces[i].function], 0) for i in kept]
        functions = [self._name(address) for address in entry]
        leaves = {source for source, _, _ in edges}
        architecture = ARCHITECTURES[self.processor]
        ends = [
            b not in leaves and not (architecture.trap.match(last) or architecture.call.match(last))
            for b, last in enumerate(lines[-1].line for lines in code.values())
        ]
        pairs = np.array(edges, np.int64).reshape(-1, 3)
        return Analysis(
            address=np.array([p.addr for p in code] + [0] * len(names), np.uint64),
            function=np.array(function + [len(entry) + i for i in range(len(names))], np.int32),
            edges=pairs[:, :2].astype(np.int32),
            kind=pairs[:, 2].astype(np.uint8),
            returns=np.array(ends + [True] * len(names), bool),
            function_address=np.array(entry + [0] * len(names), np.uint64),
            function_name=[*functions, *map(ascii_name, names)],
            import_name=names,
            code=[self.memory.load(p.addr - p.thumb, p.size) for p in code] + [b""] * len(names),
            pointer_address=np.zeros(0, np.uint64),
            pointer_block=np.zeros(0, np.int32),
            label_pointer=np.zeros(0, np.int32),
            label=[],
            **texts,
            **Finder(project, code, edges).fields(),
            **self._data(),
        )

    def _name(self, address: int) -> str:
        vertex = self.by_address.get(address) or self.by_address.get(address & ~1)
        return ascii_name(_text(vertex.mangled_name) if vertex else "") or f"sub_{address:x}"

    def _edges(
        self,
        lines: list[list[Instruction]],
        kept: list[int],
        place: dict[int, int],
        names: list[str],
    ) -> set[tuple[int, int, int]]:
        """Return (source, target, kind), as `Analysis` has them."""
        call = ARCHITECTURES[self.processor].call
        calls = [
            bool(call.match(ARCHITECTURES[self.processor].branching([i.line for i in block])))
            for block in lines
        ]
        at = [place[piece.addr] for piece in self.pieces]
        own = set(kept)
        found = set()
        for source, target in self.inside:
            if source in own:
                found.add((at[source], at[target], STEP_OVER if calls[at[source]] else JUMP))
        function = -1
        for graph in self.file.flow_graph:
            keys = set(graph.basic_block_index)
            function += bool(keys) and self._entry(graph) not in self.imports
            for edge in graph.edge:
                ends = edge.source_basic_block_index, edge.target_basic_block_index
                if not keys.issuperset(ends) or (function, ends[0]) not in self.ends:
                    continue
                source, target = self.ends[function, ends[0]], self.begins[function, ends[1]]
                if source in own:
                    kind = STEP_OVER if calls[at[source]] else JUMP
                    found.add((at[source], at[target], kind))
        number = {name: len(lines) + i for i, name in enumerate(names)}
        for i in kept:
            source = at[i]
            for address in self.pieces[i].called:
                called = place.get(address, place.get(address | 1))
                if address in self.imports:
                    called = number[self.imports[address]]
                if called is not None:
                    found.add((source, called, CALL if calls[source] else JUMP))
        return found

    def _entry(self, graph: Any) -> int:
        return self._block_address(
            _at(self.file.basic_block, graph.entry_basic_block_index, "block")
        )

    def _texts(
        self,
        project: SimpleNamespace,
        code: dict[_Piece, list[Instruction]],
        place: dict[int, int],
    ) -> dict[str, Any]:
        """Return the fields of an `Analysis` for instructions and what they refer to."""
        literals, refers, pointed_at = self._references()
        listing = Listing()
        known: dict[tuple[str, str], list[Operand]] = {}
        branch = ARCHITECTURES[self.processor].branch
        for block, (piece, instructions) in enumerate(code.items()):
            for instruction in instructions:
                operands = read_operands(project, piece, instruction, known)
                listing.add(
                    block, instruction, *form_of(instruction, operands, literals, pointed_at, {})
                )
                addresses = places(project, instruction, operands, {})
                own = refers.get(instruction.address, set())
                for address in addresses | own:
                    target = place.get(address, place.get(address | 1))
                    if target is not None and not branch.match(instruction.line):
                        listing.taken.add((block, target))
                    elif target is None and address not in literals:
                        if address not in own:
                            continue
                        listing.variables.add((block, address, self.imports.get(address, "")))
                    listing.refer(address)
            listing.end_block(instructions)
        return listing.fields(len(set(self.imports.values())), literals)

    def _references(self) -> tuple[dict[int, bytes], dict[int, set[int]], dict[int, int]]:
        """Return address -> literal, instruction -> its addresses, instruction -> its literal's."""
        refers: dict[int, set[int]] = defaultdict(set)
        for reference in self.file.data_reference:
            refers[self._where(reference.instruction_index)].add(reference.address)
        literals, pointed_at = {}, {}
        for reference in self.file.string_reference:
            instruction = self._where(reference.instruction_index)
            text = _at(self.file.string_table, reference.string_table_index, "string")
            # If an instruction refers to several addresses, the text is at the constant one.
            named = sorted(refers.get(instruction, ()), key=lambda a: (self._is_writable(a), a))
            if named and text:
                literals[named[0]] = _text(text).encode()
                pointed_at[instruction] = named[0]
        return literals, refers, pointed_at

    def _where(self, instruction: int) -> int:
        """Return an instruction's address, odd for Thumb code, as capstone expects."""
        address = _at(self.addresses, instruction, "instruction")
        return address | (instruction in self.thumb)

    def _is_writable(self, address: int) -> bool:
        return any(s.address <= address < s.address + s.size for s in self.file.section if s.flag_w)

    def _project(self) -> SimpleNamespace:
        """Return an object that replaces angr's project in functions that read instructions."""
        spans = [(s.address, s.size, s.flag_w, False) for s in self.file.section if not s.flag_x]
        spans += [(start, len(code), False, True) for start, code in self.memory.pieces.items()]
        spans += [(address, 1, False, False) for address in self.imports]
        names = "vaddr", "memsize", "is_writable", "is_executable"
        sections = [
            SimpleNamespace(name="", **dict(zip(names, span, strict=True))) for span in spans
        ]
        image = SimpleNamespace(arch=self.arch, sections=sections, segments=[], sections_map={})
        _, refers, _ = self._references()
        references = SimpleNamespace(
            get_xrefs_by_ins_addr=lambda address: [
                SimpleNamespace(dst=target) for target in refers.get(address, ())
            ]
        )
        return SimpleNamespace(
            arch=self.arch,
            loader=SimpleNamespace(memory=self.memory, main_object=image),
            kb=SimpleNamespace(xrefs=references),
        )

    def _contents(self, sections: list[tuple[int, int, bool]]) -> list[bytes]:
        """Return the content of sections of data as far as known: strings, with zeros between."""
        literals, _, _ = self._references()
        contents = []
        for start, size, _ in sections:
            held = bytearray()
            for address, text in sorted(literals.items()):
                begin = address - start
                if 0 <= begin < min(size, LARGEST) and len(held) <= begin:
                    held += b"\0" * (begin - len(held)) + text + b"\0"
            contents.append(bytes(held[:size]))
        return contents

    def _data(self) -> dict[str, Any]:
        """Return the fields of an `Analysis` for the addresses of data, imports and functions."""
        sections = sorted(
            (s.address, s.size, not s.flag_w) for s in self.file.section if not s.flag_x
        )
        columns = list(zip(*sections, strict=True)) or [(), (), ()]
        places = sorted(self.imports)
        number = list(ARCHITECTURES).index(self.processor)
        return dict(
            data_address=np.array(columns[0], np.uint64),
            data_size=np.array(columns[1], np.uint64),
            data_constant=np.array(columns[2], bool),
            data=self._contents(sections),
            imported_address=np.array(places, np.uint64),
            imported_name=[self.imports[place] for place in places],
            processor_number=np.array([number], np.uint8),
            start_address=np.zeros(0, np.uint64),
            start_end=np.zeros(0, np.uint64),
            start_source=np.zeros(0, np.uint8),
        )


def _text(value: str | bytes) -> str:
    """Return a string of the file; the parser returns bytes if it is not UTF-8."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
