"""Accept requests, have a core run them, and hand out token events.

Every accepted request gets exactly one terminal event: for end of sequence, length, stop string,
deadline, cancellation, a decoder that raises, or a core that dies.

    engine = Engine(decoder, EngineLimits(...)); engine.start()
    async for event in engine.generate(request): ...
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import TypeVar

from deployments.engine.core import EngineCore, EngineLimits, ThreadCore
from deployments.engine.decoder import DecoderInfo, GroupDecoder, StepDecoder
from deployments.engine.errors import (
    DecoderFailed,
    EmptyPrompt,
    EngineStopped,
    OutputTooLong,
    PromptTooLong,
    QueueFull,
    UnknownAdapter,
    check_features,
    check_scores,
    check_token_ids,
)
from deployments.engine.output import Pace, RequestState
from deployments.engine.request import FinishReason, Request, StepOutput, TokenEvent
from deployments.engine.scheduling.loop import traceback_without_message
from deployments.engine.thread import TorchThread

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Engine:
    """Turn requests into events. All requests must be on one event loop at a time.

    Args:
        core: runs the decoder, and was started.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        core: EngineCore,
        limits: EngineLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.core = core
        self._clock = clock
        self._numbers = itertools.count(1)
        self._requests: dict[int, RequestState] = {}
        self._num_running = 0
        self._num_shown = 0
        self._pace = Pace(limits.emit_interval_s, limits.emits_together)
        self._asyncio_loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def on_thread(
        cls,
        decoder: StepDecoder | GroupDecoder,
        limits: EngineLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        thread: TorchThread | None = None,
    ) -> "Engine":
        """Return an engine whose decoder runs on a thread of this process, started."""
        core = ThreadCore(decoder, limits, clock=clock, thread=thread)
        core.start()
        return cls(core, limits, clock=clock)

    @property
    def info(self) -> DecoderInfo:
        return self.core.info

    @property
    def num_waiting(self) -> int:
        return len(self._requests) - self._num_running

    @property
    def num_running(self) -> int:
        return self._num_running

    def close(self, timeout_s: float = 10.0) -> None:
        """End every request with EngineStopped and wait for the core, at most `timeout_s`."""
        self.core.close(timeout_s)

    def check(self) -> None:
        """Raise EngineStopped if this engine can no longer serve."""
        self.core.check()

    async def generate(
        self, request: Request, *, stream: bool = True
    ) -> AsyncGenerator[TokenEvent, None]:
        """Yield the events of one request; only the last has a finish_reason.

        With `stream=False` there is one event, holding the whole text. Closing the generator, or
        cancelling the task that iterates it, cancels the request.

        Raises:
            RequestRefused: nothing was queued.
            EngineStopped: the engine no longer runs.
        """
        self._check_request(request)
        if request.sampling.grammar is not None:
            await asyncio.wrap_future(self.core.prepare(request.sampling.grammar))
            self._check_request(request)  # others came meanwhile
        self._listen()
        number = next(self._numbers)
        state = RequestState(
            request,
            self.core.decode,
            stream=stream,
            pace=self._pace,
            clock=self._clock,
            hidden_ids=self.info.hidden_ids,
            data_of=self.core.token_bytes,
        )
        self.core.add(number, request)
        self._requests[number] = state
        try:
            while True:
                event = await state.events.get()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if number in self._requests:  # the core has not ended it
                self.core.abort(number)
                self._forget(number)
                self._show()

    def run_between_steps(self, task: Callable[[], ResultT]) -> "Future[ResultT]":
        """Run `task` before the decoder's next step or group.

        This is how to change the decoder (load or evict an adapter) while it serves.

        Raises:
            EngineStopped: the engine no longer runs.
        """
        return self.core.run_between_steps(task)

    def _check_request(self, request: Request) -> None:
        info, limits = self.info, self.limits
        num_prompt_tokens = len(request.prompt_ids)
        if not num_prompt_tokens:
            raise EmptyPrompt
        longest = info.longest_prompt(limits.max_input_tokens)
        if num_prompt_tokens > longest:
            raise PromptTooLong(num_prompt_tokens, longest)
        if info.num_token_ids is not None:
            check_token_ids(request.prompt_ids, info.num_token_ids)
        check_features(request.sampling, info.refuses)
        check_scores(request.sampling, num_prompt_tokens)
        max_tokens = request.sampling.max_tokens
        room = info.room_after(num_prompt_tokens)
        if room is not None and max_tokens > room:
            raise OutputTooLong(num_prompt_tokens, max_tokens, num_prompt_tokens + room)
        if request.adapter is not None and request.adapter not in info.adapters:
            raise UnknownAdapter(request.adapter, info.adapters)
        if self.num_waiting >= limits.max_waiting:
            raise QueueFull(self.num_waiting, limits.max_waiting)

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._asyncio_loop:
            self._asyncio_loop = loop
            self.core.listen(loop, self._take, self._end_all)

    def _take(self, output: StepOutput) -> None:
        """Sort what a step made into the requests' events."""
        requests, now = self._requests, self._clock()
        for number, num_cached in output.started:
            if (state := requests.get(number)) is not None and not state.has_begun:
                state.begin(num_cached)
                self._num_running += 1
        for number, scores in output.scores.items():
            if (state := requests.get(number)) is not None:
                state.score(scores)
        for number, drafts in output.drafts.items():
            if (state := requests.get(number)) is not None:
                state.count(drafts)
        for number, token in zip(output.numbers, output.tokens, strict=True):
            if (state := requests.get(number)) is not None:
                try:
                    state.push(token, now)
                except Exception as error:
                    _break(state, error)
                if state.is_done:  # it found a stop string or a loop, or broke
                    self.core.abort(number)
                    self._forget(number)
        for ended in output.ended:
            if (state := requests.get(ended.number)) is not None:
                try:
                    state.finish(ended.reason, ended.num_tokens, ended.error)
                except Exception as error:
                    _break(state, error)
                self._forget(ended.number)
        self._show()

    def _end_all(self, reason: EngineStopped) -> None:
        for number, state in list(self._requests.items()):
            state.finish(FinishReason.ERROR, 0, reason.info)
            self._forget(number)
        self._show()

    def _forget(self, number: int) -> None:
        state = self._requests.pop(number)
        self._num_running -= state.has_begun

    def _show(self) -> None:
        if self._num_running != self._num_shown:
            self._num_shown = self._num_running
            limits = self.limits
            together_s = self._num_shown / limits.max_events_per_s
            self._pace.interval_s = max(limits.emit_interval_s, together_s)


def _break(state: RequestState, error: Exception) -> None:
    """End one request whose tokens could not be made a text; the others of its step go on."""
    trace = traceback_without_message(error)
    logger.error("request %s: its text cannot be made: %s", state.request.request_id, trace)
    state.fail(DecoderFailed("the text of the answer could not be made").info)
