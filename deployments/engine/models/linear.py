"""A fused linear layer with the layout that its device multiplies fastest, and its LoRA site."""

from collections.abc import Sequence

import torch

from deployments.engine.kernels.lora import Expansion, rms_norm
from deployments.engine.lora.batch import LoraBatch, LoraLayer, LoraModule

# Measured with float32 and 576 columns (docs/engine.md): 1.05 ms against 0.62 at 16 rows and 3,072
# outputs; no gain at 960 outputs, a loss from 64 rows on.
_WIDE = 2048
_FEW_ROWS = range(6, 41)


class FusedLinear:
    """y = x @ W.T + bias, W being several linear layers of the base model stacked by rows.

    Layouts: bfloat16 on a CPU multiplies fastest from oneDNN's packed blocks, float32 from
    (in, out), a GPU from the (out, in) of the base model. MKL is slow at a few rows times a wide
    float32 matrix, so that one stays (out, in) and takes the rows from the right: W @ x.T.

    Args:
        name: unique in the decoder; the LoRA site has the same name.
        layers: module path -> linear layer. Their weights are taken away as they are read, so that
            the memory of the base model is not held twice.
    """

    def __init__(self, name: str, layers: dict[str, torch.nn.Linear], dtype: torch.dtype) -> None:
        weights = [_take(layer).to(dtype) for layer in layers.values()]
        biases = [layer.bias for layer in layers.values()]
        self.name = name
        self.out_features = sum(len(weight) for weight in weights)
        self.site = LoraLayer(name, weights[0].shape[1], _parts(list(layers), weights))
        self._bias = _stacked_bias(biases, weights, dtype)
        weight = torch.cat(weights)
        self._packed = packed(weight) if dtype == torch.bfloat16 else None
        self._is_wide = weight.device.type == "cpu" and len(weight) >= _WIDE
        if self._packed is not None:
            return
        if weight.device.type == "cpu" and len(weight) < _WIDE:
            self._weight = weight.t().contiguous()
        else:
            self._weight = weight.t()

    def __call__(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """x (T, in) -> (T, out), each token with its own adapter."""
        y = self._product(x)
        if lora is not None:
            lora.add(self.name, x, y)
        return y

    def after_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> torch.Tensor:
        """The layer of the RMS norm of x (T, in), whose weight is (in,)."""
        if lora is None:
            return self._product(rms_norm(x, weight, eps))
        normed, shrunk = lora.norm(self.name, x, weight, eps)
        y = self._product(normed)
        lora.add(self.name, normed, y, shrunk)
        return y

    def before_attention(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> tuple[torch.Tensor, Expansion | None]:
        """As `after_norm`; the expansion, if any, is left to the attention that reads it."""
        if lora is None:
            return self._product(rms_norm(x, weight, eps)), None
        normed, shrunk = lora.norm(self.name, x, weight, eps)
        y = self._product(normed)
        return y, lora.expansion(self.name, normed, y, shrunk)

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """residual (T, out) + self(x), in place of the residual."""
        if self._packed is not None or self._bias is not None:
            return residual.add_(self(x, lora))
        residual.addmm_(x, self._weight)
        if lora is not None:
            lora.add(self.name, x, residual)
        return residual

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._packed, self._bias, "none", [], ""
            )
            return product
        if self._bias is not None:
            return torch.addmm(self._bias, x, self._weight)
        if self._is_wide and len(x) in _FEW_ROWS:
            return torch.mm(self._weight.t(), x.t()).t()
        return torch.mm(x, self._weight)


def packed(weight: torch.Tensor) -> torch.Tensor | None:
    """oneDNN's blocks of a weight (out, in); None: not on a CPU, or on one without the
    instructions that its bfloat16 blocks need."""
    if weight.device.type != "cpu":
        return None
    ops = torch.ops.mkldnn
    if weight.dtype == torch.bfloat16 and not ops._is_mkldnn_bf16_supported():
        return None
    blocks: torch.Tensor = ops._reorder_linear_weight(weight)
    return blocks


def _take(layer: torch.nn.Linear) -> torch.Tensor:
    weight = layer.weight.data
    layer.weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return weight


def _parts(modules: Sequence[str], weights: Sequence[torch.Tensor]) -> tuple[LoraModule, ...]:
    parts, start = [], 0
    for module, weight in zip(modules, weights, strict=True):
        parts.append(LoraModule(module, start, start + len(weight)))
        start += len(weight)
    return tuple(parts)


def _stacked_bias(
    biases: Sequence[torch.Tensor | None], weights: Sequence[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor | None:
    """(out,), zeros where a layer has none; None when no layer has one."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(len(weight)) if bias is None else bias.data.to(dtype)
            for bias, weight in zip(biases, weights, strict=True)
        ]
    )
