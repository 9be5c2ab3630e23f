"""Multiply a single row by a weight, without tensor cores, with Triton kernels.

Whatever no kernel writes is asked for before the kernels before it have ended: weights, their
factors, biases, a norm's weight, an adapter's A. Imported only where Triton runs.
"""

import triton
import triton.language as tl

from deployments.engine.kernels.triton_dequantise import entries, row_tile
from deployments.engine.kernels.triton_expansion import row_weights
from deployments.engine.kernels.triton_lora import activated
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next

# PTX that turns four signed bytes into float32: a byte, less its sign bit, is the last one of the
# mantissa of 2^23, from which 2^23 + 128 is subtracted. I2F has a fraction of the rate.
_FLOATS: tl.constexpr = tl.constexpr(
    "{ .reg .b32 s; xor.b32 s, $4, 0x80808080;"
    + "".join(
        f"prmt.b32 $0, s, 0x4B000000, 0x744{i}; add.f32 $0, $0, 0fCB000080;".replace("$0", f"${i}")
        for i in range(4)
    )
    + " }"
)


@triton.jit
def input_of(position):
    """Return the input that lies at a position of 64 (quantised/interleaved.py)."""
    return position // 4 % 4 * 16 + position // 2 % 2 * 8 + position // 16 * 2 + position % 2


@triton.jit
def _floats(tile, KIND: tl.constexpr, IN_REGISTERS: tl.constexpr):
    if KIND == "int8" and IN_REGISTERS:
        return tl.inline_asm_elementwise(
            _FLOATS, "=f,=f,=f,=f,r", [tile], tl.float32, is_pure=True, pack=4
        )
    if KIND == "fp8":  # to float32 directly takes an instruction of a quarter of the rate
        return tile.to(tl.float16).to(tl.float32)
    return tile.to(tl.float32)


@triton.jit
def _inputs(x, first, K, KIND: tl.constexpr, BK: tl.constexpr):
    """Return the inputs of BK stored elements in float32, zeros behind the last: from input `first`
    on, of nf4 those of their upper halves.

    Two of bfloat16 are read as one number of 32 bits.
    """
    if KIND == "plain":
        k = first + tl.arange(0, BK)
        return tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    j = tl.arange(0, BK // 2)
    step: tl.constexpr = 128 if KIND == "nf4" else 64
    k = first + j // 32 * step + input_of(j % 32 * 2)
    if x.dtype.element_ty == tl.bfloat16:
        both = tl.load(x.to(tl.pointer_type(tl.int32)) + k // 2, mask=k < K, other=0)
        left = (both << 16).to(tl.float32, bitcast=True)
        right = (both & -65536).to(tl.float32, bitcast=True)
    else:
        left = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        right = tl.load(x + k + 1, mask=k < K, other=0.0).to(tl.float32)
    return tl.reshape(tl.join(left, right), (BK,))


@triton.jit
def _sums(weights, xs, BN: tl.constexpr, BK: tl.constexpr, SIZE: tl.constexpr):
    """Return the sums (BN, BK / SIZE) of neighbours' products, which one thread holds."""
    products = weights.to(tl.float32) * xs[None, :]
    return tl.sum(tl.reshape(products, (BN, BK // SIZE, SIZE)), 2)


@triton.jit
def _scales(factors, n, block, stored, last, BN: tl.constexpr, BK: tl.constexpr):
    """Return NF4's scales (BN, BK / 16) of the blocks of upper halves, from `block` on."""
    blocks = block + tl.arange(0, BK // 16) // 4 * 2
    at = factors + blocks[None, :] * stored + n[:, None]
    return tl.load(at, mask=(blocks < last)[None, :], other=0.0)


@triton.jit
def _rows(to, N, GATED: tl.constexpr):
    """Return the rows of the weight that these outputs take: of gated ones, gate and value in turn,
    which lie N apart."""
    if GATED:
        return tl.minimum(to // 2, N - 1) + to % 2 * N
    return tl.minimum(to, N - 1)


@triton.jit
def _gated(y, BN: tl.constexpr, IS_SILU: tl.constexpr, dtype: tl.constexpr):
    """Return act(gate) * value (BN / 2,) of gates and values that take turns."""
    gate, value = tl.split(tl.reshape(y.to(dtype), (BN // 2, 2)))
    acted = activated(gate.to(tl.float32), IS_SILU).to(dtype).to(tl.float32)
    return acted * value.to(tl.float32)


@triton.jit
def _outputs(
    x, values, factors, table, bias, out, shrunk, slots, b0, b1, b2, start0, start1, start2, n0,
    n1, n2, norm, eps, N, K, width, P: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    BESIDE: tl.constexpr, KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr,
    HAS_NORM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TILES: tl.constexpr,
    AHEAD: tl.constexpr, IN_REGISTERS: tl.constexpr, OVERLAPS: tl.constexpr,
    GATED: tl.constexpr, IS_SILU: tl.constexpr,
):  # fmt: skip
    to = tl.program_id(0) * BN + tl.arange(0, BN)
    n = _rows(to, N, GATED)
    stored = N * 2 if GATED else N
    step: tl.constexpr = 2 * BK if KIND == "nf4" else BK  # inputs of a tile
    size: tl.constexpr = 8 if KIND == "plain" else 16
    last = width // 64 * 2  # blocks of nf4
    tiles = ()
    upper_scales = ()
    lower_scales = ()
    gains = ()
    lower_gains = ()
    for i in tl.static_range(AHEAD):
        tiles = tiles + (row_tile(values, n, i * BK, width, BK),)
        if KIND == "nf4":
            block = i * (BK // 32)
            upper_scales = upper_scales + (_scales(factors, n, block, stored, last, BN, BK),)
            lower_scales = lower_scales + (_scales(factors, n, block + 1, stored, last, BN, BK),)
    for i in tl.static_range(TILES):
        if HAS_NORM:
            gains = gains + (_inputs(norm, i * step, K, KIND, BK),)
            if KIND == "nf4":
                lower_gains = lower_gains + (_inputs(norm, i * step + 64, K, KIND, BK),)
    if KIND == "int8" or KIND == "fp8":
        factor = tl.load(factors + n)
    if HAS_BIAS:
        added = tl.load(bias + n).to(tl.float32)
    if P > 0:
        adapter, module = row_weights(
            n, tl.load(slots).to(tl.int64), b0, b1, b2, start0, start1, start2, n0, n1, n2, P, R, RP
        )
    if not BESIDE:
        after_earlier_kernels(OVERLAPS)
    if ADDS:
        old = tl.load(out + to, mask=to < N, other=0.0).to(tl.float32)
    squares = tl.zeros((BK,), tl.float32)
    acc = tl.zeros((BN, BK // size), tl.float32)
    for i in tl.static_range(TILES):
        xs = _inputs(x, i * step, K, KIND, BK)
        if KIND == "nf4":
            lower_xs = _inputs(x, i * step + 64, K, KIND, BK)
        if i + AHEAD < TILES:
            tiles = tiles + (row_tile(values, n, (i + AHEAD) * BK, width, BK),)
            if KIND == "nf4":
                block = (i + AHEAD) * (BK // 32)
                upper_scales = upper_scales + (_scales(factors, n, block, stored, last, BN, BK),)
                lower_scales = lower_scales + (
                    _scales(factors, n, block + 1, stored, last, BN, BK),
                )
        if HAS_NORM:
            squares += xs * xs
            xs *= gains[i]
        if KIND == "nf4":
            if HAS_NORM:
                squares += lower_xs * lower_xs
                lower_xs *= lower_gains[i]
            upper, lower = entries(tiles[i], table, IN_REGISTERS)
            acc += _sums(upper, xs, BN, BK, size) * upper_scales[i]
            acc += _sums(lower, lower_xs, BN, BK, size) * lower_scales[i]
        else:
            acc += _sums(_floats(tiles[i], KIND, IN_REGISTERS), xs, BN, BK, size)
    y = tl.sum(acc, 1)
    if KIND == "int8" or KIND == "fp8":
        y = y * factor
    if KIND == "int8":
        y = y * 7.874015718698502e-3
    if HAS_NORM:
        y = y * (1.0 / tl.sqrt(tl.sum(squares, 0) / K + eps))
    if HAS_BIAS:
        y += added
    if BESIDE:
        after_earlier_kernels(OVERLAPS)
    if P > 0:
        at = shrunk + (module * R)[:, None] + tl.arange(0, RP)[None, :]
        s = tl.load(at, mask=(tl.arange(0, RP) < R)[None, :], other=0.0)
        y += tl.sum(adapter.to(tl.float32) * s, 1)
    kind: tl.constexpr = x.dtype.element_ty
    if GATED:
        y = _gated(y, BN, IS_SILU, kind)
        to = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
    if ADDS:
        y += old
    tl.store(out + to, y.to(kind), mask=to < N)


@triton.jit
def _shrink(
    x, norm, eps, slots, a0, a1, a2, shrunk, program, K, R: tl.constexpr, RC: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, HAS_NORM: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Multiply x, or its RMS norm, by RC ranks of one module's A; `program` counts them.

    The inputs are BLOCKS times BLOCK, or fewer.
    """
    module = program // (R // RC)
    r = program % (R // RC) * RC + tl.arange(0, RC)
    slot = tl.load(slots).to(tl.int64)
    a = a0
    if module == 1:
        a = a1
    if module == 2:
        a = a2
    rows = a + slot * (R * K) + r * K
    blocks = ()
    gains = ()
    for i in tl.static_range(BLOCKS):
        k = i * BLOCK + tl.arange(0, BLOCK)
        mask = (k < K) & (slot != 0)
        blocks = blocks + (tl.load(rows[:, None] + k[None, :], mask=mask[None, :], other=0.0),)
        if HAS_NORM:
            gains = gains + (tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32),)
    after_earlier_kernels(OVERLAPS)
    acc = tl.zeros((RC,), tl.float32)
    squares = 0.0
    for i in tl.static_range(BLOCKS):
        k = i * BLOCK + tl.arange(0, BLOCK)
        xs = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += tl.sum(xs * xs, 0)
            xs *= gains[i]
        acc += tl.sum(blocks[i].to(tl.float32) * xs[None, :], 1)
    if HAS_NORM:
        acc = acc * (1.0 / tl.sqrt(squares / K + eps))
    tl.store(shrunk + module * R + r, acc)


@triton.jit
def row_kernel(
    x, values, factors, table, bias, out, shrunk, slots, active, b0, b1, b2, start0, start1,
    start2, n0, n1, n2, norm, eps, a0, a1, a2, N, K, width, columns, P: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, BESIDE: tl.constexpr, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, HAS_NORM: tl.constexpr, RANK: tl.constexpr,
    RC: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, TILES: tl.constexpr, AHEAD: tl.constexpr,
    IN_REGISTERS: tl.constexpr, OVERLAPS: tl.constexpr, GATED: tl.constexpr, IS_SILU: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of a single row. Program (outputs, and behind them ranks of adapters).

    TILES times BK elements of `values` hold a row of it; the first AHEAD tiles are asked for before
    earlier kernels end. GATED: each second of the BN outputs is a value, and the one before it its
    gate; N is the number of gated ones. HAS_NORM: the inputs are the RMS norm of x. RANK: of the
    adapters whose A multiplies them too, RC ranks in each program from `columns` on, which write
    `shrunk`; 0: of none. P: modules whose adapters are added, from `shrunk`. BESIDE: as of
    product_kernel.
    """
    launch_next(OVERLAPS)
    program = tl.program_id(0)
    if RANK > 0 and program >= columns:
        _shrink(
            x, norm, eps, slots, a0, a1, a2, shrunk, program - columns, K, RANK, RC, BLOCK, BLOCKS,
            HAS_NORM, OVERLAPS,
        )  # fmt: skip
    else:
        _outputs(
            x, values, factors, table, bias, out, shrunk, slots, b0, b1, b2, start0, start1, start2,
            n0, n1, n2, norm, eps, N, K, width, P, R, RP, BESIDE, KIND, HAS_BIAS, ADDS, HAS_NORM,
            BN, BK, TILES, AHEAD, IN_REGISTERS, OVERLAPS, GATED, IS_SILU,
        )  # fmt: skip
