"""Serve shell of the model: one base, its adapters and one engine, on one GPU or the CPU."""

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import AsyncGenerator
from typing import Any

from deployments.channel.frames import ChannelAddress
from deployments.channel.sender import ChannelLost, EventSender
from deployments.clocks import ClockOffsets
from deployments.engine.errors import EngineError
from deployments.engine.request import Request, TokenEvent, failed_event
from deployments.handover import ROUTER, ModelHandover
from deployments.interpreter import tune_interpreter
from deployments.live_settings import ModelLiveSettings
from deployments.messages import OTHER_CONFIG, GenerateRequest
from deployments.model.adapter_follower import AdapterFollower
from deployments.model.adapter_manager import AdapterManager
from deployments.model.adapter_metrics import AdapterMetrics
from deployments.model.adapter_registry import AdapterGone
from deployments.model.answers import AnswerMetrics, AnswerWatch
from deployments.model.loading import LoadModel, first_sync, start_on_thread, start_process
from deployments.model.openai_calls import OpenAICalls
from deployments.model.operator_calls import OperatorCalls, operation_threads
from deployments.model.scaling import ROWS
from deployments.model.start_times import StartTimes
from deployments.observe.sampling import Sampler
from deployments.observe.tracing import start_tracing, stop_tracing
from deployments.replica import live_settings, replica_id, use_serve_handlers
from deployments.replica_set import replicas_beside
from deployments.settings import Settings

logger = logging.getLogger(__name__)

# Texts up to here are tokenised on the event loop.
_SHORT_CHARS = 1000
# Seconds in which the last events of answers leave before a replica without an engine ends.
_LAST_WORDS_S = 1.0


class ModelReplica(OperatorCalls, OpenAICalls):
    """One replica. It holds the catalogue's adapters, and each request names the one it is for.

    Args:
        load: makes a model that runs on a thread of this process; None for the settings' model in a
            process of its own.
    """

    def __init__(self, settings: Settings, device: str, load: LoadModel | None = None) -> None:
        self._started = StartTimes()
        self._started.ended("process")
        use_serve_handlers("INFO")
        start_tracing("model", replica_id)
        logger.info("starting on %s", device)
        self._live, self._refused = ModelLiveSettings(), []
        self._config = settings.model_config_id
        self._handover = ModelHandover(self._config, lambda: replicas_beside(ROUTER))
        self._clocks = ClockOffsets()
        self._metrics = AnswerMetrics()
        self._follower: AdapterFollower | None = None
        self._adapters: AdapterManager | None = None
        self._sampler: Sampler | None = None
        if load is None:
            self._model = start_process(settings, device, _end_soon)
        else:
            self._model = start_on_thread(load, settings, device)
        self._engine = self._model.engine
        self._operations = operation_threads()
        self._started.ended("base")
        try:
            self._make_ready()
        except BaseException:
            self.close()
            raise

    def _make_ready(self) -> None:
        """Load the adapters, warm up, and begin to follow and to measure."""
        if self._model.make_manager is not None:
            self._adapters = self._model.make_manager(run=self._engine.run_between_steps)
            first_sync(self._adapters)
        self._started.ended("adapters")
        if self._model.warm_up is not None:
            self._engine.run_between_steps(self._model.warm_up).result()
        self._started.ended("warm_up")
        tune_interpreter()
        if self._adapters is not None:
            self._follower = AdapterFollower(self._adapters, lambda: self._live.adapter_check_s)
        self._sender = EventSender()
        processes = {"model": os.getpid()}
        if self._model.engine_pid is not None:
            processes["engine"] = self._model.engine_pid
        engine, measured = self._engine, self._metrics  # not self, which __del__ is to end
        samples = [lambda: measured.sample(engine.num_running, engine.num_waiting)]
        if self._adapters is not None:
            samples.append(AdapterMetrics(self._adapters).sample)
        self._sampler = Sampler(processes, *samples)

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the events of one answer. The last one is terminal; with `error` it is a refusal
        or a failure."""
        if call.config not in (None, self._config):
            yield failed_event(call.request_id, OTHER_CONFIG)
            return
        is_logged = self._live.log_requests
        watch = AnswerWatch(call, self._metrics, is_logged)
        try:
            async with self._leased(call) as adapter:
                if self._adapters is not None and adapter is not None:
                    watch.leased(self._adapters.state(adapter))
                prompt_ids = await self._encode(call, adapter)
                deadline_s = self._clocks.seconds_left(call.deadline_at, call.sender)
                sampling = self.sampling_of(call, len(prompt_ids))
                request = Request(
                    *(call.request_id, tuple(prompt_ids), adapter, sampling, deadline_s),
                    is_logged=is_logged,
                    tenant=call.tenant,
                )
                watch.accepted()
                generated = self._engine.generate(request, stream=call.stream)
                async with contextlib.aclosing(generated) as events:
                    async for event in events:
                        watch.saw(event)
                        yield event
        except EngineError as error:
            event = failed_event(call.request_id, error.info)
            watch.failed(event)
            yield event
        finally:
            watch.end()

    async def answer(self, call: GenerateRequest) -> TokenEvent:
        """Return the one event of a call that is not streamed."""
        async with contextlib.aclosing(self.generate(call)) as events:
            return await anext(events)

    async def stream(self, call: GenerateRequest, stream_id: int, address: ChannelAddress) -> bool:
        """Generate an answer whose events go to the router replica at `address`.

        Returns:
            True when the last event was sent; False when the router replica cannot be reached.
        """
        try:
            connection = await self._sender.connect(address)
            with connection.answering():
                async with contextlib.aclosing(self.generate(call)) as events:
                    async for event in events:
                        connection.send(stream_id, event)
        except ChannelLost as error:
            logger.warning("request %s: %s", call.request_id, error)
            return False
        return True

    def _leased(self, call: GenerateRequest) -> contextlib.AbstractAsyncContextManager[str | None]:
        """Keep the call's adapter on the device. Gives the decoder's key, None for the base."""
        if call.adapter is None:
            return contextlib.nullcontext()
        if self._adapters is None:
            raise AdapterGone(f"adapter '{call.adapter}' is not held: this model has no adapters")
        return self._adapters.leases.leased(call.adapter, call.adapter_version)

    async def _encode(self, call: GenerateRequest, adapter: str | None) -> list[int]:
        """Return prompt ids. A long text goes to a thread; for a short one that would cost more
        than the tokenizer takes."""
        if call.continues is not None:
            return await self.continued_ids(call.continues)
        encode = functools.partial(
            self._model.encode, call.turns, answer_language=call.answer_language
        )
        own = self._adapters.prompt_format(adapter) if self._adapters and adapter else None
        if own is not None:
            encode = functools.partial(encode, prompt_format=own)
        if sum(len(turn.content) for turn in call.turns) <= _SHORT_CHARS:
            return encode()
        return await asyncio.to_thread(encode)

    async def check_health(self) -> None:
        """Raise EngineError if the engine can serve no more. At first, wait until the routers that
        run are of this version: Serve asks before it lets an old replica go."""
        self._engine.check()
        await self._handover.wait()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `scaling.by_rows` counts of this replica; Serve asks."""
        return {ROWS: self._engine.num_running + self._engine.num_waiting}

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over live settings. Never raises, since Serve would replace a healthy replica."""
        self._live, self._refused = live_settings(self._live, user_config, "user_config of Model")
        live = self._live
        use_serve_handlers(live.log_level, are_requests_logged=live.log_requests)

    def close(self) -> None:
        """End every request, and the threads of this replica."""
        if self._follower is not None:
            self._follower.stop()
        if self._sampler is not None:
            self._sampler.stop()
        self._operations.shutdown(wait=False, cancel_futures=True)
        self._engine.close(timeout_s=5)
        stop_tracing()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the start failed half-way
            self.close()


def _end_soon() -> None:
    """End this process, so that Serve replaces a replica whose engine is gone."""
    logger.error("this replica ends: it has no engine any more")
    time.sleep(_LAST_WORDS_S)
    os._exit(1)
