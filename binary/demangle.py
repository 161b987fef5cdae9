"""Demangle names of C++, Rust, Swift and Microsoft's C++.

A symbol of 200 characters can expand to gigabytes, because its parts may refer to earlier parts
many times. So another process demangles, with limits of memory and time. Names that it cannot
finish stay mangled.
"""

import functools
import json
import re
import subprocess
import sys

LONGEST = 4096  # characters of a symbol: the demangler recurses for each level of nesting
SHOWN = 500  # characters of a demangled name
SECONDS, MEMORY = 5, 256 << 20  # limits of the process; memory in bytes
FAILURES = 5  # after so many names that crash the process, the rest stays mangled
RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")  # angr 10's demangler does not remove it
PREFIXES = ("_Z", "__Z", "_R", "?", "_$s", "$s", "_$S", "$S", "_T0")
WORKER = f"""\
import json, resource, sys
import pydemumble
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for name in json.load(sys.stdin):
    print(json.dumps(pydemumble.demangle(name)[:{SHOWN}]), flush=True)
"""


def demangle(names: list[str]) -> list[str]:
    """Return each name as in its source, or unchanged if it is not mangled.

    >>> demangle(["_ZN5shape4areaEv", "main"])
    ['shape::area()', 'main']
    """
    mangled = sorted({n for n in names if n.startswith(PREFIXES) and len(n) <= LONGEST})
    readable = _in_another_process(tuple(mangled))
    return [readable.get(name) or name for name in names]


@functools.lru_cache(maxsize=8)
def _in_another_process(mangled: tuple[str, ...]) -> dict[str, str]:
    readable: dict[str, str] = {}
    at = failures = 0
    while at < len(mangled) and failures < FAILURES:
        done = subprocess.run(
            [sys.executable, "-I", "-c", WORKER],
            input=json.dumps(mangled[at:]).encode(),
            capture_output=True,
        )
        found = [
            json.loads(line) for line in done.stdout.splitlines(keepends=True) if line[-1:] == b"\n"
        ]
        names = [RUST_HASH.sub("", name) for name in found]
        readable |= zip(mangled[at:], names, strict=False)
        at += len(found) + 1  # the next name crashed the process
        failures += 1
    return readable


def brief(name: str) -> str:
    """Return a name without parameters, result and template arguments.

    >>> brief("void std::vector<int, std::allocator<int>>::push_back(int const&) (.cold)")
    'std::vector<…>::push_back (.cold)'
    """
    if "operator" in name or name.startswith("<"):  # here brackets mean something else
        return name
    name, _, rest = name.replace("(anonymous namespace)", "{anonymous}").partition("(")
    part = re.search(r" \(\.[\w.]+\)$", rest)
    kept, depth = "", 0
    for character in name:
        depth -= character == ">" and depth > 0
        if not depth:
            kept += character
        if character == "<":
            kept += "…" * (not depth)
            depth += 1
    return kept.split(" ")[-1] + (part[0] if part else "")
