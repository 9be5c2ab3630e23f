"""Hold a base model's embedding, which adapters may change."""

import torch

from deployments.engine.lora.layers import LoraBatch, LoraLayer, LoraModule
from deployments.engine.models.weights import squared_norms


class Embedding:
    """Look tokens up in weight (V, d), each with its own adapter."""

    def __init__(self, path: str, weight: torch.Tensor) -> None:
        self.path, self.weight = path, weight
        modules = (LoraModule(path, 0, weight.shape[1]),)
        self.lora_layer = LoraLayer(path, len(weight), modules, self)

    def __call__(self, tokens: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        x = self.weight[tokens]
        if lora is not None:
            lora.embed(self.path, tokens, x)
        return x

    def products(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.weight.dtype) @ self.weight

    def squared_norms(self) -> torch.Tensor:
        return squared_norms(self.weight.t())
