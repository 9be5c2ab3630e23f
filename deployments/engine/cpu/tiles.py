"""Vector code of rows: as bytes, their largest, and products with keys and values in bfloat16.

All functions take addresses, and distances in bytes.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deployments.engine.cpu.layout import GROUP, HALF
from deployments.engine.cpu.vector_code import (
    F32,
    FLOATS,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    VectorCode,
)


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the 64 bytes at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        VectorCode(builder).prefetch(args[0])
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def group_to_bytes(typing: Any, x: Any, out: Any, total: Any, scale: Any, half_totals: Any) -> Any:
    """Write a GROUP of float32 as int8, their sum times -128 (int32), their scale (float32) and the
    sum of each half of them, as the bytes say it (two float32).

    It takes addresses. A NaN or an infinity becomes a scale of NaN or infinity.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _build_bytes(VectorCode(builder), *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def largest(typing: Any, address: Any, count: Any) -> Any:
    """Return the largest of the float32 at an address; count is a multiple of 16."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_largest(VectorCode(builder), *args)

    return types.float32(types.int64, types.int64), build


@functools.cache
def mixing_tile(rows: int, blocks: int, unroll: int, *, is_wide: bool = False) -> Any:
    """Return the function that adds x (rows, n) @ w (n, 16 * blocks) to y; w is in bfloat16, or in
    float32 (`is_wide`).

    n is a multiple of `unroll`. It takes w and the distance of its lines; n; x (float32), its rows
    and columns; y (float32), its rows.
    """

    return _rows_by_lines(
        lambda code, args: _build_mixing(code, rows, blocks, unroll, is_wide, args)
    )


@functools.cache
def dot_tile(lines: int) -> Any:
    """Return the function that writes x (count,) times each of `lines` lines of w to y (lines,).

    w is in bfloat16, count a multiple of 16. It takes w and the distance of its lines; count; x and
    y, both float32.
    """

    @intrinsic
    def multiply(typing: Any, w: Any, w_line: Any, count: Any, x: Any, y: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _build_dots(VectorCode(builder), lines, *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    return multiply


@functools.cache
def score_tile(rows: int, *, is_wide: bool) -> Any:
    """Return the function that writes x (rows, dim) @ w.T (n, dim).T to y (rows, n); w is in
    bfloat16, or in float32 (`is_wide`).

    dim is a multiple of 16. It takes w and the distance of its lines; n; x (float32), its rows and
    dim; y (float32), its rows. A product has one order of sums, whatever the number of rows.
    """

    return _rows_by_lines(lambda code, args: _build_scores(code, rows, is_wide, args))


def _rows_by_lines(write: Callable[[VectorCode, Any], None]) -> Any:
    """Return the function whose code `write` writes: of rows of x, and lines of w."""

    @intrinsic
    def multiply(
        typing: Any,
        w: Any,
        w_line: Any,
        count: Any,
        x: Any,
        x_row: Any,
        x_step: Any,
        y: Any,
        y_row: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            write(VectorCode(builder), args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), build

    return multiply


_REDUCE = f"llvm.vector.reduce.{{}}.v{LANES}i32"


def _build_bytes(
    code: VectorCode, x: Any, out: Any, total: Any, scale: Any, half_totals: Any
) -> None:
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
    own_scale = b.fmul(most, ir.Constant(F32, 1 / 127))
    halves = []
    for first in range(0, len(floats), HALF // LANES):
        sums = ir.Constant(INTS, [0] * LANES)
        for n in range(first, first + HALF // LANES):
            moved = b.fadd(b.fmul(floats[n], inverse), moving)
            whole = b.sub(b.bitcast(moved, INTS), base)
            sums = b.add(sums, whole)
            code.store(b.trunc(whole, ir.VectorType(I8, LANES)), out, LANES * n)
        halves.append(code.call(_REDUCE.format("add"), I32, sums))
        half = b.fmul(b.sitofp(halves[-1], F32), own_scale)
        code.store(half, half_totals, 4 * (len(halves) - 1))
    code.store(b.mul(b.add(*halves), ir.Constant(I32, -128)), total)
    code.store(own_scale, scale)


def _build_mixing(
    code: VectorCode, rows: int, blocks: int, unroll: int, is_wide: bool, args: Any
) -> None:
    w, w_line, count, x, x_row, x_column, y, y_row = args
    outputs = [code.at(y, r, y_row) for r in range(rows)]

    def add(number: Any, sums: list[Any]) -> list[Any]:
        new: list[Any] = []
        for u in range(unroll):
            this = code.b.add(number, ir.Constant(I64, u))
            line, column = code.at(w, this, w_line), code.at(x, this, x_column)
            size = LANES * (4 if is_wide else 2)
            weights = [_numbers(code, line, size * n, is_wide) for n in range(blocks)]
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


def _build_dots(
    code: VectorCode, lines: int, w: Any, w_line: Any, count: Any, x: Any, y: Any
) -> None:
    def add(number: Any, sums: list[Any]) -> list[Any]:
        values, own = code.load(code.at(x, number, 4), FLOATS), code.at(w, number, 2)
        weights = [code.bfloat16(code.at(own, n, w_line), 0) for n in range(lines)]
        return [code.add_product(total, w, values) for total, w in zip(sums, weights, strict=True)]

    sums = code.loop([ir.Constant(FLOATS, [0.0] * LANES)] * lines, LANES, count, add)
    for n, total in enumerate(sums):
        code.store(code.sum(total), y, 4 * n)


def _numbers(code: VectorCode, address: Any, offset: int, is_wide: bool) -> Any:
    return code.load(address, FLOATS, offset) if is_wide else code.bfloat16(address, offset)


def _build_scores(code: VectorCode, rows: int, is_wide: bool, args: Any) -> None:
    w, w_line, count, x, x_row, dim, y, y_row = args
    zero, size = ir.Constant(FLOATS, [0.0] * LANES), 4 if is_wide else 2

    def one(number: Any, carried: list[Any]) -> list[Any]:
        line = code.at(w, number, w_line)

        def add(first: Any, sums: list[Any]) -> list[Any]:
            weight = _numbers(code, code.at(line, first, size), 0, is_wide)
            own = code.at(x, first, 4)
            return [
                code.add_product(total, code.load(code.at(own, r, x_row), FLOATS), weight)
                for r, total in enumerate(sums)
            ]

        for r, total in enumerate(code.loop([zero] * rows, LANES, dim, add)):
            code.store(code.sum(total), code.at(code.at(y, number, 4), r, y_row))
        return carried

    code.loop([], 1, count, one)


def _build_largest(code: VectorCode, address: Any, count: Any) -> Any:
    def larger(number: Any, found: list[Any]) -> list[Any]:
        values = code.load(code.at(address, number, 4), FLOATS)
        return [code.b.select(code.b.fcmp_ordered(">", values, found[0]), values, found[0])]

    least = ir.Constant(FLOATS, [-3e38] * LANES)
    (found,) = code.loop([least], LANES, count, larger)
    return code.call(f"llvm.vector.reduce.fmax.v{LANES}f32", F32, found)
