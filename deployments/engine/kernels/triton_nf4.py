"""Look up the entries of NF4's codes. Imported only where Triton runs."""

import torch
import triton
import triton.language as tl

from deployments.engine.quantised.formats import NF4_CODE


def _lookup_assembly() -> str:
    """Return PTX that turns four bytes into eight NF4 codes in bfloat16, four and four.

    `prmt` picks bytes by four selectors of three bits: from entries 0-7 and from 8-15, then, by
    each code's upper bit, from the two results; the lower and the upper byte of the entries apart.
    """
    halves = torch.tensor(NF4_CODE).bfloat16().view(torch.int16).tolist()
    lower = [half & 0xFF for half in halves]
    upper = [half >> 8 & 0xFF for half in halves]

    def word(table: list[int], first: int) -> str:
        return f"0x{int.from_bytes(bytes(table[first : first + 4]), 'little'):08x}"

    lines = [
        "{ .reg .b32 s, t, p, q, l0, l1, h0, h1;",
        "and.b32 s, $4, 0x77777777;",
        "shr.u32 t, $4, 1;",
        "and.b32 t, t, 0x44444444;",
        "or.b32 t, t, 0x32103210;",
    ]
    for half in "01":
        for name, table in (("l", lower), ("h", upper)):
            lines += [
                f"prmt.b32 p, {word(table, 0)}, {word(table, 4)}, s;",
                f"prmt.b32 q, {word(table, 8)}, {word(table, 12)}, s;",
                f"prmt.b32 {name}{half}, p, q, t;",
            ]
        if half == "0":
            lines += ["shr.u32 s, s, 16;", "shr.u32 t, t, 16;"]
    lines += [
        "prmt.b32 $0, l0, h0, 0x7351;",  # the upper halves of the bytes
        "prmt.b32 $1, l1, h1, 0x7351;",
        "prmt.b32 $2, l0, h0, 0x6240;",
        "prmt.b32 $3, l1, h1, 0x6240; }",
    ]
    return "\n".join(lines)


_LOOKUP: tl.constexpr = tl.constexpr(_lookup_assembly())


@triton.jit
def entries(packed, table, IN_REGISTERS: tl.constexpr):
    """Return the NF4 entries of the upper and of the lower half of each byte."""
    if IN_REGISTERS:
        upper, lower = tl.inline_asm_elementwise(
            _LOOKUP, "=r,=r,=r,=r,r", [packed], (tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        index = packed.to(tl.int32)
        upper = tl.load(table + (index >> 4))
        lower = tl.load(table + (index & 15))
    return upper, lower
