"""Find the nodes of angr's graph that stand for imported functions."""

import re
from typing import Any

from binary.addresses import Finder
from binary.analysis import CALL, JUMP, STEP_OVER
from binary.architectures import architecture_of
from binary.instructions import read_instructions
from binary.operands import PLACE, SLOT
from binary.starts import STUBS

KINDS = {"Ijk_Call": CALL, "Ijk_FakeRet": STEP_OVER}  # kinds of angr's edges; the rest is JUMP
LONGEST_STUB = 8  # instructions of an import's stub
POWERPC_SLOT = re.compile(
    r"(?:addis r11, r30, (-?\w+)\n)?lwz r11, (-?\w+)\(r(?:30|11)\)\nmtctr r11\nbctr"
)


def is_stub(binary: Any, address: int) -> bool:
    """Whether an address lies in a section that contains only stubs of imports."""
    section = binary.find_section_containing(address & ~1)
    return section is not None and section.name.startswith(STUBS)


def name_imports(project: Any, graph: Any, own: set[int]) -> dict:
    """Return node -> name of each node that stands for an imported function.

    Parameters
    ----------
    own : set of int
        Addresses where the file's own functions begin.
    """
    functions = project.kb.functions
    known = {
        address: name
        for address, name in getattr(project.loader.main_object, "reverse_plt", {}).items()
        if address not in own
    }
    names, unnamed = {}, {}
    for node in sorted(graph, key=lambda node: (node.addr, node.is_simprocedure)):
        name = _simulated(project, graph, node)
        if name is None and not node.is_simprocedure and node.addr not in own:
            is_plt = functions.contains_addr(node.addr) and functions.get_by_addr(node.addr).is_plt
            name = known.get(node.addr) or (is_plt and functions.get_by_addr(node.addr).name)
        if name:
            names[node] = name
        elif _may_be_stub(project, node, own):
            unnamed[node] = read_instructions(project, node)
    return names | _name_stubs(project, graph, unnamed)


def _simulated(project: Any, graph: Any, node: Any) -> str | None:
    import cle

    if node.is_simprocedure:
        outside = project.loader.find_object_containing(node.addr) is project.loader.extern_object
        helper = not node.name or node.name.startswith("Unresolvable")  # angr's own
        return node.name if outside and not helper else None
    if not isinstance(project.loader.main_object, cle.PE):
        return None
    targets = list(graph.successors(node))
    if len(targets) == 1 and targets[0].is_simprocedure and len(node.instruction_addrs) == 1:
        # The stub of an import is one jump through the import table. (Not in ELF files: there
        # -fno-plt makes such a jump of a function that only calls another.)
        return _simulated(project, graph, targets[0])
    return None


def _may_be_stub(project: Any, node: Any, own: set[int]) -> bool:
    if node.is_simprocedure or node.is_syscall or node.addr in own or not node.size:
        return False
    if is_stub(project.loader.main_object, node.addr):
        return True
    # PowerPC's linkers put stubs between functions; without sections, stubs may be anywhere.
    anywhere = project.arch.name.startswith("PPC") or not len(project.loader.main_object.sections)
    return anywhere and len(node.instruction_addrs) <= LONGEST_STUB


def _name_stubs(project: Any, graph: Any, nodes: dict) -> dict:
    """Return node -> name of the stubs that load an import's address from its slot."""
    imported = slots(project)
    architecture = architecture_of(project.arch)
    found = {}
    code, edges = nodes, []
    if project.arch.name == "PPC32" and nodes:  # its stubs use a register of their callers
        inside = [n for n in graph if not n.is_simprocedure and not n.is_syscall and n.size]
        inside.sort(key=lambda node: node.addr)
        code = {node: read_instructions(project, node) for node in inside}
        number = {node: i for i, node in enumerate(inside)}
        edges = [
            (number[a], number[b], KINDS.get(data.get("jumpkind"), JUMP))
            for a, b, data in graph.edges(data=True)
            if a in number and b in number
        ]
    listed = list(code)
    for block, _, _, kind, value in Finder(project, code, sorted(edges)).references():
        if kind in (PLACE, SLOT) and value in imported and listed[block] in nodes:
            found[listed[block]] = imported[value]
    if project.arch.name == "PPC32":
        sections = project.loader.main_object.sections_map
        # r30 holds the address of one of these, depending on -fpic or -fPIC.
        pointed_at = [(sections.get(n), add) for n, add in ((".got", 0), (".got2", 0x8000))]
        bases = [section.vaddr + add for section, add in pointed_at if section]
        for node, instructions in nodes.items():
            if slot := POWERPC_SLOT.fullmatch("\n".join(i.line for i in instructions)):
                offset = (int(slot[1] or "0", 0) << 16) + int(slot[2], 0)
                places = [base + offset for base in bases if base + offset in imported]
                if places:
                    found.setdefault(node, imported[places[0]])
    jump = architecture.indirect
    return {node: name for node, name in found.items() if jump.match(nodes[node][-1].line)}


def slots(project: Any) -> dict[int, str]:
    """Return address -> symbol of the words that the dynamic linker fills with its address."""
    relocations = project.loader.main_object.relocs
    return {r.rebased_addr: r.symbol.name for r in relocations if r.symbol and r.symbol.name}


def calls_through_slots(
    project: Any, code: dict, made: dict[int, dict[int, int]]
) -> dict[int, int]:
    """Return block -> address of what MIPS code calls through its table of addresses.

    Parameters
    ----------
    code : dict of node to list of Instruction
    made : dict
        Block -> line -> address that the line refers to.

    Returns
    -------
    dict
        The address is that of the function if the file contains it, else that of the slot.
    """
    architecture = architecture_of(project.arch)
    found = {}
    for block, instructions in enumerate(code.values()) if architecture.delay else ():
        lines = [i.line for i in instructions]
        branch = architecture.branching(lines).split(" ")
        if branch[0] in ("jalr", "jr") and len(branch) == 2:
            loads = [
                line
                for line in made.get(block, {})
                if re.match(rf"(?:lw|ld|d?addiu) {re.escape(branch[1])},", lines[line])
            ]
            if loads:
                found[block] = made[block][max(loads)]
    return found
