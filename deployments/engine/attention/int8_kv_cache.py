"""Hold keys and values in int8, with a scale for each position and head."""

from collections.abc import Sequence

import torch

from deployments.engine.attention.kv_cache import KvCache, Span, copied_positions
from deployments.engine.kernels.backend import are_fused

SCALE_DTYPE = torch.bfloat16


class Int8KvCache(KvCache):
    """Hold what KvCache does in int8: half of bfloat16's bytes and a thirty-second more.

        layer: (T, 2, H, D) int8, from -127 to 127
        scales of a layer: (2, H, T); the scales of a head's keys are neighbours

    Args:
        dtype: in which keys and values are read; the others are KvCache's.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(
            capacities,
            num_layers=num_layers,
            num_heads=num_heads,
            head_dim=head_dim,
            dtype=torch.int8,
            device=device,
        )
        self._dtype = dtype
        shape = (num_layers, 2, num_heads, sum(capacities))
        self._scales = torch.zeros(shape, dtype=SCALE_DTYPE, device=device)
        self.scales = list(self._scales.unbind())

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self._scales.nbytes

    def write(self, layer: int, positions: torch.Tensor, kv: torch.Tensor) -> None:
        cached, scales = self.layers[layer], self._scales[layer]
        if are_fused(self.device.type):
            from deployments.engine.kernels.triton_kv_cache import write_int8

            write_int8(cached, scales, positions, kv)
            return
        whole, new_scales = quantise(kv)
        cached.index_copy_(0, positions, whole)
        scales.index_copy_(2, positions, new_scales.permute(1, 2, 0))

    def copy(self, source: int, target: int, count: int) -> None:
        super().copy(source, target, count)
        read, written = copied_positions(self.starts[source], self.starts[target], count)
        self._scales[..., written].copy_(self._scales[..., read])

    def keys_values(
        self, layer: int, span: Span, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies in the dtype of the activations."""
        keys, values = super().keys_values(layer, span, start, stop)
        last = span.start + span.num_rows * span.capacity
        scales = self._scales[layer][..., span.start : last]
        rows = scales.view(*scales.shape[:2], span.num_rows, -1)[..., start:stop].transpose(1, 2)
        return dequantise(keys, rows[0], self._dtype), dequantise(values, rows[1], self._dtype)

    def gather(self, layer: int, where: torch.Tensor) -> torch.Tensor:
        scales = self._scales[layer][:, :, where].movedim((0, 1), (-2, -1))
        return dequantise(super().gather(layer, where), scales, self._dtype)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x (..., D) in int8 and its scales (...).

    A scale is the largest absolute number over 127, rounded up to bfloat16, so that no number is
    above 127.
    """
    x = x.float()
    bits = x.abs().amax(-1).mul_(1 / 127).view(torch.int32)
    scale = ((bits + 0xFFFF) >> 16 << 16).view(torch.float32)
    divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    return torch.floor(x / divisor + 0.5).to(torch.int8), scale.to(SCALE_DTYPE)


def dequantise(x: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return int8 x (..., D) times its scales (...)."""
    return (x.float() * scales.float().unsqueeze(-1)).to(dtype)
