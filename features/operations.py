"""Say what an instruction does in words that are the same for all processors.

x86's "movzx eax, byte ptr [rdi]", AArch64's "ldrb w0, [x0]" and RISC-V's "lbu a0, 0(a0)" are all
"load 1". So code for different processors can be compared. The words are coarse: they leave out
registers, the computation of flags, and the order of operands.
"""

import functools
import re

# The first pattern that matches is used. Vector instructions count as their scalar counterparts.
_TABLE = [
    ("call", r"(?:bnd |notrack )?l?call|jalr?|bal\w*|blr\w*"),
    ("call", r"blx?(?:eq|ne|[lg][te]|hi|hs|l[os]|c[cs]|mi|pl)?"),
    ("return", r"(?:bnd |notrack |rep )?retn?q?|ret\w*|jr|blr"),
    ("push", r"push\w*|stp|stm\w*|enter"),
    ("pop", r"pop\w*|leave|ldp|ldm\w*"),
    ("nothing", r"nop\w*|endbr\d+|bti|hint|data16|cfi\w*"),
    ("select", r"cmov\w+|set[a-z]+|csel|cset\w*|csinc|csinv|csneg|cinc|cinv|cneg|mov[nz]|isel"),
    ("select", r"slti?u?|seqz|snez|sltz|sgtz"),
    ("float convert", r"v?cvt\w+|[su]cvtf\w*|fcvt\w*|[a-z]*cvt\.\w+"),
    ("float compare", r"v?u?comis[sd]|fcmpe?|vcmp\w*|fcom\w*|c\.\w+\.[sd]|f(?:eq|lt|le)\.\w"),
    ("float square root", r"v?sqrt\w*|fsqrt\w*"),
    ("float add", r"v?add[sp][sd]|fadd\w*\.?\w*|vadd\.f\d+|add\.[sd]"),
    ("float subtract", r"v?sub[sp][sd]|fsub\w*\.?\w*|vsub\.f\d+|sub\.[sd]"),
    ("float multiply", r"v?mul[sp][sd]|fn?m(?:ul|add|sub|la|ls)\w*\.?\w*|mul\.[sd]"),
    ("float multiply", r"vn?m(?:ul|la)\.f\d+"),
    ("float divide", r"v?div[sp][sd]|fdiv\w*\.?\w*|vdiv\.f\d+|div\.[sd]"),
    ("divide", r"i?div\w*|[su]div|rem\w*"),
    ("multiply", r"i?mul\w*|m(?:add|sub|la|ls)|[su]m(?:ul|la|add|sub)[lh]*|mnegl?|pmul\w+|mult\w*"),
    ("shift", r"s[ah][lr]\w*|sh[lr]d|ls[lr]\w*|asr\w*|s[lr][lra]i?w?v?|ro[rl]\w*"),
    ("shift", r"p?s[rl][la][wdq]+"),
    ("bits", r"[su]bf\w+|bf[ci]\w*|[su]xt[bhw]|ext|ins|bext\w*|bt[src]?|bs[fr]|[lt]zcnt"),
    ("bits", r"cl[zs]|ctz|rbit|rev\w*|bswap|extr|dext\w*|dins\w*|[zs]ext\.\w+|popcnt"),
    ("compare", r"cmp\w*|test|cm[np]\w*|tst|teq|ccm[np]|p?cmp(?:eq|gt)\w+"),
    ("repeat", r"rep\w* .*|lods\w|stos\w|movs[bwq]|scas\w|cmps\w"),
    ("xor", r"v?p?xor\w*|eor\w*"),
    ("or", r"v?p?or\w*|orr\w*|orn"),
    ("and", r"v?p?andn?\w*|bics?"),
    ("not", r"not|mvn\w*|nor"),
    ("negate", r"neg\w*|rsb\w*"),
    ("subtract", r"subs?|sbb|sbcs?|dec|subw|d?subu?|psub\w+"),
    ("add", r"adds?|adc[sx]?|inc|addi?w?|d?addi?u|xadd|padd\w+"),
    ("address", r"lea|adrp?|lui|auipc|la|lla|addiupc"),
    ("trap", r"hlt|ud\d?|int3?|brk|udf|bkpt|break|ebreak|syscall|svc|ecall"),
]
TABLE = [(word, re.compile(f"(?:{pattern})$")) for word, pattern in _TABLE]
_CALL = re.compile("|".join(f"(?:{pattern})$" for word, pattern in _TABLE if word == "call"))
# Compilers may negate conditions, so each word also stands for the opposite.
_CONDITIONS = [
    ("equal", r"n?[ez]|eq|ne|eqz|nez|cbn?z"),
    ("bit", r"tbn?z|n?[sop]|mi|pl|v[sc]|ltz|gez|n?p[eo]"),
    ("less", r"n?l|n?ge|lt"),
    ("less or equal", r"n?le|n?g|gt|lez|gtz"),
    ("below", r"n?[bc]|n?ae|lo|hs|cc|cs|ltu|geu"),
    ("below or equal", r"n?be|n?a|hi|ls|leu|gtu"),
]
CONDITIONS = [(word, re.compile(f"(?:{pattern})$")) for word, pattern in _CONDITIONS]
_STORE = re.compile(r"v?stu?x?l?r?\w*|s[bhwd]|c\.s\w+|s[wd]c1|fs[wd]")
_BRANCH = re.compile(
    r"(?:bnd |notrack )?(?:j(?P<x86>[a-z]+)|b\.?(?P<risc>\w*)|(?P<zero>[ct]bn?z))$"
)
# Number of bytes read or written: from the operands on x86, from the mnemonic elsewhere.
_NARROW = [(1, re.compile("byte ptr")), (2, re.compile(r"\bword ptr"))]
_NARROW_NAMES = [
    (1, re.compile(r"(?:v?ld|v?st)\w*b$|[ls]bu?$")),
    (2, re.compile(r"(?:ld|st)\w*h$|[ls]hu?$")),
]


@functools.lru_cache(1 << 16)
def operations(mnemonic: str, operands: str) -> tuple[str, ...]:
    """Return what an instruction does, one or two words: ("load 4", "add").

    Parameters
    ----------
    mnemonic, operands : str
        As capstone writes them.
    """
    word = _of_mnemonic(mnemonic)
    if word.startswith("branch"):
        return (word,)
    if " ptr" in operands and word not in ("address", "nothing"):
        size = next((n for n, pattern in _NARROW if pattern.search(operands)), 4)
        written = " ptr" in operands.split(",")[0] and word not in ("compare", "push", "call")
        access = f"{'store' if written else 'load'} {size}"
        return (access,) if word == "move" else (access, word)
    if word == "move" and re.search(r"[\[(]", operands):
        size = next((n for n, pattern in _NARROW_NAMES if pattern.match(mnemonic)), 4)
        return (f"{'store' if _STORE.match(mnemonic) else 'load'} {size}",)
    return (word,)


@functools.lru_cache(1 << 12)  # there are few, and most of the time is spent here
def _of_mnemonic(mnemonic: str) -> str:
    found = None if _CALL.match(mnemonic) else _BRANCH.match(mnemonic)
    if found:
        condition = found["x86"] or found["risc"] or found["zero"] or ""
        if named := _first(CONDITIONS, condition):
            return f"branch if {named}"
    return _first(TABLE, mnemonic) or ("jump" if found else "move")


def _first(table: list[tuple[str, re.Pattern[str]]], text: str) -> str | None:
    return next((word for word, pattern in table if pattern.match(text)), None)
