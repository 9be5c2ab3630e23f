"""Serve shell of the model: base, every adapter and one engine, pinned to a GPU (or the CPU)."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.serve import metrics

from adapters.versions import AdapterVersion
from deployments.engine.engine import Engine, EngineLimits
from deployments.engine.request import EngineError, Request, TokenEvent, failed_event
from deployments.ingress.operator import replica_id
from deployments.messages import GenerateRequest
from deployments.model.loading import LoadedModel, load_model
from deployments.model.replica_adapters import ReplicaAdapters
from deployments.replica import tune_interpreter, use_serve_handlers
from deployments.settings import ModelLiveSettings, Settings, SettingsError, parse_strict

logger = logging.getLogger(__name__)

LoadModel = Callable[[Settings, str], LoadedModel]

# Seconds. First token and queue: from a warm GPU to a busy CPU; per token: from 1 ms to 1 s.
_WAIT_BOUNDARIES_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
_TOKEN_BOUNDARIES_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]
_LABELS = ("adapter", "version")
# A stream's text goes out at most this often: Serve carries some 30 messages a second for each
# stream, however fast the tokens are.
_EMIT_INTERVAL_S = 0.03
# Texts up to here are tokenised on the event loop.
_SHORT_CHARS = 1000
# Prompt tokens that one step reads: about half a second of a CPU, some ten milliseconds of a GPU.
_PREFILL_TOKENS = {"cpu": 256, "cuda": 4096}


class ModelReplica:
    """One replica. It holds every adapter of the catalogue and sets one for each request."""

    def __init__(self, settings: Settings, device: str, load: LoadModel = load_model) -> None:
        use_serve_handlers("INFO")
        logger.info("starting on %s", device)
        self._live = ModelLiveSettings()
        self._settings = settings
        self._metrics = _ModelMetrics()
        if device == "cpu":
            _use_cores(settings.engine.cpu_threads)
        self._loaded = load(settings, device)
        tune_interpreter()
        self._engine = Engine(
            self._loaded.decoder,
            EngineLimits(
                max_rows=settings.engine.max_rows,
                max_waiting=settings.engine.max_waiting,
                max_input_tokens=settings.engine.max_input_tokens,
                prefill_tokens=settings.engine.prefill_tokens_per_step
                or _PREFILL_TOKENS[device.split(":")[0]],
                emit_interval_s=_EMIT_INTERVAL_S,
            ),
            on_batch=self._metrics.batch_rows.set,
        )
        self._engine.start()
        self._adapters = ReplicaAdapters(
            self._loaded.holder, self._engine.run_between_steps, lambda: self._live.adapter_check_s
        )

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of one answer. A refusal or a failure is an event too: the last, with `error`."""
        try:
            async with self._adapters.leased(call) as adapter:
                prompt_ids = await self._encode(call)
                deadline_s = None if call.deadline_at is None else call.deadline_at - time.time()
                request = Request(
                    call.request_id, tuple(prompt_ids), adapter, call.sampling, deadline_s
                )
                generated = self._engine.generate(request, stream=call.stream)
                async with contextlib.aclosing(generated) as events:
                    async for event in events:
                        if event.finish_reason is not None:
                            self._metrics.finished(call, event)
                        yield event
        except EngineError as error:
            yield failed_event(call.request_id, error.info)

    async def answer(self, call: GenerateRequest) -> TokenEvent:
        """The one event of a call that is not to be streamed."""
        async with contextlib.aclosing(self.generate(call)) as events:
            return await anext(events)

    async def _encode(self, call: GenerateRequest) -> list[int]:
        """Prompt ids. A long text goes to a thread; for a short one that would cost more than the
        tokenizer takes."""
        encode = self._loaded.encode
        if sum(len(turn.content) for turn in call.turns) <= _SHORT_CHARS:
            return encode(call.turns, call.answer_language)
        return await asyncio.to_thread(encode, call.turns, call.answer_language)

    async def info(self) -> dict[str, Any]:
        """What this replica serves; raises EngineStopped when it cannot."""
        self._engine.check()
        decoder = self._engine.info
        return {
            "replica": replica_id(),
            "base_model": self._loaded.base_model,
            "decoder": decoder.name,
            "decoder_reason": decoder.reason,
            "device": decoder.device,
            "dtype": decoder.dtype,
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            **self._adapters.info(),
            "rows_running": self._engine.num_running,
            "requests_waiting": self._engine.num_waiting,
        }

    async def sync_adapters(self) -> dict[str, Any]:
        """Follow the live catalogue now; what this replica holds then, and what it could not load.
        `error` says why the catalogue could not be read."""
        return {"replica": replica_id(), **await self._adapters.sync()}

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        """What keeps a version that is not listed yet from being served on this base."""
        return await self._adapters.dry_run(name, version)

    def check_health(self) -> None:
        self._engine.check()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Never raises: Serve would replace a healthy replica for it."""
        try:
            self._live = parse_strict(ModelLiveSettings, user_config, "user_config of Model")
        except SettingsError as error:
            logger.error("kept the previous user_config: %s", error)
        use_serve_handlers(self._live.log_level)

    def __del__(self) -> None:
        adapters = getattr(self, "_adapters", None)
        if adapters is not None:
            adapters.stop()
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close(timeout_s=5)


class _ModelMetrics:
    """DESIGN.md section 7, as far as the model knows them. Units are in the names."""

    def __init__(self) -> None:
        self.batch_rows = metrics.Gauge(
            "polyclinic_batch_rows", description="rows being decoded together"
        )
        self._ttft = metrics.Histogram(
            "polyclinic_ttft_s", "acceptance to first token", _WAIT_BOUNDARIES_S, _LABELS
        )
        self._tpot = metrics.Histogram(
            "polyclinic_tpot_s", "mean time per later token", _TOKEN_BOUNDARIES_S, _LABELS
        )
        self._queue = metrics.Histogram(
            "polyclinic_queue_wait_s", "acceptance to first step", _WAIT_BOUNDARIES_S, _LABELS
        )
        self._tokens = metrics.Counter(
            "polyclinic_tokens_total",
            "prompt and generated tokens",
            ("kind", "adapter", "version"),
        )

    def finished(self, call: GenerateRequest, event: TokenEvent) -> None:
        label = {"adapter": call.adapter or "base", "version": call.adapter_version or ""}
        self._tokens.inc(event.num_prompt_tokens or 0, {"kind": "prompt", **label})
        if event.num_tokens:
            self._tokens.inc(event.num_tokens, {"kind": "generated", **label})
        timings = event.timings
        if timings.queue_s is not None:
            self._queue.observe(timings.queue_s, label)
        if timings.first_token_s is None:
            return
        self._ttft.observe(timings.first_token_s, label)
        if timings.total_s is not None and event.num_tokens > 1:
            later_s = timings.total_s - timings.first_token_s
            self._tpot.observe(later_s / (event.num_tokens - 1), label)


def _use_cores(num_threads: int | None) -> None:
    """Torch threads of a CPU replica: Ray would leave it one for each of its num_cpus."""
    import torch

    torch.set_num_threads(num_threads or len(os.sched_getaffinity(0)))
