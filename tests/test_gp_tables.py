"""A jump table as compilers make it for MIPS: all cases and their texts are found, and no more."""

import pytest
from zig import zig

from binary.analysis import JUMP
from binary.disassemble import analyse

CASES = 9
# The entry after the table's last one leads into the function, too. The code in between uses the
# table's register otherwise; the register for the offset table is on the stack meanwhile. The text
# of the last case is chosen between two entries of the offset table.
SOURCE = """    .set noreorder
    .text
    .globl pick
    .type pick, @function
pick: .cfi_startproc
    {begin}
    {add}iu $sp, $sp, -32
    {store} $3, 8($sp)
    lbu $2, 100($4)
    sltiu $6, $2, {cases}
    beqz $6, .Lother
    {load} $16, {page}(.Ltable)($3)
    b .Lgo
    nop
.Lnever: li $16, 1
    jr $31
    li $2, -2
.Lgo: {shift} $2, $2, {bits}
    {add}u $5, $16, $2
    {load} $5, {low}(.Ltable)($5)
    {add}u $5, $5, $3
    jr $5
    li $3, 0
{texts}
.Lother: {load} $3, 8($sp)
    {add}iu $2, $3, {slot}(puts)
    {add}iu $7, $3, {slot}(gets)
    movz $2, $7, $4
    jr $31
    {load} $2, 0($2)
    .cfi_endproc
    .section .rodata
    .balign 8
.Ltable: {entries}
    {entry} .Lnever
    .section .rodata.str1.1,"aMS",@progbits,1
{literals}
"""
CASE = """.L{n}: {load} $3, 8($sp)
    {load} $2, {page}(.Ltext{n})($3)
    jr $31
    {add}iu $2, $2, {low}(.Ltext{n})
"""
O32 = {
    "begin": "lui $3, %hi(_gp_disp)\n addiu $3, $3, %lo(_gp_disp)\n addu $3, $3, $25",
    "shift": "sll",
    "bits": 2,
    "add": "add",
    "load": "lw",
    "store": "sw",
    "page": "%got",
    "low": "%lo",
    "slot": "%got",
    "entry": ".gpword",
}
N64 = {
    "begin": "lui $3, %hi(%neg(%gp_rel(pick)))\n daddu $3, $3, $25\n"
    " daddiu $3, $3, %lo(%neg(%gp_rel(pick)))",
    "shift": "dsll",
    "bits": 3,
    "add": "dadd",
    "load": "ld",
    "store": "sd",
    "page": "%got_page",
    "low": "%got_ofst",
    "slot": "%got_disp",
    "entry": ".gpdword",
}


@pytest.mark.parametrize(
    ("target", "abi"), [("mips-linux-gnueabi", O32), ("mips64el-linux-gnuabi64", N64)]
)
def test_table_of_distances_from_gp(tmp_path, target, abi):
    texts = "".join(CASE.format(n=n, **abi) for n in range(CASES))
    source = SOURCE.format(
        cases=CASES,
        texts=texts,
        entries="\n".join(f"    {abi['entry']} .L{n}" for n in range(CASES)),
        literals="\n".join(f'.Ltext{n}: .asciz "text of case {n}"' for n in range(CASES)),
        **abi,
    )
    (tmp_path / "pick.s").write_text(source)
    file = tmp_path / "pick"
    zig(target, "-shared", "-nostdlib", tmp_path / "pick.s", "-o", file)
    analysis = analyse(file)
    pick = analysis.function_name.index("pick")
    lines = [text.decode().splitlines() for text in analysis.instructions]
    [jump] = [b for b, text in enumerate(lines) if text[-2:-1] == ["jr $a1"]]
    edges = zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True)
    reached = [target for (source, target), kind in edges if (source, kind) == (jump, JUMP)]
    assert len(reached) == CASES
    assert {int(analysis.function[b]) for b in reached} == {pick}
    found = {block: analysis.string[i] for i, block in enumerate(analysis.string_block.tolist())}
    assert [found.get(block) for block in sorted(reached)] == [
        b"text of case %d" % n for n in range(CASES)
    ]
    assert {"puts", "gets"} <= set(analysis.variable_name)
