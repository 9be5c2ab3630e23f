"""The oracle: PEFT's `set_adapter` + transformers' `generate`, one request at a time, float32.

Written against the libraries only, so that it shares no code with the engine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from tests.tiny_models import load_model


class Oracle:
    """A base model with named adapters."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        model = load_model(base)
        names = list(adapters)
        self._model: Any = PeftModel.from_pretrained(
            model, str(adapters[names[0]]), adapter_name=names[0]
        )
        for name in names[1:]:
            self._model.load_adapter(str(adapters[name]), adapter_name=name)
        self._model.eval()
        self._is_seq2seq = bool(model.config.is_encoder_decoder)

    @torch.inference_mode()
    def generate(
        self, prompt_ids: Sequence[int], adapter: str | None, max_new_tokens: int, **more: float
    ) -> list[int]:
        """Greedy token ids of the answer, with the end-of-sequence id where it came."""
        return self.generate_with_gaps(prompt_ids, adapter, max_new_tokens, **more)[0]

    @torch.inference_mode()
    def generate_with_gaps(
        self, prompt_ids: Sequence[int], adapter: str | None, max_new_tokens: int, **more: float
    ) -> tuple[list[int], list[float]]:
        """The answer's token ids, and for each the distance between the two largest logits."""
        ids = torch.tensor([list(prompt_ids)])
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        options |= {**more, "return_dict_in_generate": True, "output_logits": True}
        mask = torch.ones_like(ids)
        if adapter is None:
            with self._model.disable_adapter():
                output = self._model.generate(input_ids=ids, attention_mask=mask, **options)
        else:
            self._model.set_adapter(adapter)
            output = self._model.generate(input_ids=ids, attention_mask=mask, **options)
        start = 1 if self._is_seq2seq else ids.shape[1]
        answer: list[int] = output.sequences[0, start:].tolist()
        largest = torch.cat(output.logits).topk(2, dim=-1).values
        return answer, (largest[:, 0] - largest[:, 1]).tolist()

    @torch.inference_mode()
    def logprobs(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int], adapter: str | None
    ) -> torch.Tensor:
        """Log-probabilities (n, V): of a decoder-only model for each token of prompt and answer
        from the second on, of an encoder-decoder for each of the answer."""
        if self._is_seq2seq:
            start = self._model.config.decoder_start_token_id
            inputs = {
                "input_ids": torch.tensor([list(prompt_ids)]),
                "decoder_input_ids": torch.tensor([[start, *answer_ids[:-1]]]),
            }
        else:
            inputs = {"input_ids": torch.tensor([[*prompt_ids, *answer_ids][:-1]])}
        if adapter is None:
            with self._model.disable_adapter():
                logits = self._model(**inputs).logits
        else:
            self._model.set_adapter(adapter)
            logits = self._model(**inputs).logits
        found: torch.Tensor = logits[0].log_softmax(-1)
        return found
