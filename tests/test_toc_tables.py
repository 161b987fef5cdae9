"""A jump table as GCC makes it for 64-bit PowerPC: all cases are found, and no more."""

import pytest
from zig import zig

from binary.analysis import JUMP
from binary.disassemble import analyse
from binary.toc_tables import Numbers

CASES = 9
# The table follows the jump. The entry after its last one leads into the function, too. Nearer than
# the comparison that says how many entries there are is one with a single case, and one of another
# register.
SOURCE = """    .abiversion 2
    .globl pick
    .type pick, @function
pick: .cfi_startproc
    addis 2, 12, .TOC.-pick@ha
    addi 2, 2, .TOC.-pick@l
    mr 31, 4
    lbz 9, 100(4)
    cmplwi 9, {last}
    bgt .Lother
    cmplwi 9, 2
    beq .Lnever
    cmplwi 1, 5, 3
    bgt 1, .Lother
    addis 10, 2, .Ltable@toc@ha
    addi 10, 10, .Ltable@toc@l
    lbz 9, 100(4)
    rldic 9, 9, 2, 54
    lwax 9, 10, 9
    add 9, 9, 10
    mtctr 9
    bctr
.Ltable:
    {entries}
    .long .Lnever - .Ltable
{cases}
.Lother: li 3, -1
    blr
.Lnever: li 3, -2
    blr
    .cfi_endproc
"""


@pytest.mark.parametrize("word", ["le", ""])
def test_gcc_table_of_powerpc(tmp_path, word):
    cases = "\n".join(f".L{n}: li 3, {n * 7}\n    blr" for n in range(CASES))
    entries = "\n    ".join(f".long .L{n} - .Ltable" for n in range(CASES))
    source = SOURCE.format(last=CASES - 1, entries=entries, cases=cases)
    (tmp_path / "pick.s").write_text(source)
    file = tmp_path / "pick"
    target = f"powerpc64{word}-linux-gnu"
    zig(target, "-shared", "-nostdlib", tmp_path / "pick.s", "-o", file)
    analysis = analyse(file)
    pick = analysis.function_name.index("pick")
    texts = [text.decode().splitlines() for text in analysis.instructions]
    [jump] = [b for b, lines in enumerate(texts) if lines[-1:] == ["bctr"]]
    edges = zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True)
    reached = sorted(target for (source, target), kind in edges if (source, kind) == (jump, JUMP))
    assert [texts[b][0] for b in reached] == [
        f"li r3, {hex(7 * n) if n > 1 else 7 * n}" for n in range(CASES)
    ]
    assert {int(analysis.function[b]) for b in reached} == {pick}


@pytest.mark.parametrize(
    ("before", "entries"),
    [
        (["cmplwi r9, 7", "bgtlr"], 8),  # the default case returns
        (["cmplwi cr7, r9, 7", "bgtlr cr7"], 8),
        (["cmplwi r9, 8", "bgt 0x100", "cmplwi r9, 3", "bgt 0x20"], 9),  # of one path only
        (["cmplwi r9, 8", "bgt 0x100", "cmplwi r9, 5", "beq 0x20", "cmpwi r10, 0", "ble 0x20"], 9),
        (["cmplwi r9, 8", "bgt 0x100", "cmplwi r9, 5", "subf. r3, r4, r5", "ble 0x20"], 9),
        (["cmplwi r9, 5", "bl 0x100", "bgt 0x100"], 0),  # the call compares
    ],
)
def test_the_length_is_that_of_the_comparison_of_the_index(before, entries):
    numbers = Numbers()
    for at, line in enumerate([*before, "sldi r9, r9, 2", "lwax r9, r10, r9"]):
        mnemonic, _, operands = line.partition(" ")
        numbers.read(at, mnemonic, operands.split(", "))
    assert numbers.entries == entries
