"""Random mixtures of requests through a step decoder, and the logits that each of them saw."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling.loop import StepLoop


@dataclass(frozen=True)
class Mixture:
    """Requests, the step before which each arrives, and how prompts are cut and prefixes kept."""

    requests: Sequence[Request]
    arrivals: Sequence[int]
    prefill_tokens: int
    reuses_prefixes: bool = False
    tries_drafts: bool = False


def random_mixture(
    seed: int,
    vocab_size: int,
    adapters: Sequence[str | None],
    *,
    num_requests: int,
    prompt_tokens: tuple[int, int],
    output_tokens: int,
    **options: bool,
) -> Mixture:
    """Return requests of random lengths, adapters and arrivals; half begin alike, and some repeat
    a passage, so that there is something to reuse and to guess."""
    rng = random.Random(seed)
    stem = tuple(rng.choices(range(4, vocab_size), k=prompt_tokens[1]))
    requests, arrivals = [], []
    for number in range(num_requests):
        length = rng.randint(*prompt_tokens)
        ids = tuple(rng.choices(range(4, vocab_size), k=length))
        if rng.random() < 0.5:
            shared = rng.randint(0, length - 1)
            ids = stem[:shared] + ids[shared:]
        if rng.random() < 0.5:
            ids = (ids[: length // 2] * 2)[:length] + ids[-1:]
        sampling = SamplingParams(output_tokens, seed=number)
        requests.append(Request(f"r{number}", ids, rng.choice(list(adapters)), sampling))
        arrivals.append(rng.randint(0, 2 * num_requests))
    return Mixture(requests, arrivals, rng.choice([16, 37, 200, 4096]), **options)


def logits_of(decoder: ModelRunner, mixture: Mixture) -> list[torch.Tensor]:
    """Run a mixture to its end; return the logits (tokens, V) that each request's tokens were
    picked from."""
    recorder = _Recorder(decoder._sampler)
    decoder._sampler = recorder  # type: ignore[assignment]
    outbox = Outbox(lambda output: None)
    loop = StepLoop(
        decoder,
        mixture.prefill_tokens,
        outbox,
        lambda: 0.0,
        reuses_prefixes=mixture.reuses_prefixes,
        tries_drafts=mixture.tries_drafts,
    )
    eos_ids = decoder.info.eos_ids
    rows = [
        EngineRow(number, request, outbox, eos_ids, lambda: 0.0)
        for number, request in enumerate(mixture.requests)
    ]
    step = 0
    try:
        while step <= max(mixture.arrivals) or loop.has_work:
            loop.step([row for row, at in zip(rows, mixture.arrivals, strict=True) if at == step])
            outbox.flush()
            step += 1
    finally:
        decoder._sampler = recorder.inner
    return [torch.stack(recorder.seen[request.sampling.seed]) for request in mixture.requests]


def differing(decoder: ModelRunner, mixture: Mixture) -> list[int]:
    """Return the positions of the requests whose logits beside the others are not, to the bit,
    those that each has alone, read at once and without prefixes or guesses."""
    together = logits_of(decoder, mixture)
    wrong = []
    for number, request in enumerate(mixture.requests):
        (alone,) = logits_of(decoder, Mixture([request], [0], 1 << 16))
        # Steps ahead of an end that was not known yet are nobody's.
        count = min(len(alone), len(together[number]), request.sampling.max_tokens)
        if not torch.equal(alone[:count], together[number][:count]):
            wrong.append(number)
    return wrong


class _Recorder:
    """Stand before a sampler and keep the logits that it is shown, by the request's seed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seen: dict[int | None, list[torch.Tensor]] = {}
        self._seeds: dict[int, int | None] = {}

    def begin(self, row: int, params: SamplingParams, context: Sequence[int]) -> None:
        self._seeds[row] = params.seed
        self.seen[params.seed] = []
        self.inner.begin(row, params, context)

    def is_argmax(self, rows: Sequence[int], ahead: int = 0) -> bool:
        return False

    def pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        for row, line in zip(rows, logits, strict=True):
            self.seen[self._seeds[row]].append(line.to("cpu", torch.float32, copy=True))
        picked: torch.Tensor = self.inner.pick(logits, rows)
        return picked

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
