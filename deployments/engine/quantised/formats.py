"""Quantise to bitsandbytes' int8 and NF4, and to fp8, in torch: no library is needed to load.

NF4 with double quantisation: Dettmers et al. 2023, "QLoRA" (https://arxiv.org/abs/2305.14314); the
map of the second quantisation: Dettmers et al. 2021 (https://arxiv.org/abs/2110.02861).
"""

import functools

import torch

from deployments.engine.kernels.backend import are_fused

BLOCK = 64  # neighbours of a row with one absmax, in NF4
_NESTED_BLOCK = 256  # absmax of them with one absmax of their own
INVERSE_127 = 7.874015718698502e-3  # as bitsandbytes writes 1 / 127
FP8_MAX = 448.0  # of float8_e4m3fn
# bitsandbytes' table (functional.get_4bit_type): quantiles of a normal distribution.
NF4_CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def quantise_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values int8 (out, in) and absmax float32 (out,) of LLM.int8.

    Raises:
        ValueError: the weight in float16 is not finite.
    """
    half = weight.half()
    absmax = _finite(half.abs().amax(1).float(), "in float16, which int8 begins with,")
    scale = torch.where(absmax > 0, _over_127(absmax), 0.0)
    return torch.round(half * scale[:, None]).to(torch.int8), absmax


def quantise_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values float8_e4m3fn (out, in) and scales float32 (out,).

    Raises:
        ValueError: the weight is not finite.
    """
    absmax = _finite(weight.abs().amax(1).float())
    scales = torch.where(absmax > 0, absmax / FP8_MAX, 1.0)
    scaled = (weight.float() / scales[:, None]).clamp_(-FP8_MAX, FP8_MAX)
    return scaled.to(torch.float8_e4m3fn), scales


def quantise_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bitsandbytes' bytes (out * in / 2,) and absmax float32 (out * in / 64,).

    absmax was quantised a second time, and is returned as bitsandbytes reads it back.

    Raises:
        ValueError: the weight is not finite.
    """
    codes, absmax = _quantise_blocks(weight.reshape(-1).float(), _code(weight.device), BLOCK)
    _finite(absmax)
    offset = absmax.mean()
    table = _dynamic_map(weight.device)
    nested, nested_scale = _quantise_blocks(absmax - offset, table, _NESTED_BLOCK)
    packed = (codes[::2] << 4) | codes[1::2]
    return packed, nested_absmax(nested, table, nested_scale, offset)


def nested_absmax(
    absmax: torch.Tensor, table: torch.Tensor, nested: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """Return the absmax (n,) of blocks in float32 from its own quantised form.

    The arguments are what bitsandbytes saves: absmax uint8 (n,), nested_quant_map (256,),
    nested_absmax (one for each 256) and the offset that was subtracted.
    """
    scale = nested.float().repeat_interleave(_NESTED_BLOCK)[: absmax.numel()]
    return table.float()[absmax.int()].mul_(scale).add_(offset)


def _quantise_blocks(
    values: torch.Tensor, table: torch.Tensor, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest entry of an ascending table for each value (n,), and each block's absmax.

    A value is divided by the absmax of its block first; the last block may be shorter.
    """
    size = values.numel()
    blocks = torch.nn.functional.pad(values, (0, -size % block)).view(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    bounds = (table[:-1] + table[1:]) / 2
    nearest = torch.bucketize(scaled.flatten()[:size], bounds, out_int32=True)
    return nearest.to(torch.uint8), absmax


@functools.cache
def _code(device: torch.device) -> torch.Tensor:
    return torch.tensor(NF4_CODE, device=device)


@functools.cache
def _dynamic_map(device: torch.device) -> torch.Tensor:
    """Return bitsandbytes' signed dynamic map (256,), ascending (functional.create_dynamic_map)."""
    entries = [0.0, 1.0]
    for exponent in range(7):
        boundaries = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (boundaries[:-1] + boundaries[1:]) / 2.0
        for sign in (1, -1):
            entries += (sign * 10 ** (exponent - 6) * means).tolist()
    return torch.tensor(sorted(entries), device=device)


def _over_127(absmax: torch.Tensor) -> torch.Tensor:
    """Return 127 / absmax, on a GPU in the approximate division of bitsandbytes' kernel there."""
    if absmax.is_cuda and are_fused("cuda"):
        from deployments.engine.kernels.triton_division import over_127

        return over_127(absmax)
    return 127.0 / absmax


def _finite(absmax: torch.Tensor, where: str = "") -> torch.Tensor:
    if not bool(torch.isfinite(absmax).all()):
        raise ValueError(f"a weight {where} holds NaN or infinity, so it cannot be quantised")
    return absmax
