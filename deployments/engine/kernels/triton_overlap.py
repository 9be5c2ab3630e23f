"""Let a kernel begin while the one before it ends. Imported only where Triton runs."""

import triton
import triton.language as tl


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
def before_the_next_kernel(OVERLAPS: tl.constexpr):
    """Do `after_earlier_kernels` the other way round: the next kernel is launched once all that
    earlier ones wrote can be read, so it may read that without waiting for this one."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def begin_beside(OVERLAPS: tl.constexpr, BESIDE: tl.constexpr):
    """Wait for earlier kernels. BESIDE: not for the one just before, which itself waited for the
    others before it let this one be launched (`before_the_next_kernel`)."""
    if BESIDE:
        if OVERLAPS:
            tl.extra.cuda.gdc_launch_dependents()
    else:
        after_earlier_kernels(OVERLAPS)


@triton.jit
def end_beside(OVERLAPS: tl.constexpr, BESIDE: tl.constexpr):
    """Wait for the kernel that this one ran beside."""
    if BESIDE and OVERLAPS:
        tl.extra.cuda.gdc_wait()
