"""Code is followed past instructions that angr's lifter does not know, by what was assembled."""

import numpy as np
import pytest
from zig import zig

from binary.analysis import JUMP, STEP_OVER
from binary.disassemble import analyse

LARGE = 30  # times that these are repeated: more than angr's largest block
X86 = """vpternlogd $0x96, %zmm1, %zmm2, %zmm3
kmovd %eax, %k1
vmovdqu64 %zmm16, 64(%rsp){%k1}
sha1rnds4 $3, %xmm2, %xmm1
rdpid %rcx"""
ARM = """casal x0, x1, [x2]
ldaddal x0, x1, [x2]
ptrue p0.b
ld1b {z0.b}, p0/z, [x0]
sdot v0.4s, v1.16b, v2.16b
ldapr x0, [x1]"""
# Calls through a register, jumps and returns with pointer authentication.
SIGNED = """    .globl signed, other
    .type signed, %function
    .type other, %function
signed: .cfi_startproc
    paciasp
    cbz x0, 1f
    blraaz x1
    add x0, x0, 77
    retaa
1:  braa x1, x2
    .cfi_endproc
other: .cfi_startproc
    mov w0, 5
    retab
    .cfi_endproc
"""


@pytest.mark.parametrize(
    ("target", "flag", "assembly"),
    [
        ("x86_64-linux-gnu", "-mcpu=x86_64_v4+sha+rdpid", X86),
        ("aarch64-linux-gnu", "-mcpu=generic+v8_5a+sve2+dotprod", ARM),
    ],
)
def test_code_after_newer_instructions_is_found(tmp_path, target, flag, assembly):
    assembly = "\n".join([assembly] * LARGE)
    lines = "".join(f'"{line.replace("%", "%%")}\\n"' for line in assembly.splitlines())
    lines = lines.replace("%%", "%")  # basic assembly, without operands
    (tmp_path / "new.c").write_text(
        "extern int puts(const char *); extern int rnd(int);\n"
        f'int new(int x) {{ asm volatile({lines}); puts("after it"); return rnd(x) * 77; }}\n'
    )
    file = tmp_path / "new"
    zig(target, flag, "-O1", "-fPIC", "-shared", "-nostdlib", tmp_path / "new.c", "-o", file)
    analysis = analyse(file)
    assert analysis.function_name[: analysis.code_functions] == ["new"]
    found = [line.split()[0] for b in analysis.instructions for line in b.decode().splitlines()]
    mine = [line.split()[0] for line in assembly.splitlines()]
    at = found.index(mine[0])
    assert found[at : at + len(mine)] == mine
    assert analysis.string == [b"after it"]
    assert sorted(name for _, name in analysis.import_calls()) == ["puts", "rnd"]


def test_signed_calls_jumps_and_returns(tmp_path):
    (tmp_path / "signed.s").write_text(".arch armv8.3-a\n" + SIGNED)
    file = tmp_path / "signed"
    zig("aarch64-linux-gnu", "-shared", "-nostdlib", tmp_path / "signed.s", "-o", file)
    analysis = analyse(file)
    texts = [text.decode().splitlines() for text in analysis.instructions]
    names = analysis.function_name
    assert [
        (names[f], lines[-1].split()[0]) for f, lines in zip(analysis.function, texts, strict=True)
    ] == [
        *(("signed", "cbz"), ("signed", "blraaz"), ("signed", "retaa"), ("signed", "braa")),
        ("other", "retab"),
    ]
    edges = zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True)
    assert sorted(edges) == [([0, 1], JUMP), ([0, 3], JUMP), ([1, 2], STEP_OVER)]


@pytest.mark.parametrize(
    ("target", "trap"),
    [
        ("x86_64-linux-gnu", "ud2"),
        ("x86-linux-gnu", "ud2"),
        ("riscv64-linux-gnu", "c.unimp"),
        ("powerpc64le-linux-gnu", "trap"),
    ],
)
def test_functions_may_end_in_a_trap_and_no_code_is_read_after_it(tmp_path, target, trap):
    (tmp_path / "traps.c").write_text(
        "extern int puts(const char *); volatile int g;\n"
        "void only(void) { __builtin_trap(); }\n"
        "void store(int x) { g = x * 3 + 1; __builtin_trap(); }\n"
        'void call(void) { puts("the end"); __builtin_trap(); }\n'
        "int maybe(int x) { if (x > 7) { g = x; __builtin_trap(); } return x * 5; }\n"
        "int next(int x) { return x * 7; }\n"
    )
    file = tmp_path / "traps"
    zig(target, "-O1", "-fPIC", "-shared", "-nostdlib", tmp_path / "traps.c", "-o", file)
    analysis = analyse(file)
    lines = [text.decode().splitlines() for text in analysis.instructions]
    traps = {name: 0 for name in analysis.function_name[: analysis.code_functions]}
    for f, inside in zip(analysis.function.tolist(), lines, strict=True):
        if inside:
            traps[analysis.function_name[f]] += sum(line.startswith(trap) for line in inside)
    assert traps.pop("call") <= 1  # angr may see that nothing comes back from this call
    assert traps == {"only": 1, "store": 1, "maybe": 1, "next": 0}
    ends = [block for block, text in enumerate(lines) if text[-1:] and text[-1].startswith(trap)]
    assert not np.isin(ends, analysis.edges[:, 0]).any()
    assert not analysis.returns[ends].any()


def test_numbers_behind_code_are_not_taken_for_sve_instructions(tmp_path):
    source = """    .globl code
    .type code, @function
code: .cfi_startproc
    mov w0, 7
    ret
    .cfi_endproc
    .word 0x04200400, 0x05200400, 0xd65f03c0 // add z0.b, ... ; zip1 ... ; ret
"""
    (tmp_path / "numbers.s").write_text(source)
    file = tmp_path / "numbers"
    zig("aarch64-linux-gnu", "-shared", "-nostdlib", tmp_path / "numbers.s", "-o", file)
    analysis = analyse(file)
    assert analysis.function_name[: analysis.code_functions] == ["code"]
