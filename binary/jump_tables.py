"""Jump tables that angr reads past their end.

If a function checks the index in one block and jumps in another, angr 9 does not know the table's
length. It reads on into the next table, and adds edges from one function into the middle of
another. So each table is cut where the next one begins.
"""

import itertools
from typing import Any


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
