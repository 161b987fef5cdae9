"""Names from symbol tables: labels for training and benchmarks, never used to match."""

import re
from collections import Counter

from binary.analysis import Analysis

# The same in every binary of a toolchain, whatever the program.
STARTUP = {"_start", "_init", "_fini", "frame_dummy", "register_tm_clones"}
STARTUP |= {"deregister_tm_clones", "__do_global_dtors_aux", "_dl_relocate_static_pie"}
STARTUP |= {"__libc_csu_init", "__libc_csu_fini"}


def is_symbol(name: str) -> bool:
    """Whether a C compiler gives such a name; others are angr's own."""
    named_by_c = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) is not None
    return named_by_c and not re.match("sub_[0-9a-f]+$", name)


def source_names(analysis: Analysis) -> list[str]:
    """Return the name of each function's source; "" where the symbol says none for sure."""
    names = []
    for name in analysis.function_name[: analysis.code_functions]:
        name = re.sub(r"\.(isra|constprop)\.\d+", "", name)
        sure = is_symbol(name) and "." not in name
        names.append(name if sure and name not in STARTUP else "")
    times = Counter(names)
    return [name if times[name] == 1 else "" for name in names]
