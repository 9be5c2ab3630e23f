"""Let a kernel begin while the one before it ends. Imported only where Triton runs."""

import triton
import triton.language as tl


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
def before_the_next_kernel(OVERLAPS: tl.constexpr):
    """Do `after_earlier_kernels`, and only then launch the next kernel: it may read all that the
    earlier ones wrote without waiting for this one."""
    after_earlier_kernels(OVERLAPS)
    launch_next(OVERLAPS)
