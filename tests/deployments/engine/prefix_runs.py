"""Drives StepLoop without a thread: requests that arrive and leave before given steps."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.engine.decoder import StepDecoder
from deployments.engine.request import Request, SchedulerOutput, StepOutput, TokenScore
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling.loop import StepLoop


@dataclass
class Answers:
    """By position of the request."""

    tokens: list[list[int]]
    num_cached: dict[int, int] = field(default_factory=dict)
    num_ended: int = 0
    num_read: int = 0  # prompt tokens, of all
    scores: dict[int, list[TokenScore]] = field(default_factory=dict)

    def take(self, output: StepOutput) -> None:
        for number, scores in output.scores.items():
            self.scores.setdefault(number, []).extend(scores)
        self.num_cached |= dict(output.started)
        for number, token in zip(output.numbers, output.tokens, strict=True):
            self.tokens[number].append(token)
        self.num_ended += len(output.ended)


class Driver:
    """Keeps its loop, and with it what the rows hold, from one `run` to the next."""

    def __init__(
        self,
        decoder: StepDecoder,
        *,
        reuses_prefixes: bool,
        tries_drafts: bool = False,
        prefill_tokens: int = 48,
        long_prompt_slowdown: float | None = None,
    ) -> None:
        self.decoder = decoder
        self._taker: Callable[[StepOutput], None] = lambda output: None
        self._outbox = Outbox(lambda output: self._taker(output))
        durations = random.Random(0)
        times = itertools.accumulate(durations.random() for _ in itertools.count())
        self.loop = StepLoop(
            decoder,
            prefill_tokens,
            self._outbox,
            (lambda: 0.0) if long_prompt_slowdown is None else times.__next__,
            reuses_prefixes=reuses_prefixes,
            tries_drafts=tries_drafts,
            long_prompt_slowdown=long_prompt_slowdown,
        )

    def run(
        self,
        requests: Sequence[Request],
        *,
        arrivals: Sequence[int] | None = None,
        cancels: Mapping[int, int] | None = None,
    ) -> Answers:
        """All requests to their end.

        Args:
            arrivals: step before which each arrives; default: all before the first.
            cancels: position of a request -> steps after its arrival when its client leaves.
        """
        answers = Answers([[] for _ in requests])
        self._taker = answers.take
        due = list(arrivals or [0] * len(requests))
        leaving = {i: due[i] + after for i, after in (cancels or {}).items()}
        eos = self.decoder.info.eos_ids
        rows = [EngineRow(i, r, self._outbox, eos, lambda: 0.0) for i, r in enumerate(requests)]
        step = 0
        while step <= max(due) or self.loop.has_work:
            for i in (i for i, at in leaving.items() if at == step):
                rows[i].cancel()
            self.loop.step([rows[i] for i, at in enumerate(due) if at == step])
            self._outbox.flush()
            step += 1
            assert step < 5000, "it does not end"
        return answers


class Plans:
    """Notes what a decoder is asked for in each step."""

    def __init__(self, decoder: StepDecoder) -> None:
        self.steps: list[SchedulerOutput] = []
        inner = decoder.step

        def step(scheduled: SchedulerOutput) -> object:
            self.steps.append(scheduled)
            return inner(scheduled)

        decoder.step = step  # type: ignore[method-assign, assignment]

    @property
    def num_read(self) -> int:
        return sum(chunk.stop - chunk.start for plan in self.steps for chunk in plan.prefill)
