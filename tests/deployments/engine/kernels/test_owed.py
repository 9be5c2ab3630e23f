"""Expansions that are added to a residual when it is normed next.

As test_kernels.py: on a GPU, or with TRITON_INTERPRET=1 in front of pytest.
"""

import pytest
import torch
import torch.nn.functional as F

from deployments.engine.lora.layers import LoraStack
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import (
    FUSED,
    TOLERANCE,
    expansion,
    needs_kernels,
    tensor,
)

if FUSED:
    from deployments.engine.kernels import triton_lora
    from deployments.engine.lora.triton_batch import TritonLoraBatch

pytestmark = needs_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [8, 16, 40])
def test_the_norm_adds_what_is_owed_first(rank: int, dtype: torch.dtype) -> None:
    x, weight = tensor(0, 5, 1100, dtype=dtype) * 4, tensor(1, 1100, dtype=dtype)
    owed = expansion(1100, {0: 1100}, rank, dtype)
    sums = x.clone()
    torch_kernels.lora_expand_add(sums, owed)
    untouched = x[1].clone()
    normed = triton_lora.expand_norm(x, owed, weight, 1e-6)
    assert (x - sums).norm() / sums.norm() < TOLERANCE[dtype]
    assert torch.equal(x[1], untouched), "a row of the base was changed"
    expected = F.rms_norm(x, (1100,), weight, 1e-6)
    assert (normed - expected).norm() / expected.norm() < TOLERANCE[dtype]


def test_what_is_owed_is_added_once_and_to_its_own_tensor() -> None:
    owed = expansion(96, {0: 96}, 8, torch.float32)
    ((_, b),) = owed.stacks
    stacks = {"o": [(0, LoraStack(tensor(1, 4, 8, 64), b))]}
    batch = TritonLoraBatch(stacks, owed.slots, is_invariant=False)
    x, weight, other = tensor(2, 5, 96), tensor(3, 96), tensor(4, 5, 96)
    sums = x.clone()
    torch_kernels.lora_expand_add(sums, owed)
    batch.owe(x, owed)
    assert batch.owes(x)
    assert not batch.owes(other)
    with pytest.raises(AssertionError, match="owed to another tensor"):
        batch.owe(other, owed)
    torch.testing.assert_close(batch.settle(x), sums)
    assert not batch.owes(x)
    torch.testing.assert_close(batch.settle(x), sums)
    batch.owe(x, owed)
    with pytest.raises(AssertionError, match="was not added"):
        batch.normed(other, weight, 1e-6)
