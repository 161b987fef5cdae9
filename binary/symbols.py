"""Names from symbol tables: labels for training and benchmarks, never used for matching."""

import re
from collections import Counter

from binary.analysis import Analysis

# Functions that a toolchain adds to every binary.
STARTUP = {"_start", "_init", "_fini", "frame_dummy", "register_tm_clones"}
STARTUP |= {"deregister_tm_clones", "__do_global_dtors_aux", "_dl_relocate_static_pie"}
STARTUP |= {"__libc_csu_init", "__libc_csu_fini"}


def ascii_name(name: str) -> str:
    """Return a name in one line of ASCII; other characters become escapes such as ``\\xe9``."""
    return name.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")


def is_symbol(name: str) -> bool:
    """Whether a name may come from a C compiler; angr makes up others."""
    named_by_c = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) is not None
    return named_by_c and not is_made_up(name)


def is_made_up(name: str) -> bool:
    """Whether angr made a name from the function's address, because there is no symbol."""
    return re.fullmatch("sub_[0-9a-f]+", name) is not None


def source_names(analysis: Analysis) -> list[str]:
    """Return each function's name in the source; "" if the symbol does not say it for sure."""
    names = []
    for name in analysis.function_name[: analysis.code_functions]:
        name = re.sub(r"\.(isra|constprop)\.\d+", "", name)
        sure = is_symbol(name) and "." not in name
        names.append(name if sure and name not in STARTUP else "")
    times = Counter(names)
    return [name if times[name] == 1 else "" for name in names]
