"""Add rows' adapters to a tile of the base product, before it is stored. Imported only where Triton
runs."""

import triton
import triton.language as tl


@triton.jit
def with_adapters(
    acc, column, columns, m, M, shrunk, slots, active, stack, module: tl.constexpr,
    kind: tl.constexpr, P: tl.constexpr, R: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return acc (BN, BM) with what the rows m (BM,) add to these columns of one module.

    Some ranks of all adapters are taken together, each row's shrunk x at its own one's only.
    """
    KB: tl.constexpr = 64
    inside = (column >= 0) & (column < columns)
    if tl.max(inside.to(tl.int32), 0) > 0:
        own = tl.load(slots + m, mask=m < M, other=0).to(tl.int32)
        ranks = tl.load(active) * R
        for first in tl.range(0, ranks, KB, num_stages=1):
            k = first + tl.arange(0, KB)
            slot = tl.load(active + 1 + k // R, mask=k < ranks, other=-1)
            r = k % R
            at = stack + (slot.to(tl.int64) * R + r)[None, :] * columns + column[:, None]
            ws = tl.load(at, mask=(k < ranks)[None, :] & inside[:, None], other=0.0)
            at = shrunk + (m[None, :] * P + module) * R + r[:, None]
            is_own = own[None, :] == slot[:, None]
            s = tl.load(at, mask=is_own & (m < M)[None, :], other=0.0)
            acc = tl.dot(ws, s.to(kind), acc, input_precision="ieee")
    return acc


@triton.jit
def row_weights(
    n, slot, b0, b1, b2, start0, start1, start2, n0, n1, n2, P: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return a single row's B (BN, RP) of the outputs n, and the module of each (BN,)."""
    r = tl.arange(0, RP)
    weights = tl.zeros((BN, RP), tl.float32)
    own = tl.zeros((BN,), tl.int32)
    for module in tl.static_range(0, P):
        stack = b0 if module == 0 else (b1 if module == 1 else b2)
        columns = n0 if module == 0 else (n1 if module == 1 else n2)
        column = n - (start0 if module == 0 else (start1 if module == 1 else start2))
        inside = (column >= 0) & (column < columns)
        at = stack + (slot * R + r)[None, :] * columns + column[:, None]
        mask = (r < R)[None, :] & inside[:, None]
        weights += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        own = tl.where(inside, module, own)
    return weights, own
