"""Answers and likelihoods as a CPU serves them: the engine, with weights of eight or four bits."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.engine.core import EngineLimits
from deployments.engine.decoder_factory import FastLimits, Weights, build_decoder
from deployments.engine.engine import Engine
from deployments.engine.errors import EngineError, RequestRefused
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.repetition import without_loop
from deployments.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from scripts.datasets.record import DataError
from scripts.environment import device_name
from scripts.evaluation.answer_file import AnswerRow
from scripts.evaluation.answer_model import EvaluationQuestion
from scripts.evaluation.protocol import Protocol
from scripts.lora.chosen_base import ChosenBase
from scripts.lora.errors import LoraError
from scripts.lora.saved_adapter import prompt_format_of

_NAME = "adapter"
_POSITIONS = 4096  # of a question with its answer or its reference, at most


class ServedModel:
    """Do what AnswerModel does (answer_model.py), through the engine on this CPU.

    Args:
        weights: of the base; "none" for torch's, in float32.
        rows: answers that decode together.

    Raises:
        LoraError: these weights cannot serve the base or the adapter.
    """

    def __init__(
        self,
        base: ChosenBase,
        adapter: Path,
        weights: Weights,
        rows: int,
        measures: Mapping[str, Any] | None = None,
    ) -> None:
        self._prompted = {"base": base, "adapter": base.prompted(prompt_format_of([adapter]))}
        self._measures = dict(measures or {})
        self._loop_words = self._measures.pop("loop_words", 0)
        dtype: Any = "float32" if weights == "none" else "auto"
        loaded = load_pretrained(base.path, base.family, device="cpu", dtype=dtype)
        limits = FastLimits(rows, _POSITIONS, max_adapters=1)
        try:
            decoder = build_decoder(loaded, "fast", limits, {_NAME: adapter}, weights=weights)
            assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
            packed = decoder.read_adapter(adapter)
            decoder.install(_NAME, packed)
        except EngineError as error:
            raise LoraError(f"--dtype {weights}: {error}; give --dtype float32") from None
        self.adapter_mib = packed.num_bytes / 2**20
        self._engine = Engine.on_thread(decoder, EngineLimits(rows, rows, _POSITIONS))

    @property
    def prompt_formats(self) -> dict[str, str]:
        """Return system -> the prompt format that it is asked in."""
        return {system: base.entry.prompt_format for system, base in self._prompted.items()}

    def answer(
        self,
        questions: Sequence[EvaluationQuestion],
        system: str,
        protocol: Protocol,
        batch_size: int,
        on_answers: Callable[[int], object] = lambda count: None,
    ) -> Iterator[list[AnswerRow]]:
        """Yield rows batch by batch, as AnswerModel does."""
        order = sorted(questions, key=lambda item: (len(item.question), item.id))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            yield asyncio.run(self._rows(batch, system, protocol))
            on_answers(len(batch))

    def close(self) -> None:
        self._engine.close()

    async def _rows(
        self, batch: Sequence[EvaluationQuestion], system: str, protocol: Protocol
    ) -> list[AnswerRow]:
        began = time.perf_counter()
        answers = await asyncio.gather(*(self._answer(item, system, protocol) for item in batch))
        time_s = round((time.perf_counter() - began) / len(batch), 4)
        likelihoods = await asyncio.gather(*(self._likelihood(item, system) for item in batch))
        return [
            AnswerRow(
                id=item.id,
                system=system,
                answer=without_loop(event.text, self._loop_words).strip(),
                num_tokens=event.num_tokens,
                hit_limit=event.finish_reason is FinishReason.LENGTH,
                nll=nll,
                num_reference_tokens=num_tokens,
                time_s=time_s,
                device=device_name("cpu"),
            )
            for item, event, (nll, num_tokens) in zip(batch, answers, likelihoods, strict=True)
        ]

    async def _answer(
        self, item: EvaluationQuestion, system: str, protocol: Protocol
    ) -> TokenEvent:
        instruction = protocol.base_instruction if system == "base" else ""
        prompt = self._prompted[system].prompt(item.question, instruction)
        sampling = SamplingParams(protocol.max_new_tokens, **self._measures)
        return await self._ask(item.id, prompt, system, sampling)

    async def _likelihood(self, item: EvaluationQuestion, system: str) -> tuple[float | None, int]:
        """Return the reference's negative log-likelihood in nats, and its tokens."""
        if item.reference is None:
            return None, 0
        pair = self._prompted[system].pair(item.question, item.reference)
        sampling = SamplingParams(0, echo=True, logprobs=0)
        event = await self._ask(item.id, pair.prompt + pair.answer, system, sampling)
        nll = -math.fsum(score.logprob or 0.0 for score in event.scores[len(pair.prompt) :])
        if not math.isfinite(nll):
            raise DataError(
                f"question {item.id}: the likelihood of its reference is not finite ({nll}): the "
                "adapter is damaged"
            )
        return nll, len(pair.answer)

    async def _ask(
        self, id_: str, prompt: Sequence[int], system: str, sampling: SamplingParams
    ) -> TokenEvent:
        request = Request(id_, tuple(prompt), _NAME if system == "adapter" else None, sampling)
        try:
            async for event in self._engine.generate(request, stream=False):
                last = event
        except RequestRefused as error:
            raise DataError(f"question {id_}: {error}; leave it out, or take float32") from None
        if last.error is not None:
            raise LoraError(f"question {id_}: {last.error.message}")
        return last
