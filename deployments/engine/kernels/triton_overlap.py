"""Let a kernel begin while the one before it ends. Imported only where Triton runs."""

import triton
import triton.language as tl

_PREFETCH: tl.constexpr = tl.constexpr("prefetch.global.L2 [$1]; mov.b32 $0, 0;")


@triton.jit
def launch_next(OVERLAPS: tl.constexpr):
    """Let the next kernel be launched once every program of this one has begun.

    Each program calls it first, then asks for what no kernel nearby writes, then calls
    `after_earlier_kernels`.
    """
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def after_earlier_kernels(OVERLAPS: tl.constexpr):
    """Wait until all that earlier kernels wrote can be read.

    Every program of a kernel that is launched with backend.launch_options calls it before it reads
    what others write and before it writes.
    """
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch(values, rows, begin, width, COUNT: tl.constexpr):
    """Ask for COUNT bytes of each of the rows of `width` elements into the second cache, from
    element `begin` on, by lines of 128 bytes."""
    at = (values + rows.to(tl.int64) * width + begin).to(tl.int64)
    lines = at[:, None] + tl.arange(0, COUNT // 128)[None, :] * 128
    tl.inline_asm_elementwise(_PREFETCH, "=r,l", [lines], tl.int32, is_pure=False, pack=1)
