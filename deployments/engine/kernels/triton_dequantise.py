"""Read quantised weights, and dequantise them, with Triton. Imported only where it runs."""

import torch
import triton
import triton.language as tl

from deployments.engine.quantised.formats import NF4_CODE


def _lookup_assembly() -> list[str]:
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
        ".reg .b32 s, t, p, q, l0, l1, h0, h1;",
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
        "prmt.b32 $3, l1, h1, 0x6240;",
    ]
    return lines


def _scaling_assembly() -> list[str]:
    """Return PTX that multiplies these codes by the sum of two scales in bfloat16, each of which
    has two registers for the four bytes: from $5 and $7 on those of the upper halves, from $9 and
    $11 on those of the lower ones."""
    lines = [".reg .b32 m, z;", "mov.b32 z, 0x80008000;"]  # -0.0, which changes no sign
    for out, large, small in (("$0", 5, 7), ("$1", 6, 8), ("$2", 9, 11), ("$3", 10, 12)):
        lines += [
            f"fma.rn.bf16x2 m, {out}, ${small}, z;",
            f"fma.rn.bf16x2 {out}, {out}, ${large}, m;",
        ]
    return lines


def _block(lines: list[str]) -> tl.constexpr:
    return tl.constexpr("\n".join(["{", *lines, "}"]))


_LOOKUP: tl.constexpr = _block(_lookup_assembly())
_SCALED_LOOKUP: tl.constexpr = _block(_lookup_assembly() + _scaling_assembly())


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


@triton.jit
def scaled_entries(
    packed, scale, next_scale, table, dtype: tl.constexpr, IN_REGISTERS: tl.constexpr
):
    """Return the NF4 entries of the upper halves times `scale`, and of the lower ones times
    `next_scale`; each is (rows,) in float32.

    In registers a scale is the sum of two numbers in bfloat16, 16 bits of its 24: two instructions
    for two products, where float32 takes five. One product in a thousand rounds otherwise.
    """
    if IN_REGISTERS:
        large = scale.to(tl.bfloat16)
        small = (scale - large.to(tl.float32)).to(tl.bfloat16)
        next_large = next_scale.to(tl.bfloat16)
        next_small = (next_scale - next_large.to(tl.float32)).to(tl.bfloat16)
        upper, lower = tl.inline_asm_elementwise(
            _SCALED_LOOKUP,
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r",
            [
                packed,
                large[:, None],
                small[:, None],
                next_large[:, None],
                next_small[:, None],
            ],
            (tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        upper, lower = entries(packed, table, False)
        upper = (upper.to(tl.float32) * scale[:, None]).to(dtype)
        lower = (lower.to(tl.float32) * next_scale[:, None]).to(dtype)
    return upper, lower


@triton.jit
def converted(tile, KIND: tl.constexpr, dtype: tl.constexpr):
    if KIND == "fp8":  # to bfloat16 directly takes an instruction of a quarter of the rate
        return tile.to(tl.float16).to(tl.float32).to(dtype)
    return tile.to(dtype)


@triton.jit
def row_tile(values, n, first, width, WIDTH: tl.constexpr):
    """Return WIDTH elements, from `first` on, of the rows n of `width` each; zeros behind them."""
    j = first + tl.arange(0, WIDTH)
    at = n.to(tl.int64)[:, None] * width + j[None, :]
    return tl.load(values + at, mask=(j < width)[None, :], other=0.0)


@triton.jit
def _in_order(tile, BN: tl.constexpr, CHUNKS: tl.constexpr):
    """Put the inputs of rows (BN, CHUNKS * 64) into their natural order."""
    parts = tl.reshape(tile, (BN, CHUNKS, 4, 4, 2, 2))
    return tl.reshape(tl.permute(parts, (0, 1, 3, 4, 2, 5)), (BN, CHUNKS * 64))


@triton.jit
def dequantise_kernel(
    values, factors, table, out, N, K, width, factors_row, KIND: tl.constexpr, BN: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Write BN rows of CHUNKS times 64 stored elements. Program (chunks, rows)."""
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(0) * (CHUNKS * 64)
    j = tl.arange(0, CHUNKS * 64)
    kind = out.dtype.element_ty
    nm = (n < N)[:, None]
    tile = row_tile(values, tl.minimum(n, N - 1), first, width, CHUNKS * 64)
    if KIND == "nf4":
        upper, lower = entries(tile, table, False)
        k = first * 2 + j // 64 * 128 + j % 64
        own = factors + (k // 64)[None, :] * factors_row + n[:, None]
        absmax = tl.load(own, mask=nm & (k < K)[None, :], other=0.0)
        natural = _in_order(upper, BN, CHUNKS).to(tl.float32) * absmax
        at = out + n.to(tl.int64)[:, None] * K + k[None, :]
        tl.store(at, natural.to(kind), mask=nm & (k < K)[None, :])
        inside = nm & (k + 64 < K)[None, :]
        absmax = tl.load(own + factors_row, mask=inside, other=0.0)
        natural = _in_order(lower, BN, CHUNKS).to(tl.float32) * absmax
        tl.store(at + 64, natural.to(kind), mask=inside)
    else:
        k = first + j
        weights = converted(_in_order(tile, BN, CHUNKS), KIND, tl.float32)
        weights = weights * tl.load(factors + n, mask=n < N, other=0.0)[:, None]
        if KIND == "int8":
            weights = weights * 7.874015718698502e-3
        at = out + n.to(tl.int64)[:, None] * K + k[None, :]
        tl.store(at, weights.to(kind), mask=nm & (k < K)[None, :])
