"""What Numba lacks for the CPU kernels: arrays at an address, atomics, and products of bytes.

The products are LLVM's vectors. With VNNI (`vpdpbusd`) four bytes of each of 16 columns take one
instruction; elsewhere the same arithmetic is written in plain vector operations, which LLVM fits to
any processor.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

TILE = 32  # columns of one tile of a packed weight
GROUP = 64  # inputs of a row that have one scale
_AHEAD = 8192  # bytes of a weight that are asked for before they are read
_LANES = 16
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, _LANES), ir.VectorType(_F32, _LANES)
_BYTES = ir.VectorType(_I8, 4 * _LANES)


def byte_instructions() -> str | None:
    """Return the name of the instructions that multiply bytes on the processor that Numba compiles
    for; None if it has none. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another processor."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    has = set(features.split(","))
    if {"+avx512vnni", "+avx512bw", "+avx512dq"} <= has:
        return "avx512_vnni"
    return "avx_vnni" if {"+avxvnni", "+avx2", "+fma"} <= has else None


@intrinsic
def array_at(typing: Any, address: Any) -> Any:
    """Return the pointer that `numba.carray` takes for an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


@intrinsic
def atomic_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address and return what was there before."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def atomic_load(typing: Any, address: Any) -> Any:
    """Return the int64 at an address, as other threads wrote it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), build


@intrinsic
def yield_core(typing: Any) -> Any:
    """Let another thread of the system have this one's core, if one waits for it."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        module = builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(_I32, []), name)
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the 64 bytes at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), build


# Numba widens sums of int32 to int64, which halves a vector. These stay in 32 bits.


@intrinsic
def nearest(typing: Any, x: Any) -> Any:
    """Return x, of at most 2**22, rounded to a whole number (half to even)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # 1.5 * 2**23: the last bits of a float of this size are whole numbers.
        moved = builder.fadd(args[0], ir.Constant(_F32, 12582912.0))
        return builder.sub(builder.bitcast(moved, _I32), ir.Constant(_I32, 0x4B400000))

    return types.int32(types.float32), build


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """Return two to the power of -126 to 127."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.add(args[0], ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.int32), build


@intrinsic
def to_bfloat16(typing: Any, x: Any) -> Any:
    """Return the bits of x rounded to bfloat16, half to even; a NaN stays one."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        sixteen, half = ir.Constant(_I32, 16), ir.Constant(_I32, 0x7FFF)
        odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(_I32, 1))
        rounded = builder.lshr(builder.add(builder.add(bits, half), odd), sixteen)
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(
            builder.select(is_nan, ir.Constant(_I32, 0x7FC0), rounded), ir.IntType(16)
        )

    return types.int16(types.float32), build


@intrinsic
def group_to_bytes(typing: Any, x: Any, out: Any, total: Any, scale: Any) -> Any:
    """Write a GROUP of float32 as int8, their sum times -128 (int32) and their scale (float32).

    It takes addresses. A NaN or an infinity becomes a scale of NaN or infinity.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _build_bytes(_Code(builder), *args)
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


class _Code:
    """Write vector code with addresses."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def loop(
        self, first: Sequence[Any], step: int, end: Any, body: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """Carry vectors through `body` for 0, step, ... below `end`, which is at least 1."""
        b, entry = self.b, self.b.block
        loop, done = b.append_basic_block("loop"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        number = b.phi(_I64)
        number.add_incoming(ir.Constant(_I64, 0), entry)
        carried = []
        for value in first:
            phi = b.phi(value.type)
            phi.add_incoming(value, entry)
            carried.append(phi)
        new = body(number, carried)
        following = b.add(number, ir.Constant(_I64, step))
        number.add_incoming(following, b.block)
        for phi, value in zip(carried, new, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", following, end), loop, done)
        b.position_at_end(done)
        return new

    def at(self, address: Any, number: Any, stride: Any) -> Any:
        """Return address + number * stride, where both may be Python's integers."""
        as_value = [n if hasattr(n, "type") else ir.Constant(_I64, n) for n in (number, stride)]
        return self.b.add(address, self.b.mul(*as_value))

    def load(self, address: Any, kind: Any, offset: int = 0) -> Any:
        pointer = self.b.inttoptr(self.at(address, 1, offset), kind.as_pointer())
        return self.b.load(pointer, align=1)

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        pointer = self.b.inttoptr(self.at(address, 1, offset), value.type.as_pointer())
        self.b.store(value, pointer, align=1)

    def splat(self, value: Any) -> Any:
        kind = ir.VectorType(value.type, _LANES)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, value, ir.Constant(_I32, 0))
        lanes = ir.Constant(_INTS, [0] * _LANES)
        return self.b.shuffle_vector(first, undefined, lanes)


class _Tile(_Code):
    """Write the code of one tile's product."""

    def __init__(
        self, builder: Any, args: Any, rows: int, unroll: int, instructions: str | None
    ) -> None:
        super().__init__(builder)
        self.rows, self.unroll, self.instructions = rows, unroll, instructions
        self.weight, self.num_quads, self.x, self.row_bytes = args[:4]
        self.sums, self.row_scales, self.scales_row = args[4:7]
        self.column_scales, self.out, self.out_bytes = args[7:]
        self.blocks = TILE // _LANES

    def build(self) -> None:
        size = self.rows * self.blocks
        groups = self.b.sdiv(self.num_quads, ir.Constant(_I64, GROUP // 4))
        nothing = ir.Constant(_FLOATS, [0.0] * _LANES)
        self._store(self.loop([nothing] * size, 1, groups, self._group))

    def _group(self, group: Any, totals: list[Any]) -> list[Any]:
        """Add the products of one group of inputs, which have one scale in each row."""
        zeros = ir.Constant(_INTS, [0] * _LANES)
        sums, scales = self.at(self.sums, group, 4), self.at(self.row_scales, group, 4)
        first = []
        for r in range(self.rows):
            start = self.splat(self.load(self.at(sums, r, self.scales_row), _I32))
            first += [start] * self.blocks
        first += [zeros] * (len(totals) * (self.unroll - 1))
        begin = self.b.mul(group, ir.Constant(_I64, GROUP // 4))
        quads = ir.Constant(_I64, GROUP // 4)
        new = self.loop(
            first, self.unroll, quads, lambda q, sums: self._quads(self.b.add(begin, q), sums)
        )
        for u in range(1, self.unroll):
            pairs = zip(new[: len(totals)], new[u * len(totals) :], strict=False)
            new[: len(totals)] = [self.b.add(*pair) for pair in pairs]
        result = []
        for r in range(self.rows):
            scale = self.splat(self.load(self.at(scales, r, self.scales_row), _F32))
            for n in range(r * self.blocks, (r + 1) * self.blocks):
                product = self.b.fmul(self.b.sitofp(new[n], _FLOATS), scale, flags=["contract"])
                result.append(self.b.fadd(totals[n], product, flags=["contract"]))
        return result

    def _quads(self, quad: Any, sums: list[Any]) -> list[Any]:
        """Add the products of `unroll` times four inputs."""
        new: list[Any] = []
        for u in range(self.unroll):
            number = self.b.add(quad, ir.Constant(_I64, u))
            tile = self.at(self.weight, number, 4 * TILE)
            weights = [self.load(tile, _BYTES, 4 * _LANES * n) for n in range(self.blocks)]
            for n in range(self.blocks):
                _prefetch(self.b, self.at(tile, 1, _AHEAD + 4 * _LANES * n))
            inputs = self.at(self.x, number, 4)
            for r in range(self.rows):
                four = self.splat(self.load(self.at(inputs, r, self.row_bytes), _I32))
                spread = self.b.bitcast(four, _BYTES)
                new += [self._dot(sums[len(new) + n], w, spread) for n, w in enumerate(weights)]
        return new

    def _dot(self, total: Any, weight: Any, x: Any) -> Any:
        """Add the products of unsigned bytes and signed bytes, four to each lane of `total`."""
        b = self.b
        if self.instructions == "avx512_vnni":
            return self._vpdpbusd(_LANES, total, weight, x)
        if self.instructions == "avx_vnni":  # half a vector at a time
            low, high = (
                self._vpdpbusd(_LANES // 2, *(self._half(v, n) for v in (total, weight, x)))
                for n in range(2)
            )
            lanes = ir.Constant(_INTS, list(range(_LANES)))
            return b.shuffle_vector(low, high, lanes)
        wide = ir.VectorType(_I32, 4 * _LANES)
        products = b.mul(b.zext(weight, wide), b.sext(x, wide))
        nothing = ir.Constant(wide, ir.Undefined)
        for k in range(4):
            lanes = ir.Constant(_INTS, [4 * lane + k for lane in range(_LANES)])
            total = b.add(total, b.shuffle_vector(products, nothing, lanes))
        return total

    def _vpdpbusd(self, lanes: int, total: Any, weight: Any, x: Any) -> Any:
        ints, module = ir.VectorType(_I32, lanes), self.b.module
        factors = ir.VectorType(_I8, 4 * lanes)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        kind = ir.FunctionType(ints, [ints, factors, factors])
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.b.call(function, [total, weight, x])

    def _half(self, vector: Any, number: int) -> Any:
        count = vector.type.count // 2
        lanes = ir.VectorType(_I32, count)
        wanted = ir.Constant(lanes, list(range(number * count, (number + 1) * count)))
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), wanted)

    def _store(self, totals: list[Any]) -> None:
        scales = [self.load(self.column_scales, _FLOATS, 64 * n) for n in range(self.blocks)]
        for r in range(self.rows):
            out = self.at(self.out, r, self.out_bytes)
            for n, scale in enumerate(scales):
                self.store(self.b.fmul(totals[r * self.blocks + n], scale), out, 64 * n)


def _build_bytes(code: _Code, x: Any, out: Any, total: Any, scale: Any) -> None:
    b = code.b
    floats = [code.load(x, _FLOATS, 64 * n) for n in range(GROUP // _LANES)]
    mask = ir.Constant(_INTS, [0x7FFFFFFF] * _LANES)
    largest = ir.Constant(_INTS, [0] * _LANES)
    for values in floats:  # the bits of |x| are in the order of |x|, infinity and NaN last
        bits = b.and_(b.bitcast(values, _INTS), mask)
        largest = b.select(b.icmp_signed(">", bits, largest), bits, largest)
    most = b.bitcast(_reduced(b, "smax", largest), _F32)
    floor = ir.Constant(_F32, 1e-30)
    divisor = b.select(b.fcmp_unordered("<", most, floor), floor, most)
    inverse = code.splat(b.fdiv(ir.Constant(_F32, 127.0), divisor))
    # 1.5 * 2**23: the last bits of a float of this size are whole numbers.
    moving = ir.Constant(_FLOATS, [12582912.0] * _LANES)
    base = ir.Constant(_INTS, [0x4B400000] * _LANES)
    sums = ir.Constant(_INTS, [0] * _LANES)
    for n, values in enumerate(floats):
        moved = b.fadd(b.fmul(values, inverse), moving)
        whole = b.sub(b.bitcast(moved, _INTS), base)
        sums = b.add(sums, whole)
        code.store(b.trunc(whole, ir.VectorType(_I8, _LANES)), out, _LANES * n)
    code.store(b.mul(_reduced(b, "add", sums), ir.Constant(_I32, -128)), total)
    code.store(b.fmul(most, ir.Constant(_F32, 1 / 127)), scale)


def _prefetch(builder: Any, address: Any) -> None:
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    numbers = [ir.Constant(_I32, n) for n in (0, 3, 1)]  # to read, to keep, data
    builder.call(function, [builder.inttoptr(address, pointer), *numbers])


def _reduced(builder: Any, operation: str, values: Any) -> Any:
    name = f"llvm.vector.reduce.{operation}.v{_LANES}i32"
    module = builder.module
    function = module.globals.get(name) or ir.Function(
        module, ir.FunctionType(_I32, [_INTS]), name
    )
    return builder.call(function, [values])


def _build_mixing(code: _Code, rows: int, blocks: int, unroll: int, args: Any) -> None:
    w, w_line, count, x, x_row, x_column, y, y_row = args
    outputs = [code.at(y, r, y_row) for r in range(rows)]

    def add(number: Any, sums: list[Any]) -> list[Any]:
        new: list[Any] = []
        for u in range(unroll):
            this = code.b.add(number, ir.Constant(_I64, u))
            line, column = code.at(w, this, w_line), code.at(x, this, x_column)
            weights = [_bfloat16(code, line, 2 * _LANES * n) for n in range(blocks)]
            for r in range(rows):
                factor = code.splat(code.load(code.at(column, r, x_row), _F32))
                for weight in weights:
                    product = code.b.fmul(factor, weight, flags=["contract"])
                    new.append(code.b.fadd(sums[len(new)], product, flags=["contract"]))
        return new

    first = [code.load(out, _FLOATS, 64 * n) for out in outputs for n in range(blocks)]
    zeros = [ir.Constant(_FLOATS, [0.0] * _LANES)] * len(first)
    sums = code.loop(first + zeros * (unroll - 1), unroll, count, add)
    for at in range(len(first), len(sums)):
        sums[at % len(first)] = code.b.fadd(sums[at % len(first)], sums[at])
    for r, out in enumerate(outputs):
        for n in range(blocks):
            code.store(sums[r * blocks + n], out, 64 * n)


def _bfloat16(code: _Code, address: Any, offset: int) -> Any:
    """Return 16 numbers in bfloat16 as float32: their bits are the upper half."""
    words = code.load(address, ir.VectorType(ir.IntType(16), _LANES), offset)
    bits = code.b.shl(code.b.zext(words, _INTS), ir.Constant(_INTS, [16] * _LANES))
    return code.b.bitcast(bits, _FLOATS)


def _build_largest(code: _Code, address: Any, count: Any) -> Any:
    def larger(number: Any, found: list[Any]) -> list[Any]:
        values = code.load(code.at(address, number, 4), _FLOATS)
        return [code.b.select(code.b.fcmp_ordered(">", values, found[0]), values, found[0])]

    least = ir.Constant(_FLOATS, [-3e38] * _LANES)
    (found,) = code.loop([least], _LANES, count, larger)
    module, name = code.b.module, f"llvm.vector.reduce.fmax.v{_LANES}f32"
    kind = ir.FunctionType(_F32, [_FLOATS])
    return code.b.call(module.globals.get(name) or ir.Function(module, kind, name), [found])


@intrinsic
def largest(typing: Any, address: Any, count: Any) -> Any:
    """Return the largest of the float32 at an address; count is a multiple of 16."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_largest(_Code(builder), *args)

    return types.float32(types.int64, types.int64), build


@functools.cache
def mixing_tile(rows: int, blocks: int, unroll: int) -> Any:
    """Return the function that adds x (rows, n) @ w (n, 16 * blocks) to y; w is in bfloat16.

    n is a multiple of `unroll`. It takes addresses and distances in bytes: w, its line; n; x (float32), its row, its column;
    y (float32), its row.
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
            _build_mixing(_Code(builder), rows, blocks, unroll, args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), build

    return multiply
