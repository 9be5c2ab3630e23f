"""Write LLVM's vector code: loops that carry vectors, loads and stores at addresses."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

LANES = 16
I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
BYTES = ir.VectorType(I8, 4 * LANES)


class VectorCode:
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
        number = b.phi(I64)
        number.add_incoming(ir.Constant(I64, 0), entry)
        carried = []
        for value in first:
            phi = b.phi(value.type)
            phi.add_incoming(value, entry)
            carried.append(phi)
        new = body(number, carried)
        following = b.add(number, ir.Constant(I64, step))
        number.add_incoming(following, b.block)
        for phi, value in zip(carried, new, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", following, end), loop, done)
        b.position_at_end(done)
        return new

    def at(self, address: Any, number: Any, stride: Any) -> Any:
        """Return address + number * stride, where both may be Python's integers."""
        as_value = [n if hasattr(n, "type") else ir.Constant(I64, n) for n in (number, stride)]
        return self.b.add(address, self.b.mul(*as_value))

    def load(self, address: Any, kind: Any, offset: int = 0) -> Any:
        pointer = self.b.inttoptr(self.at(address, 1, offset), kind.as_pointer())
        return self.b.load(pointer, align=1)

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        pointer = self.b.inttoptr(self.at(address, 1, offset), value.type.as_pointer())
        self.b.store(value, pointer, align=1)

    def splat(self, value: Any) -> Any:
        kind = ir.VectorType(value.type, LANES)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, value, ir.Constant(I32, 0))
        lanes = ir.Constant(INTS, [0] * LANES)
        return self.b.shuffle_vector(first, undefined, lanes)

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call a function of LLVM's."""
        module = self.b.module
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.b.call(module.globals.get(name) or ir.Function(module, kind, name), args)

    def prefetch(self, address: Any, *, is_read_once: bool = False) -> None:
        """Ask for the 64 bytes at an address; what `is_read_once` passes the caches by."""
        numbers = [ir.Constant(I32, n) for n in (0, 0 if is_read_once else 3, 1)]  # to read, data
        pointer = self.b.inttoptr(address, I8.as_pointer())
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, *numbers)

    def add_product(self, total: Any, x: Any, y: Any) -> Any:
        """Return total + x * y, rounded once where the processor can."""
        product = self.b.fmul(x, y, flags=["contract"])
        return self.b.fadd(total, product, flags=["contract"])

    def sum(self, vector: Any) -> Any:
        """Return the sum of a vector of floats."""
        while vector.type.count > 1:
            size = vector.type.count // 2
            lanes = [list(range(first, first + size)) for first in (0, size)]
            halves = [
                self.b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, size), each))
                for each in lanes
            ]
            vector = self.b.fadd(*halves)
        return self.b.extract_element(vector, ir.Constant(I32, 0))

    def bfloat16(self, address: Any, offset: int) -> Any:
        """Return 16 numbers in bfloat16 as float32: their bits are the upper half."""
        words = self.load(address, ir.VectorType(ir.IntType(16), LANES), offset)
        bits = self.b.shl(self.b.zext(words, INTS), ir.Constant(INTS, [16] * LANES))
        return self.b.bitcast(bits, FLOATS)
