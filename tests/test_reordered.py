"""Reordered instructions: two orders that pass for the same compute the same, by an interpreter."""

import random
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binary.accesses import accesses, disassembler
from matching.recompiled import Step, _read
from matching.reordered import in_order_of

WORD = (1 << 64) - 1
REGISTERS = ("rax", "rcx", "rdx", "rsi", "rdi", "rsp")


def load(state, address):
    return state["memory"].get(address & WORD, (address * 0x9E3779B97F4A7C15) & WORD)


def compare(state, a, b):
    state |= {"cf": a < b, "zf": a == b}


def add(state, target, value):
    total = state[target] + value
    state |= {target: total & WORD, "cf": total > WORD, "zf": not total & WORD}


def push(state, value):
    state["rsp"] -= 8
    state["memory"][state["rsp"]] = value


def pop(state, target):
    value = load(state, state["rsp"])
    state["rsp"] += 8
    state[target] = value


def increment(state, target):
    value = (state[target] + 1) & WORD
    state |= {target: value, "zf": not value}


def store(state, address, value):
    state["memory"][address & WORD] = value


def put(state, target, value):
    state[target] = value & WORD


# Instructions, and what they do to a state; memory is only used in aligned words.
MEANING = {
    "mov rax, rcx": lambda s: put(s, "rax", s["rcx"]),
    "mov ecx, eax": lambda s: put(s, "rcx", s["rax"] & 0xFFFFFFFF),
    "mov rsi, 7": lambda s: put(s, "rsi", 7),
    "lea rdx, [rax + rcx*2 + 5]": lambda s: put(s, "rdx", s["rax"] + 2 * s["rcx"] + 5),
    "add rax, rdx": lambda s: add(s, "rax", s["rdx"]),
    "adc rsi, rcx": lambda s: add(s, "rsi", s["rcx"] + s["cf"]),
    "inc rdx": lambda s: increment(s, "rdx"),
    "cmp rax, rcx": lambda s: compare(s, s["rax"], s["rcx"]),
    "cmp rdx, rsi": lambda s: compare(s, s["rdx"], s["rsi"]),
    "setb cl": lambda s: put(s, "rcx", s["rcx"] & ~0xFF | s["cf"]),
    "cmove rax, rsi": lambda s: put(s, "rax", s["rsi"] if s["zf"] else s["rax"]),
    "mov rax, qword ptr [rdi + 8]": lambda s: put(s, "rax", load(s, s["rdi"] + 8)),
    "mov rsi, qword ptr [rsp + 8]": lambda s: put(s, "rsi", load(s, s["rsp"] + 8)),
    "mov qword ptr [rdi + 8], rdx": lambda s: store(s, s["rdi"] + 8, s["rdx"]),
    "mov qword ptr [rsp + 8], rcx": lambda s: store(s, s["rsp"] + 8, s["rcx"]),
    "push rdx": lambda s: push(s, s["rdx"]),
    "pop rcx": lambda s: pop(s, "rcx"),
}


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """Instruction -> machine code."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "a.s").write_text(".intel_syntax noprefix\n" + "\n".join(MEANING) + "\n")
    subprocess.run(["gcc", "-c", folder / "a.s", "-o", folder / "a.o"], check=True)
    command = ["objcopy", "-O", "binary", "-j", ".text", folder / "a.o", folder / "a"]
    subprocess.run(command, check=True)
    found = disassembler("x86_64").disasm((folder / "a").read_bytes(), 0)
    made = {f"{one.mnemonic} {one.op_str}": bytes(one.bytes) for one in found}
    assert list(made) == list(MEANING)
    return made


def reordered(old, new, code, flags_live=True):
    """Return the lines of ``new`` in the order of ``old`` that is found, or None."""
    steps = [[Step(*_split(line), i) for i, line in enumerate(lines)] for lines in (old, new)]
    known = tuple(
        accesses("x86_64", b"".join(code[line] for line in lines)) for lines in (old, new)
    )
    same = [lambda a, b: a.shape == b.shape] * 2
    order = in_order_of(tuple(steps), known, tuple(same), flags_live)
    return None if order is None else [new[step.line] for step in order]


def _split(line):
    shape, registers, what = _read("x86_64", line, (), False)
    return shape, registers, (), what


def run(lines, seed, flags):
    """Return the state after some instructions, from random values."""
    values = random.Random(seed)
    state = {r: values.choice([0, 1, WORD, values.getrandbits(64)]) for r in REGISTERS}
    state |= {"rsp": 0x7000, "rdi": values.choice([0x6FF8, 0x7000, 0x100]), "memory": {}}
    state |= {"cf": values.random() < 0.5, "zf": values.random() < 0.5}
    for line in lines:
        MEANING[line](state)
    return state if flags else {k: v for k, v in state.items() if k not in ("cf", "zf")}


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(list(MEANING)), min_size=2, max_size=7), st.data(), st.booleans())
def test_what_passes_for_the_same_computes_the_same(code, old, data, flags_live):
    new = data.draw(st.permutations(old))
    order = reordered(old, new, code, flags_live)
    if order is not None:
        assert order == old
        for seed in range(8):
            assert run(old, seed, flags_live) == run(new, seed, flags_live)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(list(MEANING)), min_size=2, max_size=7), st.data())
def test_instructions_that_do_not_touch_each_other_may_change_places(code, old, data):
    at = data.draw(st.integers(0, len(old) - 2))
    one, other = (accesses("x86_64", code[line])[0] for line in old[at : at + 2])
    new = [*old[:at], old[at + 1], old[at], *old[at + 2 :]]
    touched = one.writes & (other.reads | other.writes) | other.writes & one.reads
    memory = (one.loads or one.stores) and (other.loads or other.stores)
    if not touched and not memory:
        assert reordered(old, new, code) == old


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["mov rsi, 7", "adc rsi, rcx"], ["adc rsi, rcx", "mov rsi, 7"]),
        (["cmp rax, rcx", "cmp rdx, rsi"], ["cmp rdx, rsi", "cmp rax, rcx"]),
        (["inc rdx", "cmp rax, rcx", "setb cl"], ["cmp rax, rcx", "inc rdx", "setb cl"]),
        (
            ["mov qword ptr [rdi + 8], rdx", "mov rsi, qword ptr [rsp + 8]"],
            ["mov rsi, qword ptr [rsp + 8]", "mov qword ptr [rdi + 8], rdx"],
        ),
        (["push rdx", "pop rcx"], ["pop rcx", "push rdx"]),
        (["mov rax, rcx"], ["mov rax, rcx", "mov rax, rcx"]),
    ],
)
def test_an_order_that_changes_results_is_refused(code, old, new):
    assert reordered(old, new, code) is None
