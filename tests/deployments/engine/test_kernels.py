"""The twins against plain arithmetic, and the Triton kernels against the twins where they run.

On a GPU: `python -m pytest tests/deployments/engine/test_kernels.py`. Without one, the kernels run
in Triton's interpreter: TRITON_INTERPRET=1 in front of the same command.
"""

import os

import pytest
import torch
import torch.nn.functional as F

from deployments.engine import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = kernels.are_fused(DEVICE)
needs_kernels = pytest.mark.skipif(
    not FUSED, reason="needs a GPU with Triton, or TRITON_INTERPRET=1 and Triton"
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, device=DEVICE)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_attention_twin_is_attention(groups: int) -> None:
    q, memory = tensor(0, 3, 2, groups, 8), tensor(1, 40, 2, 2, 8)
    starts, lengths = rows(0, 12, 30), rows(5, 12, 1)
    bias = tensor(2, 2, 20) if groups == 1 else None
    out = kernels.decode_attention_twin(q, memory, starts, lengths, bias, 0.3)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        kv = memory[start : start + length].permute(1, 2, 0, 3)
        added = None if bias is None else bias[:, :length].flip(-1)[:, None]
        expected = F.scaled_dot_product_attention(q[row], kv[0], kv[1], attn_mask=added, scale=0.3)
        torch.testing.assert_close(out[row], expected.reshape(-1))


def test_the_lora_twins_are_lora() -> None:
    x, slots, wide = tensor(0, 4, 12), rows(2, 0, 1, 2), tensor(3, 4, 30)
    parts = [
        (5, tensor(1, 3, 8, 12), tensor(2, 3, 8, 10)),
        (20, tensor(4, 3, 8, 12), tensor(5, 3, 8, 6)),
    ]
    for _, a, b in parts:
        a[0], b[0] = 0, 0
    expected = wide.clone()
    for row, slot in enumerate(slots.tolist()):
        for start, a, b in parts:
            expected[row, start : start + b.shape[2]] += (x[row] @ a[slot].T) @ b[slot]
    shrunk = kernels.lora_shrink_twin(x, [a for _, a, _ in parts], slots)
    kernels.lora_expand_add_twin(wide, shrunk, [(start, b) for start, _, b in parts], slots)
    torch.testing.assert_close(wide, expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "groups", "dim", "has_bias"), [(4, 1, 64, True), (2, 4, 64, False), (3, 1, 24, False)]
)
def test_the_attention_kernel_equals_its_twin(
    heads: int, groups: int, dim: int, has_bias: bool, dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and groups > 1 and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    memory = tensor(1, 400, 2, heads, dim, dtype=dtype)
    # A strided q, as it comes out of the fused product.
    q = tensor(0, 5, heads * groups + 3, dim, dtype=dtype)[:, : heads * groups]
    q = q.view(5, heads, groups, dim)
    starts, lengths = rows(0, 130, 131, 200, 399), rows(130, 1, 64, 65, 1)
    bias = tensor(2, heads, 140, dtype=dtype) if has_bias else None
    out = kernels.decode_attention(q, memory, starts, lengths, bias, dim**-0.5)
    twin = kernels.decode_attention_twin(q, memory, starts, lengths, bias, dim**-0.5)
    assert (out - twin).norm() / twin.norm() < TOLERANCE[dtype]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize("widths", [(300,), (300, 700, 40)])
def test_the_lora_kernels_equal_their_twins(
    widths: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    x, slots = tensor(0, 5, 2200, dtype=dtype), rows(3, 0, 1, 1, 2)
    y = tensor(3, 5, 1200, dtype=dtype)
    a = [tensor(10 + i, 4, rank, 2200, dtype=dtype) for i in range(len(widths))]
    b = [tensor(20 + i, 4, rank, n, dtype=dtype) * 0.1 for i, n in enumerate(widths)]
    for stack in (*a, *b):
        stack[0] = 0
    starts = [100 + sum(widths[:i]) for i in range(len(widths))]
    stacks = list(zip(starts, b, strict=True))
    shrunk, twin = kernels.lora_shrink(x, a, slots), kernels.lora_shrink_twin(x, a, slots)
    assert shrunk.shape == twin.shape
    assert (shrunk - twin).norm() / twin.norm() < TOLERANCE[dtype]
    expected = y.clone()
    untouched = y.clone()
    kernels.lora_expand_add(y, shrunk, stacks, slots)
    kernels.lora_expand_add_twin(expected, shrunk, stacks, slots)
    assert (y - expected).norm() / expected.norm() < TOLERANCE[dtype]
    assert torch.equal(y[:, :100], untouched[:, :100])
    assert torch.equal(y[:, 100 + sum(widths) :], untouched[:, 100 + sum(widths) :])
    assert torch.equal(y[1], untouched[1]), "a row of the base was changed"


def test_the_norm_is_torchs() -> None:
    x, weight = tensor(0, 4, 48) * 5, tensor(1, 48)
    expected = F.rms_norm(x, (48,), weight, 1e-5)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_shrink_in_one_equal_the_two(dtype: torch.dtype) -> None:
    x, weight = tensor(0, 5, 1100, dtype=dtype) * 4, tensor(1, 1100, dtype=dtype)
    slots = rows(3, 0, 1, 1, 2)
    stacks = [tensor(10 + i, 4, 16, 1100, dtype=dtype) for i in range(3)]
    for stack in stacks:
        stack[0] = 0
    normed, shrunk = kernels.norm_shrink(x, weight, 1e-6, stacks, slots)
    expected = F.rms_norm(x, (1100,), weight, 1e-6)
    assert (normed - expected).norm() / expected.norm() < TOLERANCE[dtype]
    twin = kernels.lora_shrink_twin(normed, stacks, slots)
    assert (shrunk - twin).norm() / twin.norm() < TOLERANCE[dtype]
    assert not shrunk[1].any()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
def test_the_gated_kernel_equals_its_twin(activation: str, dtype: torch.dtype) -> None:
    x = tensor(0, 3, 2 * 1500, dtype=dtype) * 3
    out = kernels.gated_activation(x, activation)
    twin = kernels.gated_activation_twin(x, activation)
    assert (out - twin).norm() / twin.norm() < TOLERANCE[dtype]


def test_without_kernels_the_twin_runs() -> None:
    if FUSED or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the kernels run here")
    assert not kernels.are_fused("cpu")
    x, a, slots = tensor(0, 2, 12), [tensor(1, 3, 8, 12)], rows(1, 2)
    assert torch.equal(kernels.lora_shrink(x, a, slots), kernels.lora_shrink_twin(x, a, slots))
