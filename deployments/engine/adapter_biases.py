"""Swap the biases that an adapter trained in and out of the base model, for the reference decoder.

PEFT keeps A and B of each adapter apart, but loads trained biases (`bias` is "all" or "lora_only")
into the base model itself, where every other adapter would then use them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from deployments.engine.lora.base_copies import base_name
from deployments.engine.lora.peft_features import WEIGHTS_FILE


class AdapterBiases:
    """Hold the base model's own biases and those of each adapter."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = {n: p for n, p in model.named_parameters() if n.endswith("bias")}
        self._base = {path: p.detach().clone() for path, p in self._parameters.items()}
        self._trained: dict[str, dict[str, torch.Tensor]] = {}
        self._active: str | None = None

    @contextlib.contextmanager
    def loading(self, adapter: str) -> Iterator[None]:
        """Keep the base's biases while PEFT loads an adapter, and store those that it trained."""
        self.select(None)
        try:
            yield
            self._trained[adapter] = {
                path: p.detach().clone()
                for path, p in self._parameters.items()
                if not torch.equal(p, self._base[path])
            }
        finally:
            self._copy(self._base)

    @torch.no_grad()
    def take(self, directory: Path, left_out: Iterable[str]) -> set[str]:
        """Take biases that PEFT has found no place for, inside `loading`: it looks for them where
        the adapter had them when it was saved, and other adapters have wrapped those layers since.

        Returns the names in the file of those that are the base model's.
        """
        taken = set()
        with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
            for name in {*left_out} & {*file.keys()}:
                own = self._parameters.get(base_name(name))
                if own is not None and list(own.shape) == file.get_slice(name).get_shape():
                    own.copy_(file.get_tensor(name))
                    taken.add(name)
        return taken

    def select(self, adapter: str | None) -> None:
        """Give the model the biases of an adapter; None is the base model."""
        if adapter != self._active:
            before = self._trained.get(self._active or "", {})
            self._copy({path: self._base[path] for path in before})
            self._copy(self._trained.get(adapter or "", {}))
            self._active = adapter

    def forget(self, adapter: str) -> None:
        if adapter == self._active:
            self.select(None)
        self._trained.pop(adapter, None)

    @torch.no_grad()
    def _copy(self, values: dict[str, torch.Tensor]) -> None:
        for path, value in values.items():
            self._parameters[path].copy_(value)
