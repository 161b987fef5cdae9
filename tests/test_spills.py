"""Stack frames: laid out differently by the compiler, or changed by hand."""

import re
import subprocess

from register_edits import EDITS, SAME

from binary.disassemble import analyse
from binary.frames import read_frame
from features.extract import extract_features
from matching.changes import compare

# Name -> the function before, after, and whether the same source can give both.
PAIRS = {
    "register_saved": (
        "push %rbx; mov %rdi, %rbx; call leaf; add %rbx, %rax; pop %rbx; ret",
        "push %r12; mov %rdi, %r12; call leaf; add %r12, %rax; pop %r12; ret",
        True,
    ),
    "value_on_the_stack": (
        "push %rbx; mov %rdi, %rbx; call leaf; imul $7, %rax; add %rbx, %rax; pop %rbx; ret",
        "sub $8, %rsp; mov %rdi, (%rsp); call leaf; imul $7, %rax; add (%rsp), %rax;"
        "add $8, %rsp; ret",
        True,
    ),
    "half_on_the_stack": (
        "push %rbx; movl (%rdi), %ebx; call leaf; imul $9, %eax; add %ebx, %eax; pop %rbx; ret",
        "sub $8, %rsp; movl (%rdi), %eax; movl %eax, 4(%rsp); call leaf; imul $9, %eax;"
        "movl 4(%rsp), %ecx; add %ecx, %eax; add $8, %rsp; ret",
        True,
    ),
    "other_slots": (
        "sub $24, %rsp; mov %rdi, (%rsp); mov %rsi, 8(%rsp); call leaf; sub (%rsp), %rax;"
        "imul 8(%rsp), %rax; add $24, %rsp; ret",
        "sub $24, %rsp; mov %rdi, 8(%rsp); mov %rsi, (%rsp); call leaf; sub 8(%rsp), %rax;"
        "imul (%rsp), %rax; add $24, %rsp; ret",
        True,
    ),
    "frame_pointer": (
        "push %rbx; sub $64, %rsp; mov %rdi, %rbx; lea 16(%rsp), %rdi; call leaf;"
        "add 24(%rsp), %rax; add %rbx, %rax; add $64, %rsp; pop %rbx; ret",
        "push %rbp; mov %rsp, %rbp; push %rbx; sub $64, %rsp; mov %rdi, %rbx; lea -56(%rbp), %rdi;"
        "call leaf; add -48(%rbp), %rax; add %rbx, %rax; mov -8(%rbp), %rbx; leave; ret",
        True,
    ),
    "larger_buffer": (
        "sub $40, %rsp; mov %rsp, %rdi; call leaf; movzbl 4(%rsp), %eax; add $40, %rsp; ret",
        "sub $56, %rsp; mov %rsp, %rdi; call leaf; movzbl 4(%rsp), %eax; add $56, %rsp; ret",
        False,
    ),
    "filled_from_its_end": (
        "sub $40, %rsp; lea 31(%rsp), %rdi; movb $0, 31(%rsp); call leaf; add $40, %rsp; ret",
        "sub $56, %rsp; lea 47(%rsp), %rdi; movb $0, 47(%rsp); call leaf; add $56, %rsp; ret",
        False,
    ),
    "array_without_address": (
        "sub $24, %rsp; mov %rdi, 8(%rsp); call leaf; add 8(%rsp), %rax; add $24, %rsp; ret",
        "sub $88, %rsp; mov %rdi, 8(%rsp); call leaf; add 8(%rsp), %rax; add $88, %rsp; ret",
        False,
    ),
    "wrong_slot": (
        "sub $24, %rsp; mov %rdi, (%rsp); mov %rsi, 8(%rsp); call leaf; sub (%rsp), %rax;"
        "imul 8(%rsp), %rax; add $24, %rsp; ret",
        "sub $24, %rsp; mov %rdi, (%rsp); mov %rsi, 8(%rsp); call leaf; sub 8(%rsp), %rax;"
        "imul (%rsp), %rax; add $24, %rsp; ret",
        False,
    ),
    "slot_overwritten": (
        "push %rbx; mov %rdi, %rbx; call leaf; imul $5, %rax; add %rbx, %rax; pop %rbx; ret",
        "sub $8, %rsp; mov %rdi, (%rsp); call leaf; mov %rax, (%rsp); imul $5, %rax;"
        "add (%rsp), %rax; add $8, %rsp; ret",
        False,
    ),
    "not_restored": (
        "push %rbx; mov %rdi, %rbx; call leaf; imul $3, %rax; add %rbx, %rax; pop %rbx; ret",
        "push %r12; mov %rdi, %rbx; call leaf; imul $3, %rax; add %rbx, %rax; pop %r12; ret",
        False,
    ),
    "argument_on_the_stack": (
        "sub $8, %rsp; push %rdi; push $5; call leaf; add $24, %rsp; ret",
        "sub $8, %rsp; push %rsi; push $5; call leaf; add $24, %rsp; ret",
        False,
    ),
    "half_is_less_than_all": (
        "push %rbx; mov %rdi, %rbx; call leaf; imul $11, %rax; add %rbx, %rax; pop %rbx; ret",
        "sub $8, %rsp; movl %edi, 4(%rsp); call leaf; imul $11, %rax; movl 4(%rsp), %edx;"
        "add %rdx, %rax; add $8, %rsp; ret",
        False,
    ),
    "argument_from_the_caller": (
        "sub $8, %rsp; call leaf; add 16(%rsp), %rax; add $8, %rsp; ret",
        "sub $8, %rsp; call leaf; add 24(%rsp), %rax; add $8, %rsp; ret",
        False,
    ),
}


def program(which):
    """Assembly of a program with all functions, before (0) or after (1)."""
    lines = [".globl begin", ".type begin, @function", "begin:"]
    lines += [f"call {name}" for name in PAIRS] + ["jmp begin"]
    for name, pair in (*PAIRS.items(), ("leaf", ["lea 3(%rdi,%rsi,2), %rax; ret"] * 2)):
        lines += [f".type {name}, @function", f"{name}:", *pair[which].split(";")]
    return "\n".join([*lines, '.section .note.GNU-stack,"",@progbits', ""])


def rows(files, model):
    """Name of the function -> status and kinds."""
    codes = [extract_features(analyse(file)) for file in files]
    found = {}
    for row in compare(*codes, model).functions:
        for code, f in zip(codes, row.sides, strict=True):
            if f >= 0:
                name = code.analysis.function_name[f]
                found[name] = row.status, row.kinds, row.sides
    return found


def test_frames_of_the_compiler_and_of_an_edit(tmp_path, model):
    for which, name in enumerate(("old", "new")):
        (tmp_path / f"{name}.s").write_text(program(which))
        command = ["gcc", "-nostdlib", "-static", "-Wl,-e,begin", tmp_path / f"{name}.s", "-o"]
        subprocess.run([*command, tmp_path / name], check=True)
    found = rows([tmp_path / "old", tmp_path / "new"], model)
    assert all(min(found[name][2]) >= 0 for name in PAIRS)
    same = {name for name in PAIRS if found[name][0] == "compiled differently"}
    assert same == {name for name, (*_, same) in PAIRS.items() if same}
    for name in ("larger_buffer", "filled_from_its_end", "array_without_address"):
        assert found[name][1] == ("stack layout changed",)


def test_no_edit_hides_behind_a_frame_pointer(tmp_path, model):
    for name, flag in (("old", "-fomit-frame-pointer"), ("new", "-fno-omit-frame-pointer")):
        (tmp_path / f"{name}.c").write_text(EDITS.replace("EDIT", name))
        command = ["gcc", "-O2", "-w", flag, "-nostdlib", "-static", "-Wl,-e,begin"]
        subprocess.run([*command, tmp_path / f"{name}.c", "-o", tmp_path / name], check=True)
    found = rows([tmp_path / "old", tmp_path / "new"], model)
    edited = set(re.findall(r"^A \w+ (\w+)\(", EDITS, re.M)) - SAME
    hidden = {name for name in edited if found[name][0] in ("identical", "compiled differently")}
    assert hidden == set()
    assert found["other"][0] == "compiled differently"


def test_offsets_in_a_frame_are_computed(tmp_path):
    text = """
    .globl begin
begin:
    push %rbx
    sub $40, %rsp
    mov %rdi, 8(%rsp)
    push $1
    call begin
    add $48, %rsp
    pop %rbx
    ret
"""
    (tmp_path / "a.s").write_text(text)
    subprocess.run(["gcc", "-c", tmp_path / "a.s", "-o", tmp_path / "a.o"], check=True)
    copy = ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a"]
    subprocess.run(copy, check=True)
    code = (tmp_path / "a").read_bytes()
    frame = read_frame({0: code}, {}, 0)
    used = [(use.what, use.offset) for _, use in sorted(frame.uses.items())]
    assert used == [
        *(("push", -8), ("moves", 0), ("slot", -40), ("push", -56), ("moves", 0), ("pop", -8))
    ]
    assert frame.lowest == -56
    assert frame.ends == {0: 0}
    assert read_frame({0: code[:-2]}, {}, 0).ends == {0: -8}  # without pop and ret
    assert read_frame({0: code[:-2] + b"\xc3"}, {}, 0) is None  # a return to a saved register
