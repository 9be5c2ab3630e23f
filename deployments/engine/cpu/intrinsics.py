"""What Numba lacks for the CPU kernels: arrays at an address, atomics, arithmetic of 32 bits."""

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def byte_instructions() -> str | None:
    """Return the name of the instructions that multiply bytes on the processor that Numba compiles
    for: those of VNNI, or AVX2's, which multiply pairs of 16 bits; None if it has none of them.
    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another processor."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    has = set(features.split(","))
    if {"+avx512vnni", "+avx512bw", "+avx512dq"} <= has:
        return "avx512_vnni"
    if not {"+avx2", "+fma"} <= has:
        return None
    return "avx_vnni" if "+avxvnni" in has else "avx2"


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
def from_bfloat16(typing: Any, bits: Any) -> Any:
    """Return the float32 of a bfloat16's bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        upper = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(upper, _F32)

    return types.float32(types.int16), build
