"""Time transformers' `generate` over PEFT's layers, the baseline of the engine's benchmark."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from deployments.engine.model_loader import Pretrained
from deployments.engine.request import Request
from scripts.lora.batches import padded


class PeftBaseline:
    """One PEFT model with several adapters.

    Args:
        folders: adapter name -> its folder.
        num_tokens: generated for each request; end-of-sequence tokens are ignored.
    """

    def __init__(self, base: Pretrained, folders: Mapping[str, Path], num_tokens: int) -> None:
        self._pad_id = base.pad_id
        self._is_causal = base.family == "causal"
        model: Any = None
        for name, folder in folders.items():
            if model is None:
                model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=name)
            else:
                model.load_adapter(str(folder), adapter_name=name)
        self._model = model.eval()
        self._device = base.model.device
        config = base.model.generation_config
        config.eos_token_id, config.do_sample = None, False
        config.max_new_tokens, config.pad_token_id = num_tokens, base.pad_id

    def mixed(self, requests: Sequence[Request]) -> dict[str, float]:
        """Time one batch in which each row has its adapter."""
        names = [request.adapter for request in requests]
        return _timed(lambda: self._generate(requests, adapter_names=names))

    def sequential(self, requests: Sequence[Request]) -> dict[str, float]:
        """Time one request after the other, with `set_adapter` before each."""

        def each() -> int:
            num_tokens = 0
            for request in requests:
                self._model.set_adapter(request.adapter, inference_mode=True)
                num_tokens += self._generate([request])
            return num_tokens

        return _timed(each)

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request], **options: Any) -> int:
        """Return the generated tokens of one batch, padded on the family's side."""
        longest = max(len(request.prompt_ids) for request in requests)
        prompts = [list(request.prompt_ids) for request in requests]
        ones, left = [[1] * len(prompt) for prompt in prompts], self._is_causal
        output = self._model.generate(
            input_ids=padded(prompts, self._pad_id, left=left).to(self._device),
            attention_mask=padded(ones, 0, left=left).to(self._device),
            **options,
        )
        start = longest if self._is_causal else 1
        return int(output[:, start:].numel())


def _timed(generate: Callable[[], int]) -> dict[str, float]:
    started = time.perf_counter()
    num_tokens = generate()
    seconds = time.perf_counter() - started
    return {"tokens_per_s": num_tokens / seconds, "seconds": seconds}
