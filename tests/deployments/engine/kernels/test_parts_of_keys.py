"""Keys that are cut into parts, on a GPU or in Triton's interpreter."""

from typing import Any

import pytest
import torch

from deployments.engine.attention.int8_kv_cache import SCALE_DTYPE
from deployments.engine.kernels.ops import Rope
from deployments.engine.kernels.tiles import rope_decode_tile
from tests.deployments.engine.kernels import test_kernels as of_kernels
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import (
    DEVICE,
    TOLERANCE,
    needs_kernels,
    rows,
    tensor,
)

HEADS, GROUPS = 2, 2


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_few_programs_have_many_parts(dim: int) -> None:
    """No more than run at the same time; four warps have a multiprocessor each, of 132."""
    found = {num: rope_decode_tile(num, dim, 2, None) for num in (1, 8, 32, 64, 128, 512, 4096)}
    parts = {num: tile["SPLITS"] for num, tile in found.items()}
    for num, tile in found.items():
        most = 132 if tile["num_warps"] == 4 else 8 * 132
        assert parts[num] == 1 or num * parts[num] <= most
    assert (parts[1], parts[8], parts[4096]) == (8, 8, 1)
    assert rope_decode_tile(None, dim, 2, None)["SPLITS"] == 1


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"window": 700}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("is_int8", [False, True])
def test_parts_of_keys_are_put_together(
    dim: int, options: dict[str, Any], is_int8: bool, dtype: torch.dtype
) -> None:
    """Rows with one part, with some and with the most, twice: what is counted ends at zero."""
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    starts, lengths = rows(0, 1200, 1210, 1900), rows(1150, 3, 640, 128)
    kv_cache = tensor(1, 2048, 2, HEADS, dim, dtype=dtype)
    kv_scales = None
    if is_int8:
        kv_cache = (kv_cache.float() * 40).clamp(-127, 127).to(torch.int8)
        kv_scales = (tensor(2, 2, HEADS, 2048).abs() / 60).to(SCALE_DTYPE)
    rope = Rope(tensor(3, 1200, dim), tensor(4, 1200, dim))
    every: dict[str, Any] = {"bias": None, "rope": rope, "scale": dim**-0.5, **options}
    for seed in (0, 5):
        qkv = tensor(seed, 4, HEADS * (GROUPS + 2), dim, dtype=dtype)
        kept = kv_cache.clone(), None if kv_scales is None else kv_scales.clone()
        wanted = torch_kernels.decode_attention(
            qkv.clone(), None, kept[0], starts, lengths, kv_scales=kept[1], **every
        )
        found = of_kernels.triton_attention.decode_attention(
            qkv, None, kv_cache, starts, lengths, kv_scales=kv_scales, **every
        )
        assert (found - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


@needs_kernels
def test_many_rows_have_smaller_parts() -> None:
    num = 40
    starts = torch.arange(num, device=DEVICE) * 300
    lengths = torch.arange(num, device=DEVICE) * 7
    kv_cache, qkv = tensor(1, num * 300, 2, HEADS, 64), tensor(0, num, HEADS * (GROUPS + 2), 64)
    tile = rope_decode_tile(num * HEADS, 64, 4, None)
    assert (tile["SPLITS"], tile["FEWEST"]) == (8, 4)
    every: dict[str, Any] = {"bias": None, "rope": None, "scale": 0.125}
    wanted = torch_kernels.decode_attention(
        qkv.clone(), None, kv_cache.clone(), starts, lengths, **every
    )
    found = of_kernels.triton_attention.decode_attention(
        qkv, None, kv_cache, starts, lengths, **every
    )
    assert (found - wanted).norm() / wanted.norm() < TOLERANCE[torch.float32]
