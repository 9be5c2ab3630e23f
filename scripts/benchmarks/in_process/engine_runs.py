"""Run the engine in this process on random requests: no Ray, no HTTP.

Tokens are turned into text, as in service; end-of-sequence tokens are ignored, so that every answer
has the length that was asked for.
"""

import asyncio
import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path

from deployments.engine.core import EngineLimits, ThreadCore
from deployments.engine.decoder_factory import FastLimits, Weights, build_decoder
from deployments.engine.engine import Engine
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models.kv_cache_dtype import KvCacheDtype
from deployments.engine.request import Request, SamplingParams, SchedulerOutput, Timings
from deployments.engine.sampling import DeviceTokens


def random_requests(
    num: int,
    vocab_size: int,
    *,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    adapters: Sequence[str],
    seed: int = 0,
) -> list[Request]:
    """Return requests with uniform lengths (least, most) whose adapters take turns."""
    rng = random.Random(seed)
    requests = []
    for number in range(num):
        length, sampling = rng.randint(*prompt_tokens), SamplingParams(rng.randint(*output_tokens))
        prompt = tuple(rng.randrange(3, vocab_size) for _ in range(length))
        requests.append(Request(f"r{number}", prompt, adapters[number % len(adapters)], sampling))
    return requests


def fast_decoder(
    base: Pretrained,
    limits: FastLimits,
    weights: Weights = "none",
    kv_cache_dtype: KvCacheDtype = "auto",
) -> ModelRunner:
    """Build a decoder that ignores end-of-sequence tokens: answers have the length asked for."""
    endless = dataclasses.replace(base, eos_ids=frozenset())
    decoder = build_decoder(
        endless, "fast", limits, {}, weights=weights, kv_cache_dtype=kv_cache_dtype
    )
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    return decoder


def make_resident(decoder: ModelRunner, folders: Sequence[Path], num_adapters: int) -> list[str]:
    """Install adapters a0, a1, ... from the folders in turn, each in its own slot; return names."""
    read = [decoder.read_adapter(folder).to(decoder.device) for folder in folders]
    names = [f"a{number}" for number in range(num_adapters)]
    for number, name in enumerate(names):
        decoder.install(name, read[number % len(read)], probe=False)
    return names


def start_engine(
    decoder: ModelRunner,
    requests: Sequence[Request],
    rows: int,
    prefill_tokens: int,
    *,
    reuses_prefixes: bool = False,
    long_prompt_slowdown: float | None = None,
) -> Engine:
    """Warm the decoder up and start an engine that can queue all of `requests`."""
    decoder.warm_up()
    longest = max(len(request.prompt_ids) for request in requests)
    limits = EngineLimits(
        rows,
        len(requests),
        longest,
        prefill_tokens=prefill_tokens,
        reuses_prefixes=reuses_prefixes,
        long_prompt_slowdown=long_prompt_slowdown,
        emit_interval_s=0.03,
    )
    return Engine.on_thread(decoder, limits)


async def answer_all(engine: Engine, requests: Sequence[Request], at_once: int) -> list[Timings]:
    """Answer every request, `at_once` at a time; return the times of each.

    Raises:
        RuntimeError: a request failed, or has another number of tokens than it asked for.
    """
    free = asyncio.Semaphore(at_once)

    async def one(request: Request) -> Timings:
        async with free:
            async for event in engine.generate(request):
                last = event
        if last.error is not None or last.num_tokens != request.sampling.max_tokens:
            raise RuntimeError(f"{request.request_id}: {last.num_tokens} tokens, {last.error}")
        assert last.timings.first_token_s is not None, "tokens without a first one"
        return last.timings

    return await asyncio.gather(*(one(request) for request in requests))


def seconds_to_answer(engine: Engine, requests: Sequence[Request]) -> float:
    """Answer all requests at once; returns the seconds until the last has its last token.

    Raises:
        RuntimeError: as `answer_all`.
    """
    started = time.perf_counter()
    asyncio.run(answer_all(engine, requests, len(requests)))
    return time.perf_counter() - started


class StepCounter:
    """Records how many rows each step of a decoder served, and whether requests waited."""

    def __init__(self, decoder: ModelRunner) -> None:
        self.steps: list[tuple[int, bool]] = []
        self.engine: Engine | None = None
        step = decoder.step

        def counted(scheduled: SchedulerOutput) -> DeviceTokens:
            if scheduled.emits and self.engine is not None:
                core = self.engine.core
                assert isinstance(core, ThreadCore), "its steps are not in this process"
                self.steps.append((len(scheduled.emits), core.num_queued > 0))
            return step(scheduled)

        decoder.step = counted  # type: ignore[method-assign]
