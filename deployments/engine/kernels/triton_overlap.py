"""Let a kernel begin while the one before it ends. Imported only where Triton runs."""

import triton
import triton.language as tl

_PREFETCH: tl.constexpr = tl.constexpr("prefetch.global.L2 [$1]; mov.b32 $0, 0;")


@triton.jit
def after_earlier_kernels(OVERLAPS: tl.constexpr):
    """Let the next kernel be launched, and wait until all that earlier ones wrote can be read.

    Every program of a kernel that is launched with backend.launch_options calls it, or
    `gdc_wait` itself, before it reads what others write and before it writes.
    """
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch(values, rows, begin, width, COUNT: tl.constexpr):
    """Ask for COUNT bytes of each of the rows of `width` elements into the second cache, from
    element `begin` on, by lines of 128 bytes."""
    at = (values + rows.to(tl.int64) * width + begin).to(tl.int64)
    lines = at[:, None] + tl.arange(0, COUNT // 128)[None, :] * 128
    tl.inline_asm_elementwise(_PREFETCH, "=r,l", [lines], tl.int32, is_pure=False, pack=1)
