"""Instructions that capstone can read and angr's lifter cannot.

These are AVX-512 and newer instructions of x86, and on AArch64 all since version 8.1: atomic ones
like casal, sdot, SVE, pointer authentication (retaa, blraa). At such an instruction angr ends the
block, and takes what follows for data or disassembles it from a wrong address on. What they compute
is not needed here. So each becomes a step to the next instruction, a return, a jump or a call.
Instructions that trap stay unknown, because no code follows them.
"""

import re
from typing import Any

from capstone import CS_GRP_CALL, CS_GRP_INT, CS_GRP_IRET, CS_GRP_JUMP, CS_GRP_PRIVILEGE, CS_GRP_RET

from binary.architectures import architecture_of
from binary.instructions import CS_OP_REG

NO_STEP = {CS_GRP_INT, CS_GRP_IRET, CS_GRP_PRIVILEGE}
LONGEST = 15  # bytes of an instruction
# Prefixes, and the first byte of a vector instruction or of an opcode of two bytes. The lifter
# knows the opcodes of one byte, so if it fails at one, this is data.
NEWER_X86 = re.compile(rb"[\x26\x2e\x36\x3e\x64-\x67\xf0\xf2\xf3\x40-\x4f]*[\x0f\x62\xc4\xc5]")
PROCESSORS = ("AMD64", "X86", "AARCH64", "S390X", "PPC64", "PPC32", "RISCV64")


def lift_the_rest() -> None:
    """Make angr go on after instructions that its lifter does not know."""
    import pyvex
    from angr.engines.vex.lifter import VEX_IRSB_MAX_SIZE
    from pyvex.errors import LiftingException

    class Step(pyvex.lifting.Lifter):
        """Reads one instruction; pyvex tries it where its other lifters have failed."""

        REQUIRE_DATA_PY = True

        def _lift(self) -> None:
            code = bytes(self.data)[:LONGEST]
            instruction = _unlifted(self.arch, code, self.addr)
            if instruction is None:
                raise LiftingException("not an instruction")
            word, groups = pyvex.const.vex_int_class(self.arch.bits), set(instruction.groups)
            after = word(self.addr + instruction.size)
            self.irsb.statements = [pyvex.stmt.IMark(self.addr, instruction.size, 0)]
            self.irsb.next = pyvex.expr.Const(after)
            # After a block that ends with "not decoded", the lifters try what follows.
            self.irsb.jumpkind = "Ijk_NoDecode"
            if _traps(self.arch, instruction):
                self.irsb.jumpkind = "Ijk_SigTRAP"  # nothing follows
            elif CS_GRP_RET in groups:
                self.irsb.jumpkind = "Ijk_Ret"
            elif groups & {CS_GRP_JUMP, CS_GRP_CALL}:
                name = instruction.reg_name(instruction.operands[0].reg)
                read = pyvex.expr.Get(self.arch.registers[name][0], word.type)
                target = self.irsb.tyenv.add(word.type)
                self.irsb.statements.append(pyvex.stmt.WrTmp(target, read))
                self.irsb.next = pyvex.expr.RdTmp.get_instance(target)
                self.irsb.jumpkind = "Ijk_Call" if CS_GRP_CALL in groups else "Ijk_Boring"

    class GoOn(pyvex.lifting.Postprocessor):
        """Leads to the next block where angr's largest block ends within an instruction."""

        def postprocess(self) -> None:
            block = self.irsb
            cut = block.size > VEX_IRSB_MAX_SIZE - LONGEST
            # A block that ends with a trap leads to the trap.
            ahead = [n.value for n in block.next.constants] == [block.addr + block.size]
            if cut and ahead and block.jumpkind == "Ijk_NoDecode":
                block.jumpkind = "Ijk_Boring"
                block.invalidate_direct_next()

    for processor in PROCESSORS:
        known = pyvex.lifting.lifters[processor]
        if all(lifter.__name__ != Step.__name__ for lifter in known):
            pyvex.lifting.register(Step, processor)
            pyvex.lifting.register(GoOn, processor)


def _unlifted(arch: Any, code: bytes, address: int) -> Any:
    """Return the first instruction if it is one that the lifter may lack, else None."""
    if arch.name in ("AMD64", "X86") and not NEWER_X86.match(code):
        return None
    instruction = next(arch.capstone.disasm(code, address, 1), None)
    if instruction is None or not instruction.id:
        return None
    if _traps(arch, instruction):
        return instruction
    if NO_STEP & set(instruction.groups):
        return None
    branches = {CS_GRP_JUMP, CS_GRP_CALL} & set(instruction.groups)
    if branches and not (instruction.operands and instruction.operands[0].type in CS_OP_REG):
        return None
    return instruction


def _traps(arch: Any, instruction: Any) -> bool:
    line = f"{instruction.mnemonic} {instruction.op_str}".strip()
    return architecture_of(arch).trap.match(line) is not None
