"""What is "compiled differently", and edits that no renaming of registers may hide."""

import re
import subprocess

import pytest

from binary.disassemble import analyse
from features.extract import extract_features
from matching.changes import STATUS, compare

COMPILERS = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc", "arm": "arm-linux-gnueabihf-gcc"}
# Each function has one edit, E(old, new), that hardly changes the shapes of the instructions.
EDITS = r"""
#define A __attribute__((noinline))
#define E(old, new) EDIT
volatile long long sink; volatile double real; volatile float narrow;
typedef long long big;
A big width(big x, big y) { sink = y; return E(x, (unsigned)x); }
A big sign(big x, big y) { sink = y; return E(x, (int)x); }
A big sum(big x, big y) { sink = y; return E(x + y, (unsigned)(x + y)); }
A int which(int x, int y, int z) { sink = x; return E(y, z); }
A double chosen(double x, double y, double z) { real = x; return E(y, z); }
A double difference(double x, double y, double z) { real = x; return E(y - z, z - y); }
A int minus(int x, int y, int z) { sink = x; return E(y - z, z - y); }
A void take(double a, double b, int c) { real = a - 2 * b; sink = c; }
A void arguments(double x, double y, int c) { real = 1; take(E(x, y), E(y, x), c); sink = 2; }
A void integers(int c, int d) { sink = 1; take(1, 2, E(c, d)); sink = 2; }
A void tail(int c, int d) { sink = 1; E(integers, other)(c, d); }
A void other(int c, int d) { sink = 3; take(1, 2, c * d); sink = 4; }
A int loads(int *p, short x) { return *E((int *), (short *))p + x; }
A int order(int *p, int *q) { E(*p = 1; *q = 2, *q = 2; *p = 1); return *p; }
A int reads(volatile int *p) {
    int a, b;
    E(a = p[0]; b = p[1], b = p[1]; a = p[0]);
    return a - 3 * b;
}
A int loop(int n, int m) { int s = 0; for (int i = 0; i < E(n, m); i++) s += m ^ sink; return s; }
A double mix(double x, double y, int n) { while (n--) real = E(x, y); return x; }
A float single(float x, float y) { narrow = y; return E(x, y); }
A int turned(int x, int y) { sink = 0; return E(x < y, y < x) ? x * 3 : y * 5; }
A int unsigned_(unsigned char x, unsigned char y) { sink = x; return E(x, y) + 1; }
void begin(void) {
    int b[4] = {1};
    for (;;) {
        sink = width(sink, 2) + sign(1, sink) + sum(sink, 3) + which(sink, sink, sink);
        real = chosen(real, real, real) + difference(real, real, 1) + single(real, narrow);
        arguments(real, real, sink);
        integers(sink, sink);
        tail(sink, sink);
        other(sink, sink);
        sink = loads(b, sink) + order(b, b + 1) + loop(sink, sink) + turned(sink, sink);
        real = mix(real, real, sink);
        sink = minus(sink, sink, sink) + unsigned_(sink, sink) + reads(b);
    }
}
"""
SAME = {"take", "other", "begin"}
# The same instructions in orders that do not matter, and in one that does.
ORDERS = {
    "old": ("add %rsi, %rax", "mov $9, %edx", "imul $77, %rsi, %r9", "xor %ecx, %edx"),
    "same": ("mov $9, %edx", "imul $77, %rsi, %r9", "xor %ecx, %edx", "add %rsi, %rax"),
    "other": ("add %rsi, %rax", "xor %ecx, %edx", "imul $77, %rsi, %r9", "mov $9, %edx"),
}
ASSEMBLY = """
    .globl begin, one
    .type begin, @function
    .type one, @function
begin:
    mov $7, %ecx
    call one
    jmp begin
one:
    {}
    mov %edx, 24(%rdi)
    mov %r9, 32(%rdi)
    ret
"""


def statuses(files, model):
    """Name of the function -> status."""
    codes = [extract_features(analyse(file)) for file in files]
    found = {}
    for row in compare(*codes, model).functions:
        sides = [(c, f) for c, f in zip(codes, row["sides"], strict=True) if f >= 0]
        names = {code.analysis.function_name[f] for code, f in sides}
        found |= dict.fromkeys(names, STATUS[row["status"]])
    return found


@pytest.mark.parametrize("processor", COMPILERS)
def test_no_edit_passes_for_compiled_differently(tmp_path, model, processor):
    for name in ("old", "new"):
        (tmp_path / f"{name}.c").write_text(EDITS.replace("EDIT", name))
        command = [COMPILERS[processor], "-O2", "-w", "-nostdlib", "-static", "-Wl,-e,begin"]
        command += [tmp_path / f"{name}.c", "-o", tmp_path / name, "-lgcc"]
        subprocess.run(command, check=True)
    found = statuses([tmp_path / "old", tmp_path / "new"], model)
    edited = set(re.findall(r"^A \w+ (\w+)\(", EDITS, re.M)) - SAME
    assert len(edited) > 15
    # A function may find no partner, but none may pass for the same.
    hidden = {name for name in edited if found[name] in ("identical", "compiled differently")}
    assert hidden == set()
    assert sum(found[name] == "changed" for name in edited) >= len(edited) - 1


def test_an_order_that_does_not_matter_is_compiled_differently(tmp_path, model):
    for name, lines in ORDERS.items():
        (tmp_path / f"{name}.s").write_text(ASSEMBLY.format("\n    ".join(lines)))
        command = ["gcc", "-nostdlib", "-static", "-Wl,-e,begin", tmp_path / f"{name}.s", "-o"]
        subprocess.run([*command, tmp_path / name], check=True)
    for name, status in (("same", "compiled differently"), ("other", "changed")):
        found = statuses([tmp_path / "old", tmp_path / name], model)
        assert found == {"begin": "identical", "one": status}
