"""What is "compiled differently", and edits that no renaming of registers may hide."""

import re
import subprocess

import pytest
from register_edits import EDITS, SAME

from binary.disassemble import analyse
from features.extract import extract_features
from matching.changes import compare

COMPILERS = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc", "arm": "arm-linux-gnueabihf-gcc"}
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
        sides = [(c, f) for c, f in zip(codes, row.sides, strict=True) if f >= 0]
        names = {code.analysis.function_name[f] for code, f in sides}
        found |= dict.fromkeys(names, row.status)
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
