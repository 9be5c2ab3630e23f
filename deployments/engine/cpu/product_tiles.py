"""Products of rows of bytes by one tile of a packed weight, of eight or four bits.

With VNNI (`vpdpbusd`) four bytes of each of 16 columns take one instruction. With AVX2
(`vpmaddwd`) the even and the odd bytes are widened to 16 bits and take two instructions for each of
8 columns. Elsewhere the same arithmetic is written in plain vector operations, which LLVM fits to
any processor. All functions take addresses, and distances in bytes.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from deployments.engine.cpu.layout import GROUP, HALF, TILE, group_bytes
from deployments.engine.cpu.vector_code import (
    BYTES,
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    VectorCode,
)

_AHEAD = 4  # groups of a weight that are asked for before they are read


@functools.cache
def product_tile(
    rows: int, unroll: int, bits: int, instructions: str | None, *, is_kept: bool = False
) -> Any:
    """Return the function that multiplies `rows` rows by one tile of a packed weight of `bits`.

    `instructions` are of `byte_instructions`. A step reads a weight once, and all of them are more
    than the caches hold: they pass them by, so that keys, states and adapters stay there.
    `is_kept`: more rows come to this tile, which the first cache does not hold.

    It takes addresses: the tile, as products.py packs it; the number of its groups; the rows of
    int8, `row_bytes` apart; for each row and group the sum of its bytes times -128 (int32) and its
    scale, `scales_row` bytes apart; the sums of the halves, twice as far apart; the output's
    float32 (rows, TILE), `out_bytes` apart; 1 if the product is added to what is there.
    """

    @intrinsic
    def multiply(
        typing: Any,
        weight: Any,
        num_groups: Any,
        x: Any,
        row_bytes: Any,
        sums: Any,
        row_scales: Any,
        half_sums: Any,
        scales_row: Any,
        out: Any,
        out_bytes: Any,
        is_added: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tile = _FourBitTile if bits == 4 else _Tile
            tile(builder, args, rows, unroll, instructions, is_kept).build()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), build

    return multiply


class _Tile(VectorCode):
    """Write the code of one tile's product with a weight of eight bits."""

    bits = 8

    def __init__(
        self,
        builder: Any,
        args: Any,
        rows: int,
        unroll: int,
        instructions: str | None,
        is_kept: bool,
    ) -> None:
        super().__init__(builder)
        self.rows, self.unroll, self.instructions = rows, unroll, instructions
        self.is_kept = is_kept
        self.weight, self.num_groups, self.x, self.row_bytes = args[:4]
        self.sums, self.row_scales, self.half_sums, self.scales_row = args[4:8]
        self.out, self.out_bytes, self.is_added = args[8:]
        self.blocks = TILE // LANES

    def build(self) -> None:
        nothing = ir.Constant(FLOATS, [0.0] * LANES)
        totals = [nothing] * (self.rows * self.blocks)
        self._store(self.loop(totals, 1, self.num_groups, self._group))

    def _group(self, group: Any, totals: list[Any]) -> list[Any]:
        """Add the products of one group of inputs, which have one scale in each row."""
        weight = self.at(self.weight, group, group_bytes(self.bits))
        sums = [self._of_row(self.sums, group, r, I32) for r in range(self.rows)]
        quads = 0, GROUP // 4
        products = self._products(
            weight, group, quads, [s for s in sums for _ in range(self.blocks)]
        )
        (columns,) = self._of_columns(weight, TILE * GROUP, 1)
        return [
            self.add_product(
                totals[r * self.blocks + n],
                self.b.sitofp(products[r * self.blocks + n], FLOATS),
                self.b.fmul(self._of_row(self.row_scales, group, r, F32), column),
            )
            for r in range(self.rows)
            for n, column in enumerate(columns)
        ]

    def _of_row(self, address: Any, group: Any, row: int, kind: Any) -> Any:
        """Return the number of a row's group in all lanes."""
        own = self.at(self.at(address, group, 4), row, self.scales_row)
        return self.splat(self.load(own, kind))

    def _of_columns(self, weight: Any, offset: int, count: int) -> list[list[Any]]:
        """Return `count` numbers of each column, kept in bfloat16: one vector for each block."""
        ahead = _AHEAD * group_bytes(self.bits)
        for line in range(count):
            self._ask(self.at(weight, 1, ahead + offset + 2 * TILE * line))
        return [
            [
                self.bfloat16(weight, offset + 2 * TILE * line + 2 * LANES * n)
                for n in range(self.blocks)
            ]
            for line in range(count)
        ]

    def _products(
        self, weight: Any, group: Any, quads: tuple[int, int], first: list[Any]
    ) -> list[Any]:
        """Add the products of the quads [first, last) of a group to sums of int32."""
        size, (begin, end) = len(first), quads
        zeros = ir.Constant(INTS, [0] * LANES)
        x = self.at(self.x, group, GROUP)
        new = self.loop(
            first + [zeros] * (size * (self.unroll - 1)),
            self.unroll,
            ir.Constant(I64, end - begin),
            lambda quad, sums: self._quads(
                weight, x, self.b.add(quad, ir.Constant(I64, begin)), sums
            ),
        )
        for u in range(1, self.unroll):
            pairs = zip(new[:size], new[u * size :], strict=False)
            new[:size] = [self.b.add(*pair) for pair in pairs]
        return new[:size]

    def _quads(self, weight: Any, x: Any, quad: Any, sums: list[Any]) -> list[Any]:
        """Add the products of `unroll` times four inputs."""
        new: list[Any] = []
        for u in range(self.unroll):
            number = self.b.add(quad, ir.Constant(I64, u))
            weights = self._weights(self.at(weight, number, TILE * self.bits // 2))
            inputs = self.at(x, number, 4)
            for r in range(self.rows):
                four = self.splat(self.load(self.at(inputs, r, self.row_bytes), I32))
                spread = self.b.bitcast(four, BYTES)
                new += [self._dot(sums[len(new) + n], w, spread) for n, w in enumerate(weights)]
        return new

    def _ask(self, address: Any) -> None:
        """Ask for a line of the weight."""
        self.prefetch(address, is_read_once=not self.is_kept)

    def _weights(self, address: Any) -> list[Any]:
        """Return four inputs of all columns as bytes without a sign."""
        ahead = _AHEAD * group_bytes(self.bits)
        for n in range(self.blocks):
            self._ask(self.at(address, 1, ahead + 4 * LANES * n))
        return [self.load(address, BYTES, 4 * LANES * n) for n in range(self.blocks)]

    def _dot(self, total: Any, weight: Any, x: Any) -> Any:
        """Add the products of unsigned bytes and signed bytes, four to each lane of `total`."""
        b = self.b
        if self.instructions == "avx512_vnni":
            return self._vpdpbusd(LANES, total, weight, x)
        if self.instructions in ("avx_vnni", "avx2"):  # half a vector at a time
            dot = self._vpmaddwd if self.instructions == "avx2" else self._vpdpbusd
            low, high = (
                dot(LANES // 2, *(self._half(v, n) for v in (total, weight, x))) for n in range(2)
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

    def _vpmaddwd(self, lanes: int, total: Any, weight: Any, x: Any) -> Any:
        """Add the even bytes' products and the odd bytes': two of 16 bits to each lane. The largest
        is 2 * 255 * 128, so that no sum is cut off."""
        b, words = self.b, ir.VectorType(ir.IntType(16), 2 * lanes)
        eight, byte = (ir.Constant(words, [n] * words.count) for n in (8, 0xFF))
        weight, x = b.bitcast(weight, words), b.bitcast(x, words)
        even = b.and_(weight, byte), b.ashr(b.shl(x, eight), eight)
        odd = b.lshr(weight, eight), b.ashr(x, eight)
        for factors in (even, odd):
            total = b.add(total, self.call("llvm.x86.avx2.pmadd.wd", total.type, *factors))
        return total

    def _half(self, vector: Any, number: int) -> Any:
        count = vector.type.count // 2
        lanes = ir.VectorType(I32, count)
        wanted = ir.Constant(lanes, list(range(number * count, (number + 1) * count)))
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), wanted)

    def _store(self, totals: list[Any]) -> None:
        nothing = ir.Constant(FLOATS, [0.0] * LANES)
        is_added = self.b.icmp_signed("!=", self.is_added, ir.Constant(I64, 0))
        for r in range(self.rows):
            out = self.at(self.out, r, self.out_bytes)
            for n in range(self.blocks):
                before = self.b.select(is_added, self.load(out, FLOATS, 64 * n), nothing)
                self.store(self.b.fadd(totals[r * self.blocks + n], before), out, 64 * n)


class _FourBitTile(_Tile):
    """Write the code of one tile's product with a weight of four bits."""

    bits = 4

    def _group(self, group: Any, totals: list[Any]) -> list[Any]:
        weight = self.at(self.weight, group, group_bytes(4))
        zeros = [ir.Constant(INTS, [0] * LANES)] * (self.rows * self.blocks)
        parts: list[Any] = [ir.Constant(FLOATS, [0.0] * LANES)] * len(totals)
        columns = self._of_columns(weight, TILE * GROUP // 2, 4)
        steps, least = columns[:2], columns[2:]
        for half in range(2):
            quads = half * HALF // 4, (half + 1) * HALF // 4
            products = self._products(weight, group, quads, zeros)
            parts = [
                self.add_product(part, self.b.sitofp(product, FLOATS), steps[half][i % self.blocks])
                for i, (part, product) in enumerate(zip(parts, products, strict=True))
            ]
        result = []
        for r in range(self.rows):
            scale = self._of_row(self.row_scales, group, r, F32)
            own = self.at(self.at(self.half_sums, group, 8), self.scales_row, 2 * r)
            halves = [self.splat(self.load(own, F32, 4 * half)) for half in range(2)]
            for n in range(self.blocks):
                total = self.add_product(
                    totals[r * self.blocks + n], parts[r * self.blocks + n], scale
                )
                for half in range(2):
                    total = self.add_product(total, halves[half], least[half][n])
                result.append(total)
        return result

    def _weights(self, address: Any) -> list[Any]:
        self._ask(self.at(address, 1, _AHEAD * group_bytes(4)))
        both = self.b.bitcast(self.load(address, BYTES), INTS)
        low = ir.Constant(INTS, [0x0F0F0F0F] * LANES)
        four = ir.Constant(INTS, [4] * LANES)
        return [
            self.b.bitcast(self.b.and_(each, low), BYTES)
            for each in (both, self.b.lshr(both, four))
        ]
