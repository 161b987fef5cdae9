"""What instructions read and write, against the lifter of Valgrind (VEX)."""

import re
import subprocess

import archinfo
import pytest
import pyvex
from conftest import SOURCE
from elftools.elf.elffile import ELFFile

from binary.accesses import accesses, disassembler, whole_register

COMPILERS = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}
ARCHES = {"x86_64": archinfo.ArchAMD64(), "aarch64": archinfo.ArchAArch64()}
INSTRUCTIONS = 3000  # different ones that are compared
NUMBERS = re.compile(r"0x[0-9a-f]+|(?<![a-z])\d+")
FLAGS = {"cc_op", "cc_dep1", "cc_dep2", "cc_ndep"}
IGNORED = {
    "",
    "rip",
    "pc",
    "ip_at_syscall",
    "cmstart",
    "cmlen",
    "d",
    "fpcr",
    "fpround",
    "sseround",
    "ftop",
}


@pytest.fixture(scope="module", params=COMPILERS)
def instructions(request, tmp_path_factory):
    """Name of the processor, and code of different instructions of a program with its C library."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "a.c").write_text(SOURCE)
    compiler = COMPILERS[request.param]
    command = [compiler, "-O2", "-static", folder / "a.c", "-o", folder / "a", "-lm"]
    subprocess.run(command, check=True)
    with (folder / "a").open("rb") as stream:
        text = ELFFile(stream).get_section_by_name(".text").data()
    found = {}
    for one in disassembler(request.param).disasm(text, 0):
        found.setdefault((one.mnemonic, NUMBERS.sub("#", one.op_str)), bytes(one.bytes))
        if len(found) == INSTRUCTIONS:
            break
    return request.param, list(found.values())


def of_vex(processor, code):
    """Return the registers that VEX reads and writes; None for what it does not lift."""
    arch = ARCHES[processor]
    block = pyvex.lift(code, 0x1000, arch, max_inst=1, opt_level=0)
    if block.jumpkind == "Ijk_NoDecode" or block.size != len(code):
        return None

    def name(offset):
        registers = [r for r in arch.register_list if 0 <= offset - r.vex_offset < r.size]
        base = registers[0].name if registers else ""  # VEX's own state, such as a rounding mode
        return "flags" if base in FLAGS else whole_register(processor, base.replace("xsp", "sp"))

    reads, writes = set(), set()
    for statement in block.statements:
        if statement.tag == "Ist_Put":
            writes.add(name(statement.offset))
        for expression in statement.expressions:
            if expression.tag == "Iex_Get":
                reads.add(name(expression.offset))
    return reads - IGNORED, writes - IGNORED


def test_registers_are_those_of_vex(instructions):
    """Nothing is missing in our sets; they may contain more, where a part of a register is kept."""
    processor, codes = instructions
    compared, more = 0, 0
    for code in codes:
        (ours,) = accesses(processor, code)
        theirs = of_vex(processor, code)
        if theirs is None or ours.opaque:
            continue
        (shown,) = disassembler(processor).disasm(code, 0)
        if shown.mnemonic.startswith("bt"):  # VEX computes it through the stack
            theirs = theirs[0] - {"rsp"}, theirs[1] - {"rsp"}
        if (
            shown.mnemonic == "eor" and "." in shown.op_str
        ):  # VEX computes that of vectors from more than is needed
            theirs = theirs[0] - ours.writes, theirs[1]
        if ours.keeps_flags:
            theirs = theirs[0] - {"flags"}, theirs[1]
        missing = theirs[0] - ours.reads, theirs[1] - ours.writes
        assert missing == (set(), set()), f"{shown.mnemonic} {shown.op_str}"
        compared += 1
        more += len(ours.writes - theirs[1])
    assert compared > 0.9 * len(codes) > 1000
    assert more < 0.1 * compared
