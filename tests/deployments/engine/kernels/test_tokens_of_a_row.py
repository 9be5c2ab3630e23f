"""Several tokens of one row in a decode step, on a GPU or in Triton's interpreter."""

from typing import Any

import pytest
import torch

from deployments.engine.kernels.ops import HeadNorm, Rope
from tests.deployments.engine.kernels import test_kernels as of_kernels
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import (
    DEVICE,
    TOLERANCE,
    expansion,
    needs_kernels,
    rows,
    tensor,
)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 8, 72])
@pytest.mark.parametrize("kind", ["bias", "plain", "rope", "window", "norm"])
def test_neighbouring_tokens_of_a_row_see_each_other(
    kind: str, rank: int, dtype: torch.dtype
) -> None:
    """Three tokens of one row and two of another, each as a row of the batch."""
    rotates = kind in ("rope", "window", "norm")
    if DEVICE == "cpu" and dtype == torch.bfloat16 and (rotates or rank == 72):
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    heads, groups, dim = 2, 3 if rotates else 1, 64
    kv_cache = tensor(1, 400, 2, heads, dim, dtype=dtype)
    qkv = tensor(0, 5, heads * (groups + 2), dim, dtype=dtype)
    starts, lengths = rows(0, 0, 0, 140, 140), rows(127, 128, 129, 0, 1)
    options: dict[str, Any] = {"bias": None, "rope": None, "scale": dim**-0.5}
    if kind == "bias":
        options["bias"] = tensor(2, heads, 140, dtype=dtype)
    if rotates:
        options["rope"] = Rope(tensor(3, 140, dim), tensor(4, 140, dim))
        options["window"] = 2 if kind == "window" else None
    if kind == "norm":
        options["norm"] = HeadNorm(tensor(6, heads * (groups + 1), dim, dtype=dtype), 1e-6)
    queries, width = heads * groups * dim, heads * dim
    columns = {0: queries, queries: width, queries + width: width}
    added = expansion(qkv[0].numel(), columns, rank, dtype) if rank else None
    torch_cache, torch_qkv = kv_cache.clone(), qkv.clone()
    out = of_kernels.triton_attention.decode_attention(
        qkv, added, kv_cache, starts, lengths, shares_rows=True, **options
    )
    wanted = torch_kernels.decode_attention(
        torch_qkv, added, torch_cache, starts, lengths, **options
    )
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    torch.testing.assert_close(kv_cache, torch_cache, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
