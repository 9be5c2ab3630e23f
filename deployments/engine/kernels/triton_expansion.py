"""Add rows' adapters to a tile of the base product, before it is stored. Imported only where Triton
runs."""

import triton
import triton.language as tl


@triton.jit
def of_module(module: tl.constexpr, first, second, third):
    """Return the argument of one of three modules."""
    return first if module == 0 else (second if module == 1 else third)


@triton.jit
def some_weights(
    n, unit, num, active, b0, b1, b2, start0, start1, start2, n0, n1, n2, P: tl.constexpr,
    R: tl.constexpr, RC: tl.constexpr, G: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return B (BN, G * RC) of the outputs n, for G units from `unit` on, and the module of each
    output (BN,), -1 for none.

    A unit is RC ranks of one of the `num` adapters in use, which has one or (with G 1) more.
    """
    C: tl.constexpr = (R + RC - 1) // RC
    k = tl.arange(0, G * RC)
    units = unit + k // RC
    r = units % C * RC + k % RC
    km = (units < num * C) & (r < R)
    slot = tl.load(active + 1 + units // C, mask=km, other=0).to(tl.int64)
    weights = tl.zeros((BN, G * RC), b0.dtype.element_ty)
    own = tl.full((BN,), -1, tl.int32)
    for module in tl.static_range(0, P):
        columns = of_module(module, n0, n1, n2)
        column = n - of_module(module, start0, start1, start2)
        inside = (column >= 0) & (column < columns)
        own = tl.where(inside, module, own)
        if tl.max(inside.to(tl.int32), 0) > 0:
            stack = of_module(module, b0, b1, b2)
            at = stack + (slot * R + r)[None, :] * columns + column[:, None]
            weights += tl.load(at, mask=km[None, :] & inside[:, None], other=0.0)
    return weights, own


@triton.jit
def with_units(
    acc, weights, own, unit, num, m, M, shrunk, slots, active, P: tl.constexpr, R: tl.constexpr,
    RC: tl.constexpr, G: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Return acc (BN, BM) with what `some_weights` add to the rows m (BM,): each row's shrunk x
    meets its own adapter's only."""
    C: tl.constexpr = (R + RC - 1) // RC
    units = unit + tl.arange(0, G)
    slot = tl.load(active + 1 + units // C, mask=units < num * C, other=-1)
    row_slots = tl.load(slots + m, mask=m < M, other=0).to(tl.int32)
    is_own = slot[:, None] == row_slots[None, :]
    r = unit % C * RC + tl.arange(0, RC)
    mask = (r < R)[:, None] & (m < M)[None, :]
    for module in tl.static_range(0, P):
        inside = own == module
        if tl.max(inside.to(tl.int32), 0) > 0:
            at = shrunk + (m[None, :] * P + module) * R + r[:, None]
            s = tl.load(at, mask=mask, other=0.0).to(weights.dtype)
            theirs = tl.where(is_own[:, None, :], s[None, :, :], 0.0).to(weights.dtype)
            ws = tl.where(inside[:, None], weights, 0.0).to(weights.dtype)
            theirs = tl.reshape(theirs, (G * RC, BM))
            acc = tl.dot(ws, theirs, acc, input_precision="ieee")
    return acc


@triton.jit
def row_weights(
    n, slot, b0, b1, b2, start0, start1, start2, n0, n1, n2, P: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr,
):  # fmt: skip
    """Return a single row's B (BN, RP) of the outputs n, and the module of each (BN,)."""
    r = tl.arange(0, RP)
    own = n * 0
    column = n - start0
    columns = own + n0
    stack = b0 + own
    if P > 1:
        own = tl.where(n >= start1, 1, own)
        column = tl.where(n >= start1, n - start1, column)
        columns = tl.where(n >= start1, n1, columns)
        stack = tl.where(n >= start1, b1 + n * 0, stack)
    if P > 2:
        own = tl.where(n >= start2, 2, own)
        column = tl.where(n >= start2, n - start2, column)
        columns = tl.where(n >= start2, n2, columns)
        stack = tl.where(n >= start2, b2 + n * 0, stack)
    at = stack[:, None] + (slot * R + r)[None, :] * columns[:, None] + column[:, None]
    inside = (column >= 0) & (column < columns) & (slot != 0)
    mask = (r < R)[None, :] & inside[:, None]
    return tl.load(at, mask=mask, other=0.0), own
