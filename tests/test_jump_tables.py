"""binary/jump_tables.py: a jump stays in its function where angr reads its table too far."""

import subprocess

import numpy as np
from conftest import compile_c

from binary.disassemble import analyse

# print reads the index again after it was checked, as gcc 5 does when it saves registers only where
# needed. Behind its table lies that of main.
SOURCE = r"""
#include <stdio.h>
int format;
void print(int);
__asm__(".text\n"
        ".globl print\n.type print, @function\n"
        "print:\n.cfi_startproc\n"
        "cmpl $2, format(%rip)\nja 9f\n"
        "pushq %rbx\n.cfi_def_cfa_offset 16\nmovl format(%rip), %eax\n"
        "jmp *.Lprint(,%rax,8)\n"
        "1: movl $1, %edi\njmp 8f\n"
        "2: movl $2, %edi\njmp 8f\n"
        "3: movl $3, %edi\n"
        "8: call putchar\npopq %rbx\n.cfi_def_cfa_offset 8\n"
        "9: ret\n.cfi_endproc\n.size print, .-print\n"
        ".section .rodata\n.align 8\n"
        ".Lprint: .quad 1b, 2b, 3b\n"
        ".Lchoose: .quad 4f, 5f, 6f, 7f\n"
        ".text\n.globl choose\n.type choose, @function\n"
        "choose:\n.cfi_startproc\n"
        "cmpl $3, %edi\nja 7f\nmovl %edi, %edi\n"
        "jmp *.Lchoose(,%rdi,8)\n"
        "4: movl $10, %eax\nret\n5: movl $20, %eax\nret\n6: movl $30, %eax\nret\n"
        "7: xorl %eax, %eax\nret\n.cfi_endproc\n.size choose, .-choose\n");
int choose(int);
int main(int argc, char **argv) { format = choose(argc); print(argc); return 0; }
"""


def test_no_table_reaches_into_the_next_one(tmp_path):
    binary = compile_c(SOURCE, tmp_path / "tables", "-O1", "-fno-pie", "-no-pie")
    sizes = {}
    for line in subprocess.check_output(["nm", "-S", binary], text=True).splitlines():
        if len(fields := line.split()) == 4:
            sizes[fields[3]] = (int(fields[0], 16), int(fields[0], 16) + int(fields[1], 16))
    analysis = analyse(binary)
    degrees = {}
    for name in ("print", "choose"):
        start, end = sizes[name]
        own = (start <= analysis.address) & (analysis.address < end)
        jumps = [i for i in np.flatnonzero(own) if b"*8" in analysis.instructions[i]]
        (jump,) = jumps
        targets = analysis.edges[analysis.edges[:, 0] == jump, 1]
        assert own[targets].all()
        degrees[name] = len(targets)
    assert degrees == {"print": 3, "choose": 4}
