"""binary/boundaries.py: which blocks become one function."""

import dataclasses
import subprocess

import numpy as np
import pytest
from conftest import analysis_of, compile_c
from zig import zig

from binary.analysis import CALL, JUMP, STEP_OVER
from binary.boundaries import ALIGNMENT, mend_boundaries
from binary.disassemble import analyse

# gcc saves registers only where needed (shrink-wrapping), and turns last calls into jumps.
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((noinline)) void fail(const char *why) { fprintf(stderr, "%s\n", why); abort(); }

__attribute__((noinline)) static int order(const void *a, const void *b) {
    const char *s = *(const char *const *) a, *t = *(const char *const *) b;
    while (*s && *s == *t)
        s++, t++;
    return *s - *t;
}

__attribute__((noinline)) int reverse(const void *a, const void *b) { return order(b, a); }

__attribute__((noinline)) char *join(char **part, int n) {
    size_t size = 1;
    for (int i = 0; i < n; i++)
        size += strlen(part[i]);
    char *all = malloc(size);
    if (!all)
        fail("out of memory");
    for (int i = *all = 0; i < n; i++)
        strcat(all, part[i]);
    return all;
}

int main(int argc, char **argv) {
    qsort(argv + 1, argc - 1, sizeof *argv, argc > 5 ? order : reverse);
    puts(join(argv + 1, argc - 1));
    return 0;
}
"""


def parts(analysis):
    """Return entry -> the blocks' addresses of each function."""
    mended = mend_boundaries(analysis)
    found = {}
    for address, f in zip(mended.address, mended.function, strict=True):
        if address:
            found.setdefault(int(mended.function_address[f]), []).append(int(address))
    assert mended.function_name[-1] == "puts"
    assert mended.function[-1] == len(mended.function_address) - 1
    return found


@pytest.mark.parametrize(
    ("last", "target", "kind", "one"),
    [
        ("jne 0x1018", 0x1018, JUMP, True),
        ("jne 0x1020", 0x1020, JUMP, True),
        ("mov eax, 1", 0x1020, JUMP, True),  # falls through
        ("mov eax, 1", 0x1018, STEP_OVER, True),  # angr starts a function at the next block
        ("jmp 0x1018", 0x1018, JUMP, True),
        ("jmp 0x1020", 0x1020, JUMP, False),  # a tail call
        ("jmp rax", 0x1020, JUMP, True),  # a jump table
        ("call 0x2000", 0x1018, STEP_OVER, False),  # a call that may never return
    ],
)
def test_which_stretches_are_one_function(last, target, kind, one):
    blocks = [(0x1000, 0x1000, last), (target, target, "ret")]
    found = parts(analysis_of(blocks, [(0, 1, kind)]))
    both = [0x1000, target]
    assert found == ({0x1000: both} if one else {0x1000: both[:1], target: both[1:]})


def test_what_is_called_is_a_function():
    blocks = [(0x1000, 0x1000, "jne 0x1018"), (0x1018, 0x1018, "ret"), (0x1020, 0x1020, "call 1")]
    assert len(parts(analysis_of(blocks, [(0, 1, JUMP), (2, 1, CALL)]))) == 3
    analysis = analysis_of(blocks, [(0, 1, JUMP)])
    assert len(parts(analysis)) == 2
    taken = {"taker_block": np.array([2], np.int32), "taken_block": np.array([1], np.int32)}
    assert len(parts(dataclasses.replace(analysis, **taken))) == 3


def test_tail_calls_in_code_that_is_not_aligned():
    """The last function is both called and jumped to, so other jumps may be tail calls, too."""
    blocks = [
        (0x1002, 0x1002, "jmp 0x1018"),
        (0x1018, 0x1018, "jmp 0x1028"),
        (0x1028, 0x1028, "ret"),
    ]
    blocks += [(0x1034, 0x1034, "call 0x1028")]
    edges = [(0, 1, JUMP), (1, 2, JUMP), (3, 2, CALL)]
    assert len(parts(analysis_of(blocks, edges))) == 4
    assert len(parts(analysis_of(blocks, [*edges[:1], *edges[2:]]))) == 3


def test_a_cold_part_belongs_to_its_function():
    blocks = [
        (0x1008, 0x1008, "jmp 0x2010"),
        (0x2000, 0x2000, "je 0x1008"),
        (0x2010, 0x2000, "ret"),
    ]
    found = parts(analysis_of(blocks, [(1, 0, JUMP), (0, 2, JUMP), (1, 2, JUMP)]))
    assert found == {0x2000: [0x1008, 0x2000, 0x2010]}


def test_a_function_begins_behind_padding():
    assert parts(analysis_of([(0x1010, 0x1006, "ret")], [])) == {0x1010: [0x1010]}


def test_a_function_that_angr_swallowed_is_separate():
    """For angr, code that only one function jumps to is part of it, wherever it is."""
    blocks = [(0x1000, 0x1000, "jmp 0x1020"), (0x1010, 0x1010, "ret"), (0x1020, 0x1000, "nop")]
    blocks += [(0x1028, 0x1028, "ret")]
    found = parts(analysis_of(blocks, [(0, 2, JUMP), (2, 3, JUMP)]))
    assert found == {0x1000: [0x1000], 0x1010: [0x1010], 0x1020: [0x1020, 0x1028]}


@pytest.mark.parametrize("place", [("-fno-pie", "-no-pie"), ("-fpie", "-pie")])
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3"])
def test_functions_begin_where_symbols_say(level, place, tmp_path):
    binary = compile_c(SOURCE, tmp_path / "joined", level, *place)
    symbols = subprocess.run(["nm", str(binary)], check=True, capture_output=True, text=True)
    base = 0x400000 if "-pie" in place else 0  # where angr maps position-independent files
    named = {
        line.split()[-1]: int(line.split()[0], 16) + base
        for line in symbols.stdout.splitlines()
        if line.split()[-1] in ("fail", "order", "reverse", "join", "main")
    }
    subprocess.run(["strip", str(binary)], check=True)
    mended = analyse(binary)
    entries = mended.function_address.tolist()
    assert set(named.values()) <= set(entries)
    code = sorted(entry for entry in entries if entry)
    for name, start in named.items():
        block = mended.address[mended.function == entries.index(start)]
        later = [entry for entry in code if entry > start] or [1 << 62]
        assert block.max() < later[0], f"{name} reaches into the next function"


THUMB = """
.syntax unified
.macro function name
.thumb_func
.globl \\name
.type \\name, %function
\\name:
.endm
.text
.thumb
function start
    push {r7, lr}
    bl early
    bl tail
    pop {r7, pc}
    nop
function early
    cmp r0, #1
    itt lt
    movlt r0, #0
    bxlt lr
    adds r0, #2
    bx lr
function tail
    push {r7, lr}
    adds r0, #1
    adds r0, #2
    adds r0, #3
    adds r0, #4
    adds r0, #5
    pop.w {r7, lr}
    b.w only
.section .text.only, "ax", %progbits
.p2align 3
.thumb_func
.type only, %function
only:
    adr r1, numbers
    ldrd r0, r2, [r1, #8]
    bx lr
.p2align 2
numbers:
    .word 2, 3, 5, 7
"""


def test_functions_of_thumb_code_are_found(tmp_path):
    """A return under a condition, a tail call to what is not called, a gap, and constants."""
    (tmp_path / "a.s").write_text(THUMB)
    flags = ["-nostdlib", "-shared", tmp_path / "a.s", "-o", tmp_path / "a.so"]
    zig("thumb-linux-musleabihf", *flags)
    analysis = analyse(tmp_path / "a.so")
    names = analysis.function_name[: analysis.code_functions]
    assert names == ["start", "early", "tail", "only"]
    only = int(analysis.function_address[3])
    assert only % ALIGNMENT != 1, "else the alignment alone would say that it is a function"
    early = np.flatnonzero(analysis.function[: analysis.code_blocks] == 1)
    assert early.tolist() == [early[0], early[0] + 1]
    assert [early[0], early[1], JUMP] in np.column_stack([analysis.edges, analysis.kind]).tolist()
    # lld fills the gap with 0xd4d4, a branch into the middle of other functions.
    assert not any(b"bmi" in text for text in analysis.instructions)
    assert analysis.address[: analysis.code_blocks].max() == only, "constants are no code"
