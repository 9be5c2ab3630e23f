"""The router's encoder in PyTorch, for training: BERT layers, attention pooling, two heads.

Shapes: B texts, T tokens, H hidden, S specialties. Serving runs the same network from an ONNX file
(scripts/router/encoder_export.py) and never imports this.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.router.encoder_init import LAYERS, dequantised

GROUP = 64  # weights that share a scale in the 4-bit encoder
MAX_POSITIONS = 256  # tokens of one window, start and end included
EPSILON = 1e-12
DROPOUT = 0.1  # while training


def fake_quantised(weight: Tensor) -> Tensor:
    """Round to values that 4 bits can hold, with the gradient of the identity (Bengio et al. 2013).

    Symmetric, a scale for each GROUP neighbours of a row: scale * (-8 .. 7).
    """
    codes, scales = quantise(weight.detach())
    rounded = ((codes.to(scales.dtype) - 8) * scales[..., None]).reshape(weight.shape)
    return weight + (rounded - weight).detach()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (N, K) to codes (N, K / GROUP, GROUP), 0 to 15 as uint8, and scales (N, K / GROUP).

    Four scales put the largest value at or near an end of the range; the one with the smallest
    squared error is taken.
    """
    groups = weight.float().reshape(len(weight), -1, GROUP)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
    found = []
    for divisor in (-8.0, -7.5, -7.0, 7.0):
        scales = extreme / divisor
        scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        codes = (groups / scales[..., None]).round().clamp(-8, 7) + 8
        error = ((codes - 8) * scales[..., None] - groups).square().sum(2)
        found.append((codes, scales, error))
    best_codes, best_scales, least = found[0]
    for codes, scales, error in found[1:]:
        is_better = error < least
        best_codes = torch.where(is_better[..., None], codes, best_codes)
        best_scales = torch.where(is_better, scales, best_scales)
        least = torch.minimum(error, least)
    return best_codes.to(torch.uint8), best_scales


class Linear(nn.Linear):
    """A linear layer whose weight can be trained with the rounding of 4 bits."""

    is_quantised = False

    def forward(self, x: Tensor) -> Tensor:
        weight = fake_quantised(self.weight) if self.is_quantised else self.weight
        return F.linear(x, weight, self.bias)


class Layer(nn.Module):
    """Post-norm BERT layer."""

    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden, 3 * hidden)
        self.out = Linear(hidden, hidden)
        self.norm_1 = nn.LayerNorm(hidden, eps=EPSILON)
        self.up = Linear(hidden, 4 * hidden)
        self.down = Linear(4 * hidden, hidden)
        self.norm_2 = nn.LayerNorm(hidden, eps=EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return x (B, T, H) after the layer; mask (B, 1, 1, T) is True where a token is."""
        b, t, h = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = self.out(attended.transpose(1, 2).reshape(b, t, h))
        x = self.norm_1(x + F.dropout(attended, DROPOUT, self.training))
        fed = self.down(F.gelu(self.up(x)))
        normed: Tensor = self.norm_2(x + F.dropout(fed, DROPOUT, self.training))
        return normed


class Encoder(nn.Module):
    """Maps token ids to states, a pooled vector, logits of the specialties and of the scope."""

    def __init__(
        self,
        num_pieces: int,
        num_specialties: int,
        *,
        hidden: int = 384,
        num_heads: int = 12,
        num_layers: int = LAYERS,
    ) -> None:
        super().__init__()
        self.word = nn.Embedding(num_pieces, hidden)
        self.position = nn.Embedding(MAX_POSITIONS, hidden)
        self.norm = nn.LayerNorm(hidden, eps=EPSILON)
        self.layers = nn.ModuleList(Layer(hidden, num_heads) for _ in range(num_layers))
        self.attention = nn.Linear(hidden, 1)  # of the pooled vector to each token
        self.specialty = nn.Linear(hidden, num_specialties)
        self.scope = nn.Linear(hidden, 1)
        self.is_quantised = False

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Encode ids (B, T) under mask (B, T).

        Returns states (B, T, H), pooled (B, H), specialty (B, S), scope (B,).
        """
        table = fake_quantised(self.word.weight) if self.is_quantised else self.word.weight
        x = F.embedding(ids, table) + self.position.weight[: ids.shape[1]]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        scores = self.attention(x).squeeze(-1).masked_fill(~mask, float("-inf"))
        pooled = (scores.softmax(-1)[..., None] * x).sum(1)
        dropped = F.dropout(pooled, DROPOUT, self.training)
        return {
            "states": x,
            "pooled": pooled,
            "specialty": self.specialty(dropped),
            "scope": self.scope(dropped).squeeze(-1),
        }

    def set_quantised(self, is_quantised: bool) -> None:
        """Switch the rounding of weights to 4 bits on or off, in training and use."""
        self.is_quantised = is_quantised
        for module in self.modules():
            if isinstance(module, Linear):
                module.is_quantised = is_quantised


def from_init(
    folder: Path, num_specialties: int, *, layers: Sequence[int] | None = None
) -> Encoder:
    """Load the reduced multilingual-e5-small that encoder_init.py wrote.

    Args:
        layers: which of its twelve to take, in order; None takes all.
    """
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        found = {name: torch.from_numpy(_array(arrays, name)) for name in arrays.files}
    picked = list(range(LAYERS)) if layers is None else list(layers)
    hidden = found["emb.word"].shape[1]
    encoder = Encoder(
        len(found["emb.word"]),
        num_specialties,
        hidden=hidden,
        num_heads=int(found["num_heads"]),
        num_layers=len(picked),
    )
    with torch.no_grad():
        encoder.word.weight.copy_(found["emb.word"])
        positions = found["emb.pos"].reshape(-1, hidden)[:MAX_POSITIONS]
        encoder.position.weight.copy_(positions + found["emb.type"].reshape(-1, hidden)[0])
        _fill(encoder.norm, found["emb.ln.w"], found["emb.ln.b"])
        for layer, number in zip(encoder.layers, picked, strict=True):
            assert isinstance(layer, Layer)
            at = f"l{number}"
            _fill(
                layer.qkv,
                torch.cat([found[f"{at}.{p}.w"] for p in "qkv"]),
                torch.cat([found[f"{at}.{p}.b"] for p in "qkv"]),
            )
            for module, name in ((layer.out, "ao"), (layer.up, "fi"), (layer.down, "fo")):
                _fill(module, found[f"{at}.{name}.w"], found[f"{at}.{name}.b"])
            _fill(layer.norm_1, found[f"{at}.aln.w"], found[f"{at}.aln.b"])
            _fill(layer.norm_2, found[f"{at}.oln.w"], found[f"{at}.oln.b"])
        nn.init.zeros_(encoder.attention.weight)  # at first all tokens weigh the same
    return encoder


def _array(
    arrays: "np.lib.npyio.NpzFile", name: str
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    value = arrays[name]
    return dequantised(value) if value.dtype == np.uint8 else value.astype(np.float32)


def _fill(module: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(module, nn.Linear | nn.LayerNorm)
    module.weight.copy_(weight.reshape(module.weight.shape))
    module.bias.copy_(bias)
