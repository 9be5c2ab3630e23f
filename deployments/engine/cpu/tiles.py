"""Products of small tiles in vectors: of bytes for the weights, of bfloat16 for attention.

With VNNI (`vpdpbusd`) four bytes of each of 16 columns take one instruction; elsewhere the same
arithmetic is written in plain vector operations, which LLVM fits to any processor. All functions
take addresses, and distances in bytes.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deployments.engine.cpu.layout import GROUP, TILE
from deployments.engine.cpu.vector_code import (
    BYTES,
    F32,
    FLOATS,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    VectorCode,
)

_AHEAD = 8192  # bytes of a weight that are asked for before they are read


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the 64 bytes at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        VectorCode(builder).prefetch(args[0])
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def group_to_bytes(typing: Any, x: Any, out: Any, total: Any, scale: Any) -> Any:
    """Write a GROUP of float32 as int8, their sum times -128 (int32) and their scale (float32).

    It takes addresses. A NaN or an infinity becomes a scale of NaN or infinity.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _build_bytes(VectorCode(builder), *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), build


@functools.cache
def product_tile(rows: int, unroll: int, instructions: str | None) -> Any:
    """Return the function that multiplies `rows` rows by one tile of a packed weight.

    `instructions` are of `byte_instructions`.

    It takes addresses: the tile (num_quads, TILE, 4) of bytes with 128 added; the rows of int8,
    `row_bytes` apart; for each row the sum of its bytes times -128 (int32) and its scale; the
    scales (TILE,) of the columns; the output's float32 (rows, TILE), `out_bytes` apart.
    """

    @intrinsic
    def multiply(
        typing: Any,
        weight: Any,
        num_quads: Any,
        x: Any,
        row_bytes: Any,
        sums: Any,
        row_scales: Any,
        scales_row: Any,
        column_scales: Any,
        out: Any,
        out_bytes: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _Tile(builder, args, rows, unroll, instructions).build()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), build

    return multiply


@intrinsic
def largest(typing: Any, address: Any, count: Any) -> Any:
    """Return the largest of the float32 at an address; count is a multiple of 16."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_largest(VectorCode(builder), *args)

    return types.float32(types.int64, types.int64), build


@functools.cache
def mixing_tile(rows: int, blocks: int, unroll: int) -> Any:
    """Return the function that adds x (rows, n) @ w (n, 16 * blocks) to y; w is in bfloat16.

    n is a multiple of `unroll`. It takes w and the distance of its lines; n; x (float32), its rows
    and columns; y (float32), its rows.
    """

    @intrinsic
    def multiply(
        typing: Any,
        w: Any,
        w_line: Any,
        count: Any,
        x: Any,
        x_row: Any,
        x_column: Any,
        y: Any,
        y_row: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _build_mixing(VectorCode(builder), rows, blocks, unroll, args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), build

    return multiply


class _Tile(VectorCode):
    """Write the code of one tile's product."""

    def __init__(
        self, builder: Any, args: Any, rows: int, unroll: int, instructions: str | None
    ) -> None:
        super().__init__(builder)
        self.rows, self.unroll, self.instructions = rows, unroll, instructions
        self.weight, self.num_quads, self.x, self.row_bytes = args[:4]
        self.sums, self.row_scales, self.scales_row = args[4:7]
        self.column_scales, self.out, self.out_bytes = args[7:]
        self.blocks = TILE // LANES

    def build(self) -> None:
        size = self.rows * self.blocks
        groups = self.b.sdiv(self.num_quads, ir.Constant(I64, GROUP // 4))
        nothing = ir.Constant(FLOATS, [0.0] * LANES)
        self._store(self.loop([nothing] * size, 1, groups, self._group))

    def _group(self, group: Any, totals: list[Any]) -> list[Any]:
        """Add the products of one group of inputs, which have one scale in each row."""
        zeros = ir.Constant(INTS, [0] * LANES)
        sums, scales = self.at(self.sums, group, 4), self.at(self.row_scales, group, 4)
        first = []
        for r in range(self.rows):
            start = self.splat(self.load(self.at(sums, r, self.scales_row), I32))
            first += [start] * self.blocks
        first += [zeros] * (len(totals) * (self.unroll - 1))
        begin = self.b.mul(group, ir.Constant(I64, GROUP // 4))
        quads = ir.Constant(I64, GROUP // 4)
        new = self.loop(
            first, self.unroll, quads, lambda q, sums: self._quads(self.b.add(begin, q), sums)
        )
        for u in range(1, self.unroll):
            pairs = zip(new[: len(totals)], new[u * len(totals) :], strict=False)
            new[: len(totals)] = [self.b.add(*pair) for pair in pairs]
        result = []
        for r in range(self.rows):
            scale = self.splat(self.load(self.at(scales, r, self.scales_row), F32))
            for n in range(r * self.blocks, (r + 1) * self.blocks):
                product = self.b.fmul(self.b.sitofp(new[n], FLOATS), scale, flags=["contract"])
                result.append(self.b.fadd(totals[n], product, flags=["contract"]))
        return result

    def _quads(self, quad: Any, sums: list[Any]) -> list[Any]:
        """Add the products of `unroll` times four inputs."""
        new: list[Any] = []
        for u in range(self.unroll):
            number = self.b.add(quad, ir.Constant(I64, u))
            tile = self.at(self.weight, number, 4 * TILE)
            weights = [self.load(tile, BYTES, 4 * LANES * n) for n in range(self.blocks)]
            for n in range(self.blocks):
                self.prefetch(self.at(tile, 1, _AHEAD + 4 * LANES * n))
            inputs = self.at(self.x, number, 4)
            for r in range(self.rows):
                four = self.splat(self.load(self.at(inputs, r, self.row_bytes), I32))
                spread = self.b.bitcast(four, BYTES)
                new += [self._dot(sums[len(new) + n], w, spread) for n, w in enumerate(weights)]
        return new

    def _dot(self, total: Any, weight: Any, x: Any) -> Any:
        """Add the products of unsigned bytes and signed bytes, four to each lane of `total`."""
        b = self.b
        if self.instructions == "avx512_vnni":
            return self._vpdpbusd(LANES, total, weight, x)
        if self.instructions == "avx_vnni":  # half a vector at a time
            low, high = (
                self._vpdpbusd(LANES // 2, *(self._half(v, n) for v in (total, weight, x)))
                for n in range(2)
            )
            lanes = ir.Constant(INTS, list(range(LANES)))
            return b.shuffle_vector(low, high, lanes)
        wide = ir.VectorType(I32, 4 * LANES)
        products = b.mul(b.zext(weight, wide), b.sext(x, wide))
        nothing = ir.Constant(wide, ir.Undefined)
        for k in range(4):
            lanes = ir.Constant(INTS, [4 * lane + k for lane in range(LANES)])
            total = b.add(total, b.shuffle_vector(products, nothing, lanes))
        return total

    def _vpdpbusd(self, lanes: int, *factors: Any) -> Any:
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        return self.call(name, ir.VectorType(I32, lanes), *factors)

    def _half(self, vector: Any, number: int) -> Any:
        count = vector.type.count // 2
        lanes = ir.VectorType(I32, count)
        wanted = ir.Constant(lanes, list(range(number * count, (number + 1) * count)))
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), wanted)

    def _store(self, totals: list[Any]) -> None:
        scales = [self.load(self.column_scales, FLOATS, 64 * n) for n in range(self.blocks)]
        for r in range(self.rows):
            out = self.at(self.out, r, self.out_bytes)
            for n, scale in enumerate(scales):
                self.store(self.b.fmul(totals[r * self.blocks + n], scale), out, 64 * n)


_REDUCE = f"llvm.vector.reduce.{{}}.v{LANES}i32"


def _build_bytes(code: VectorCode, x: Any, out: Any, total: Any, scale: Any) -> None:
    b = code.b
    floats = [code.load(x, FLOATS, 64 * n) for n in range(GROUP // LANES)]
    mask = ir.Constant(INTS, [0x7FFFFFFF] * LANES)
    largest = ir.Constant(INTS, [0] * LANES)
    for values in floats:  # the bits of |x| are in the order of |x|, infinity and NaN last
        bits = b.and_(b.bitcast(values, INTS), mask)
        largest = b.select(b.icmp_signed(">", bits, largest), bits, largest)
    most = b.bitcast(code.call(_REDUCE.format("smax"), I32, largest), F32)
    floor = ir.Constant(F32, 1e-30)
    divisor = b.select(b.fcmp_unordered("<", most, floor), floor, most)
    inverse = code.splat(b.fdiv(ir.Constant(F32, 127.0), divisor))
    # 1.5 * 2**23: the last bits of a float of this size are whole numbers.
    moving = ir.Constant(FLOATS, [12582912.0] * LANES)
    base = ir.Constant(INTS, [0x4B400000] * LANES)
    sums = ir.Constant(INTS, [0] * LANES)
    for n, values in enumerate(floats):
        moved = b.fadd(b.fmul(values, inverse), moving)
        whole = b.sub(b.bitcast(moved, INTS), base)
        sums = b.add(sums, whole)
        code.store(b.trunc(whole, ir.VectorType(I8, LANES)), out, LANES * n)
    code.store(b.mul(code.call(_REDUCE.format("add"), I32, sums), ir.Constant(I32, -128)), total)
    code.store(b.fmul(most, ir.Constant(F32, 1 / 127)), scale)


def _build_mixing(code: VectorCode, rows: int, blocks: int, unroll: int, args: Any) -> None:
    w, w_line, count, x, x_row, x_column, y, y_row = args
    outputs = [code.at(y, r, y_row) for r in range(rows)]

    def add(number: Any, sums: list[Any]) -> list[Any]:
        new: list[Any] = []
        for u in range(unroll):
            this = code.b.add(number, ir.Constant(I64, u))
            line, column = code.at(w, this, w_line), code.at(x, this, x_column)
            weights = [code.bfloat16(line, 2 * LANES * n) for n in range(blocks)]
            for r in range(rows):
                factor = code.splat(code.load(code.at(column, r, x_row), F32))
                for weight in weights:
                    product = code.b.fmul(factor, weight, flags=["contract"])
                    new.append(code.b.fadd(sums[len(new)], product, flags=["contract"]))
        return new

    first = [code.load(out, FLOATS, 64 * n) for out in outputs for n in range(blocks)]
    zeros = [ir.Constant(FLOATS, [0.0] * LANES)] * len(first)
    sums = code.loop(first + zeros * (unroll - 1), unroll, count, add)
    for at in range(len(first), len(sums)):
        sums[at % len(first)] = code.b.fadd(sums[at % len(first)], sums[at])
    for r, out in enumerate(outputs):
        for n in range(blocks):
            code.store(sums[r * blocks + n], out, 64 * n)


def _build_largest(code: VectorCode, address: Any, count: Any) -> Any:
    def larger(number: Any, found: list[Any]) -> list[Any]:
        values = code.load(code.at(address, number, 4), FLOATS)
        return [code.b.select(code.b.fcmp_ordered(">", values, found[0]), values, found[0])]

    least = ir.Constant(FLOATS, [-3e38] * LANES)
    (found,) = code.loop([least], LANES, count, larger)
    return code.call(f"llvm.vector.reduce.fmax.v{LANES}f32", F32, found)
