"""Answers and likelihoods of a base model with and without one adapter, in batches."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from deployments.engine.repetition import without_loop
from scripts.datasets.record import DataError
from scripts.environment import device_name
from scripts.evaluation.answer_file import AnswerRow
from scripts.evaluation.protocol import Protocol
from scripts.lora.base_model import load_base
from scripts.lora.batches import answer_losses, padded, tensors_of
from scripts.lora.chosen_base import ChosenBase
from scripts.lora.saved_adapter import prompt_format_of, with_adapter

# References in one forward pass: the logits of 16 x 400 tokens x 50,000 words are 1.3 GB.
SCORED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class EvaluationQuestion:
    """A question; `reference` is None where only the answer is wanted."""

    id: str
    question: str
    reference: str | None


class _Ended(StoppingCriteria):
    """Tells how many answers of a batch have ended, and stops none."""

    def __init__(self, end_id: int, tell: Callable[[int], object]) -> None:
        self._end_id = end_id
        self._tell = tell
        self._rows: torch.Tensor | None = None  # (B,), whether each has ended
        self._num_told = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        is_end = input_ids[:, -1] == self._end_id
        self._rows = is_end if self._rows is None else self._rows | is_end
        self.tell_rest(int(self._rows.sum()))
        return torch.zeros_like(is_end)

    def tell_rest(self, num_ended: int) -> None:
        if num_ended > self._num_told:
            self._tell(num_ended - self._num_told)
            self._num_told = num_ended


class AnswerModel:
    """A base model with one adapter that can be switched off.

    Args:
        adapter: its folder; its questions are written in the prompt format that it records.
        dtype: of the base; the adapter is loaded in the same.
        measures: against repetition: arguments of transformers' `generate`, and `loop_words`.

    Raises:
        AdapterMismatch: the adapter is damaged, or of a model with other layers.
        BaseModelError: the base cannot be prompted as the adapter was trained.
    """

    def __init__(
        self,
        base: ChosenBase,
        adapter: Path,
        dtype: str,
        device: str,
        measures: Mapping[str, Any] | None = None,
    ) -> None:
        self._base = base
        self._prompted = {"base": base, "adapter": base.prompted(prompt_format_of([adapter]))}
        self._measures = dict(measures or {})
        self._loop_words = self._measures.pop("loop_words", 0)
        self._device = device
        model = load_base(base.path, base.family, dtype)
        self._model = with_adapter(model, adapter).to(device).eval()

    @property
    def prompt_formats(self) -> dict[str, str]:
        """Return system -> the prompt format that it is asked in."""
        return {system: base.entry.prompt_format for system, base in self._prompted.items()}

    @property
    def adapter_mib(self) -> float:
        """Return the memory of the adapter's weights, MiB."""
        sizes: list[int] = [
            weight.nbytes for name, weight in self._model.named_parameters() if "lora_" in name
        ]
        return sum(sizes) / 2**20

    @torch.inference_mode()
    def answer(
        self,
        questions: Sequence[EvaluationQuestion],
        system: str,
        protocol: Protocol,
        batch_size: int,
        on_answers: Callable[[int], object] = lambda count: None,
    ) -> Iterator[list[AnswerRow]]:
        """Yield rows batch by batch; questions of similar length share a batch.

        Args:
            system: "base" or "adapter".
            on_answers: told how many more answers have just ended; before their batch is yielded.

        Raises:
            DataError: a likelihood is not finite; names the question.
        """
        order = sorted(questions, key=lambda item: (len(item.question), item.id))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            with self._switched(system):
                began = time.perf_counter()
                ended = _Ended(self._base.tokenizer.eos_token_id, on_answers)
                outputs = self._generate([item.question for item in batch], system, protocol, ended)
                ended.tell_rest(len(batch))
                time_s = (time.perf_counter() - began) / len(batch)
                likelihoods = self._likelihoods(batch, system)
            yield [
                AnswerRow(
                    id=item.id,
                    system=system,
                    answer=self._text(ids),
                    num_tokens=len(ids),
                    hit_limit=self._base.tokenizer.eos_token_id not in ids,
                    nll=likelihoods[item.id][0],
                    num_reference_tokens=likelihoods[item.id][1],
                    time_s=round(time_s, 4),
                    device=device_name(self._device),
                )
                for item, ids in zip(batch, outputs, strict=True)
            ]

    def _text(self, ids: Sequence[int]) -> str:
        text = self._base.tokenizer.decode(ids, skip_special_tokens=True)
        return without_loop(text, self._loop_words).strip()

    def _generate(
        self, questions: Sequence[str], system: str, protocol: Protocol, ended: "_Ended"
    ) -> list[list[int]]:
        """Return generated ids up to the end-of-sequence id, which is kept."""
        instruction = protocol.base_instruction if system == "base" else ""
        base = self._prompted[system]
        prompts = [base.prompt(question, instruction) for question in questions]
        left = self._base.family == "causal"
        output = self._model.generate(
            input_ids=padded(prompts, self._base.pad_id, left=left).to(self._device),
            attention_mask=padded([[1] * len(p) for p in prompts], 0, left=left).to(self._device),
            max_new_tokens=protocol.max_new_tokens,
            do_sample=False,
            **self._measures,
            pad_token_id=self._base.pad_id,
            stopping_criteria=StoppingCriteriaList([ended]),
        )
        start = max(map(len, prompts)) if left else 1  # T5's first is the start id
        end = self._base.tokenizer.eos_token_id
        return [
            ids[: ids.index(end) + 1] if end in ids else ids for ids in output[:, start:].tolist()
        ]

    def _likelihoods(
        self, batch: Sequence[EvaluationQuestion], system: str
    ) -> dict[str, tuple[float | None, int]]:
        """Return id -> (negative log-likelihood of the reference in nats, its tokens)."""
        found: dict[str, tuple[float | None, int]] = {item.id: (None, 0) for item in batch}
        scored = [
            (item.id, self._prompted[system].pair(item.question, item.reference))
            for item in batch
            if item.reference is not None
        ]
        start_id = getattr(self._model.config, "decoder_start_token_id", None)
        for start in range(0, len(scored), SCORED_TOGETHER):
            ids, pairs = zip(*scored[start : start + SCORED_TOGETHER], strict=True)
            tensors = tensors_of(pairs, self._base.family, self._base.pad_id, start_id)
            tensors = {name: tensor.to(self._device) for name, tensor in tensors.items()}
            labels = tensors.pop("labels")
            losses = answer_losses(self._model(**tensors), labels, self._base.family)
            for id_, pair, nll in zip(ids, pairs, losses.double().sum(dim=1).tolist(), strict=True):
                if not math.isfinite(nll):
                    raise DataError(
                        f"question {id_}: the likelihood of its reference is not finite ({nll}): "
                        "the adapter is damaged, or --dtype is too narrow for it; try float32"
                    )
                found[id_] = (nll, len(pair.answer))
        return found

    def _switched(self, system: str) -> contextlib.AbstractContextManager[Any]:
        disabled: contextlib.AbstractContextManager[Any] = self._model.disable_adapter()
        return disabled if system == "base" else contextlib.nullcontext()
