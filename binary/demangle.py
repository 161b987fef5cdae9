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
PREFIXES = ("_Z", "__Z", "_R", "__R", "?", "_$s", "$s", "_$S", "$S", "_T0")
STARTS = {  # functions that C++ compilers add; a mangled name may follow
    "_GLOBAL__sub_I_": "global constructors keyed to ",
    "_GLOBAL__sub_D_": "global destructors keyed to ",
}
# What a demangled name may begin with that is not a part of a function's own name.
LEAD = re.compile(
    r"((?:non-)?virtual thunk to|global (?:con|de)structors keyed to"
    r"|invocation function for block in) "
)
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
    mangled = {name: _symbol(name) for name in names if len(name) <= LONGEST}
    asked = sorted({symbol for _, symbol in mangled.values() if symbol.startswith(PREFIXES)})
    readable = _in_another_process(tuple(asked))
    found = {n: lead + readable[s] for n, (lead, s) in mangled.items() if readable.get(s)}
    return [found.get(name, name) for name in names]


def _symbol(name: str) -> tuple[str, str]:
    """Return what a name begins with that the demangler does not know, in words, and the rest."""
    for start, words in STARTS.items():
        if name.startswith(start):
            return words, name.removeprefix(start)
    return "", name[1:] if name.startswith("__R") else name  # macOS puts another _ before all


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
    if lead := LEAD.match(name):
        return lead[0] + brief(name[lead.end() :])
    name = name.replace("(anonymous namespace)", "{anonymous}")
    part = re.search(r" \(\.[\w.]+\)$", name)
    name = name[: part.start()] if part else name
    kept, depth = "", 0
    for at, character in enumerate(name):
        closes = character in ">)" and name[at - 1 : at + 1] != "->"
        depth -= closes and depth > 0
        if not depth:
            kept += character
        if character in "<(":
            kept += "" if depth else "…" * (character == "<")
            depth += 1
    kept = kept.partition(" -> ")[0]  # Swift's result
    # The last brackets are the parameters, but not those of a function that contains this one.
    before, brackets, behind = kept.rpartition("()")
    own = before if brackets and not behind.startswith("::") else kept
    short = own.split(" ")[-1]
    return (short if short.strip("()") else name) + (part[0] if part else "")
