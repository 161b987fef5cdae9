"""A small program without headers, zig's clang, which compiles it, and universal files."""

import struct
import subprocess
import sys

# Without headers, so that no C library has to be built. With floating point, a switch, a table of
# functions, recursion, strings, imports, calls of exported functions.
SOURCE = r"""
typedef __SIZE_TYPE__ size;
extern int puts(const char *);
extern void abort(void) __attribute__((noreturn));
extern void *malloc(size);
extern int limit;
double ratio = 1.0625;
static int counters[8];
#define EXPORT __attribute__((noinline, visibility("default")))
EXPORT double scale(double x, int n) {
    for (int i = 0; i < n; i++) x = x * 1.0625 + ratio;
    return x * 0.5;
}
EXPORT int count(int which) { return counters[which & 7] += which; }
EXPORT int kind(const char *s) {
    switch (s[0]) {
    case 'a': return 10;
    case 'b': return 21;
    case 'c': return count(35);
    case 'd': return s[1];
    case 'e': return count(51) + s[2];
    case 'f': return 67;
    default: return s[0] > 'x' ? 1 : -1;
    }
}
EXPORT char *copy(const char *s, size n) {
    char *t = malloc(n);
    if (!t) { puts("virtual memory exhausted"); abort(); }
    for (size i = 0; i < n; i++) t[i] = s[i];
    return t;
}
EXPORT int recurse(int n) { return n < 2 ? n : recurse(n - 1) + recurse(n - 2); }
static int first(int x) { return x + limit; }
static int second(int x) { return x * counters[x & 3] + 0x12345; }
static int third(int x) { puts("the third of the table"); return x / 10; }
int (*const table[])(int) = {first, second, third};
EXPORT int choose(int i) { return table[i % 3](i); }
EXPORT void start(void) {
    copy("the text of the beginning", 12);
    for (int i = 0; i < choose(i); i++)
        count(kind(&"abcdef"[i % 6]) + recurse(i) + (int) scale(i, i));
}
"""
STRINGS = {
    b"virtual memory exhausted",
    b"the third of the table",
    b"the text of the beginning",
    b"abcdef",
}


def zig(target: str, *arguments) -> None:
    """Compile with zig's clang."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-fno-sanitize=all"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def universal(x86: bytes, arm: bytes) -> bytes:
    """Make a universal file by hand, as lipo does."""
    first = 1 << 14
    second = first + -(-len(x86) // first) * first
    header = struct.pack(">2I", 0xCAFEBABE, 2)
    header += struct.pack(">5I", 0x01000007, 3, first, len(x86), 14)
    header += struct.pack(">5I", 0x0100000C, 0, second, len(arm), 14)
    return (header.ljust(first, b"\0") + x86).ljust(second, b"\0") + arm
