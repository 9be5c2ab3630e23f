"""Logits blocked by bits: the kernel and its torch version against plain arithmetic."""

import numpy as np
import pytest
import torch

from deployments.engine.kernels import ops
from tests.deployments.engine.kernels.test_kernels import DEVICE, FUSED, needs_kernels, tensor

if FUSED:
    from deployments.engine.kernels import triton_mask

pytestmark = needs_kernels


@pytest.mark.parametrize("columns", [61, 4096, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_block_logits(columns: int, dtype: torch.dtype) -> None:
    allowed = torch.rand(5, columns, generator=torch.Generator().manual_seed(columns)) < 0.3
    packed = np.packbits(allowed.numpy(), axis=1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    bits = torch.from_numpy(packed.view(np.int32)).to(DEVICE)
    logits = tensor(0, 6, columns, dtype=dtype)
    wanted, twin = logits.clone(), logits.clone()
    wanted[[0, 4]] = wanted[[0, 4]].masked_fill(~allowed[[3, 1]].to(DEVICE), -torch.inf)
    places = torch.tensor([[4, 0], [1, 3]], device=DEVICE)
    triton_mask.mask_logits_(logits, bits, places)
    ops.mask_logits_torch_(twin, bits, places)
    assert torch.equal(logits, wanted)
    assert torch.equal(twin, wanted)
