"""Jump tables that angr does not read, or reads past their end.

If a function checks the index in one block and jumps in another, angr 9 does not know the table's
length. It reads on into the next table, and adds edges from one function into the middle of
another. So each table is cut where the next one begins.
"""

import itertools
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from binary.instructions import Instruction, read_instructions

ALIGNED = 4  # bytes of an instruction
FAR = 1 << 16  # bytes of code before the jump, at most, that are read


class Table(NamedTuple):
    """A jump table.

    Attributes
    ----------
    address : int
    base : int
        What the jump adds to an entry, which is a signed distance.
    entry : int
        Bytes of an entry.
    entries : int
        Number of entries, 0 if it is not known.
    """

    address: int
    base: int
    entry: int
    entries: int


def table_resolver(
    project: Any, starts: list[Any], find: Callable[[Any, list[Instruction]], Table | None]
) -> Any:
    """Return a resolver of indirect jumps for angr.

    Parameters
    ----------
    starts : list of Start
        Where functions begin and end according to the file; without a known length, a table ends
        where an entry leads out of the function.
    find : callable
        Finds the table of the jump at the end of some code: (project, instructions) -> Table.
    """
    from angr.analyses.cfg.indirect_jump_resolvers.resolver import IndirectJumpResolver

    ranges = {start.address: start.end for start in starts}

    class TableResolver(IndirectJumpResolver):
        def filter(self, cfg: Any, addr: int, func_addr: int, block: Any, jumpkind: str) -> bool:
            return jumpkind == "Ijk_Boring"

        def resolve(
            self,
            cfg: Any,
            addr: int,
            func_addr: int,
            block: Any,
            jumpkind: str,
            func_graph_complete: bool = True,
            **_: Any,
        ) -> tuple[bool, list[int] | None]:
            start = max(min(func_addr, addr), addr - FAR)
            end = ranges.get(func_addr, 0)
            for pieces in ([(start, addr + block.size - start)], _path(cfg, func_addr, addr)):
                table = find(project, _read(project, pieces))
                targets = read_table(project, table, func_addr, end)
                if len(targets) > 1:
                    break
            if table is None or len(targets) < 2:
                return False, None
            jump = cfg.indirect_jumps.get(addr)
            if jump is not None:
                size = table.entry * len(targets)
                jump.jumptable, jump.resolved_targets = True, set(targets)
                jump.add_jumptable(table.address, size, table.entry, targets, True)
            return True, targets

    return TableResolver(project)


def _read(project: Any, pieces: list[tuple[int, int]]) -> list[Instruction]:
    """Return the instructions of pieces of code: (address, size)."""
    nodes = [SimpleNamespace(addr=start, size=size, thumb=False) for start, size in pieces]
    try:
        return [line for node in nodes for line in read_instructions(project, node)]
    except KeyError:  # the function's code is in several places
        return []


def _path(cfg: Any, start: int, address: int) -> list[tuple[int, int]]:
    """Return the blocks, (address, size), of a shortest way through a function to a block.

    What lies between in memory may use the same registers otherwise.
    """
    last = cfg.model.get_any_node(address)
    following: dict[Any, Any] = {last: None}
    waiting = deque([last] if last is not None else [])
    while waiting:
        node = waiting.popleft()
        if node.addr == start:
            path = []
            while node is not None:
                path.append((node.addr, node.size))
                node = following[node]
            return path
        for before, kind in cfg.model.get_predecessors_and_jumpkinds(node, excluding_fakeret=False):
            if kind in ("Ijk_Boring", "Ijk_FakeRet") and before not in following:
                following[before] = node
                waiting.append(before)
    return []


def read_table(project: Any, table: Table | None, start: int, end: int) -> list[int]:
    """Return where the entries of a table lead.

    Parameters
    ----------
    start, end : int
        The function, if the file says where it ends; else ``end`` is 0.
    """
    targets: list[int] = []
    while table is not None and (not table.entries or len(targets) < table.entries):
        distance = read_word(project, table.address + table.entry * len(targets), table.entry)
        if distance is None:
            break
        sign = 1 << (8 * table.entry - 1)
        target = table.base + (distance ^ sign) - sign
        section = project.loader.find_section_containing(target)
        inside = start <= target < end
        is_code = table.entries and section and section.is_executable
        if target % ALIGNED or not (inside or is_code):
            break
        targets.append(target)
    return targets


def read_word(project: Any, address: int, size: int) -> int | None:
    """Return the unsigned word of ``size`` bytes at an address; None if it is not in the file."""
    try:
        return project.loader.memory.unpack_word(address, size=size)
    except KeyError:
        return None


def cut_tables(cfg: Any) -> None:
    """Remove the edges of an angr graph for entries after the end of a jump table."""
    tables = sorted(
        (table.jumptable_addr, table.jumptable_entry_size, block, table.jumptable_entries)
        for block, table in cfg.model.jump_tables.items()
        if table.jumptable_addr and table.jumptable_entry_size and table.jumptable_entries
    )
    starts = sorted({start for start, *_ in tables})
    following = dict(itertools.pairwise(starts))
    for start, size, block, targets in tables:
        if start not in following:
            continue
        own = (following[start] - start) // size
        wrong = set(targets[own:]) - set(targets[:own])
        node = cfg.model.get_any_node(block)
        if node is not None and own:
            for successor in [s for s in cfg.model.graph.successors(node) if s.addr in wrong]:
                cfg.model.graph.remove_edge(node, successor)
