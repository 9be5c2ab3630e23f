"""Time the engine's sides and PEFT's in turn, for `scripts.benchmark engine`."""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deployments.engine.cuda_graphs import SCRATCH_POSITIONS
from deployments.engine.decoder_factory import FastLimits
from deployments.engine.engine import Engine
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request
from scripts.benchmarks.bases.models import load_base
from scripts.benchmarks.command import settings_of
from scripts.benchmarks.in_process.busy_cores import measure_beside_others
from scripts.benchmarks.in_process.continuous_batching import ContinuousBatching
from scripts.benchmarks.in_process.decode_steps import (
    plain_steps,
    step_times,
    time_steps,
    weight_bytes,
)
from scripts.benchmarks.in_process.engine_runs import (
    answer_all,
    fast_decoder,
    make_resident,
    random_requests,
    start_engine,
)
from scripts.benchmarks.in_process.peft_baseline import PeftBaseline
from scripts.benchmarks.in_process.quantised_base import quantised_base
from scripts.benchmarks.in_process.random_adapters import make_random_adapters
from scripts.benchmarks.in_process.served_engine import served_engine
from scripts.environment import device_name

_DIFFERENT_ADAPTERS = 8  # files; more adapters are copies, each in its own slot
_RATIOS = (  # name, numerator, denominator
    ("mixed over PEFT's mixed batch", "engine_mixed", "peft_mixed_batch"),
    ("mixed over sequential", "engine_mixed", "peft_sequential"),
    ("one stream over sequential", "engine_one_stream", "peft_sequential"),
    ("mixed over no adapters", "engine_mixed", "engine_no_adapters"),
    ("mixed over none resident", "engine_mixed", "engine_none_resident"),
    ("no adapters over transformers'", "engine_no_adapters", "transformers_no_adapters"),
    ("one adapter over transformers'", "engine_one_adapter", "transformers_one_adapter"),
)

Side = Callable[[], Mapping[str, float]]
"""Runs once and returns its figures, `tokens_per_s` among them."""


class Refused(ValueError):
    """The arguments ask for a side that does not exist; the message says which."""


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    if args.threads:
        torch.set_num_threads(args.threads)
    base = load_base(args.model, args.device, args.dtype)
    if args.continuous_batching and (base.family != "causal" or args.quantization != "none"):
        raise Refused(
            f"--continuous_batching: {args.model} is {base.family}, --quantization "
            f"{args.quantization}; transformers' side takes a causal base, none: leave it out"
        )
    num = min(args.adapters, _DIFFERENT_ADAPTERS)
    shape = {"rank": args.rank, "targets": args.targets}
    folders = make_random_adapters(base.model, scratch, num=num, **shape)
    longest = int(args.prompt_tokens * 1.2)
    requests = random_requests(
        args.requests,
        base.model.config.get_text_config().vocab_size,
        prompt_tokens=(int(args.prompt_tokens * 0.8), longest),
        output_tokens=(args.output_tokens, args.output_tokens),
        adapters=list(folders),
    )
    sides = {} if args.skip_peft else _peft_sides(args, folders, requests)
    peers = _transformers(args, folders["a0"]) if args.continuous_batching else {}
    for name, peer in peers.items():
        sides[name] = _on_all_threads(functools.partial(peer.answer, requests))
    if args.quantization != "none":
        base = quantised_base(base, args.quantization)
    weights = weight_bytes(base.model)  # before the decoder takes them
    limits = FastLimits(args.rows, longest + 1 + args.output_tokens, max_adapters=args.adapters)
    dtype_bytes = base.model.dtype.itemsize
    decoder = fast_decoder(base, limits, args.weights, args.kv_cache_dtype)
    for kind, bits in (("int8", 8), ("int4", 4)):  # of the head too, nearly
        if args.quantization == "none" and decoder.info.weights.startswith(kind):
            weights = weights * bits // (8 * dtype_bytes)
    step_settings: dict[str, Any] = {
        "num_rows": [n for n in args.batch_sizes if n <= args.rows],
        "prompt_tokens": args.prompt_tokens,
        "num_steps": args.output_tokens - 8,
    }
    plain = plain_steps(decoder, **step_settings)
    base_only = [dataclasses.replace(request, adapter=None) for request in requests]
    without = _none_resident(decoder, base_only, args)
    kv_bytes = decoder.num_kv_bytes // (sum(decoder.capacities) + SCRATCH_POSITIONS)
    adapters = make_resident(decoder, list(folders.values()), args.adapters)
    steps = step_times(decoder, adapters, **step_settings, weights=weights, without_residents=plain)
    beside = [
        measure_beside_others(decoder, rows, args.beside_s / 2)
        for rows in (1, args.rows)
        if args.beside_s
    ]
    engine = start_engine(decoder, requests, args.rows, args.prefill_tokens)
    sides |= {
        "engine_mixed": lambda: _engine_side(engine, requests),
        "engine_no_adapters": lambda: _engine_side(engine, base_only),
        "engine_one_stream": lambda: _engine_side(engine, requests[:1]),
    }
    if peers:
        alike = [dataclasses.replace(request, adapter="a0") for request in requests]
        sides["engine_one_adapter"] = lambda: _engine_side(engine, alike)
    with contextlib.ExitStack() as stack:
        for peer in peers.values():
            stack.callback(peer.close)
        if args.served:
            served = stack.enter_context(served_engine(args, scratch / "base", folders, requests))
            endless = [_endless(request) for request in requests]
            sides |= {
                "process_mixed": lambda: _engine_side(served, endless),
                "process_one_stream": lambda: _engine_side(served, endless[:1]),
                "step_mixed": lambda: _step_side(decoder, adapters, args.rows, args),
                "step_one_row": lambda: _step_side(decoder, adapters[:1], 1, args),
            }
        results = without | _in_turn(sides, args.repeats)
    info = engine.info
    engine.close()
    return {
        "settings": settings_of(args),
        "torch_threads": torch.get_num_threads(),
        "step_threads": info.threads,
        "device": device_name(args.device),
        "dtype": info.dtype,
        "kv_cache_dtype": info.kv_cache_dtype,
        "kv_bytes_per_position": kv_bytes,
        "weights": info.weights,
        "decoder": f"{info.name}: {info.reason}",
        "sides": results,
        "steps": steps,
        "ratios": _ratios(results),
        "beside_others": beside,
    } | ({"attention": {name: peer.attention for name, peer in peers.items()}} if peers else {})


def _none_resident(
    decoder: ModelRunner, requests: Sequence[Request], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Return the side of requests without adapters before any is resident, on a GPU, where the
    steps of a decoder that has some run the adapters' kernels whoever asks (`plain_steps`)."""
    if decoder.device.type == "cpu":
        return {}
    engine = start_engine(decoder, requests, args.rows, args.prefill_tokens)
    try:
        side = {"engine_none_resident": lambda: _engine_side(engine, requests)}
        return _in_turn(side, args.repeats)
    finally:
        engine.close()


def _endless(request: Request) -> Request:
    """Return a request whose answer has all the tokens it asks for, whatever the model says."""
    sampling = request.sampling
    longest = dataclasses.replace(sampling, min_tokens=sampling.max_tokens)
    return dataclasses.replace(request, sampling=longest)


def _peft_sides(
    args: argparse.Namespace, folders: Mapping[str, Path], requests: Sequence[Request]
) -> dict[str, Side]:
    """Return PEFT's sides: over bitsandbytes' layers where it has the kind."""
    base = load_base(args.model, args.device, args.dtype)  # PEFT changes its model
    if args.quantization != "none":
        with_theirs = args.quantization != "fp8"
        base = quantised_base(base, args.quantization, with_bitsandbytes=with_theirs)
    peft = PeftBaseline(base, folders, args.output_tokens)
    return {
        "peft_mixed_batch": _on_all_threads(lambda: peft.mixed(requests)),
        "peft_sequential": _on_all_threads(lambda: peft.sequential(requests[: args.sequential])),
    }


def _transformers(args: argparse.Namespace, adapter: Path) -> dict[str, ContinuousBatching]:
    """Return transformers' continuous batching by side: without an adapter, and with one."""
    return {
        f"transformers_{name}": ContinuousBatching(
            load_base(args.model, args.device, args.dtype), args.output_tokens, folder
        )
        for name, folder in (("no_adapters", None), ("one_adapter", adapter))
    }


def _on_all_threads(side: Side) -> Side:
    """Return the side with the threads that torch has now: our compiled step leaves it one."""
    threads = torch.get_num_threads()

    def run() -> Mapping[str, float]:
        ours = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return side()
        finally:
            torch.set_num_threads(ours)

    return run


def _engine_side(engine: Engine, requests: Sequence[Request]) -> dict[str, float]:
    """Stream all requests at once. `decoding_per_s`: tokens behind each answer's first, for each
    second from then to its end, of all answers together."""
    started = time.perf_counter()
    times = asyncio.run(answer_all(engine, requests, len(requests)))
    seconds = time.perf_counter() - started
    first_tokens = [each.first_token_s or 0.0 for each in times]
    counts = [request.sampling.max_tokens for request in requests]
    return {
        "tokens_per_s": sum(counts) / seconds,
        "decoding_per_s": sum(
            (count - 1) / ((each.total_s or 0.0) - first)
            for count, each, first in zip(counts, times, first_tokens, strict=True)
        ),
        "seconds": seconds,
        "first_token_p50_s": statistics.median(first_tokens),
        "first_token_max_s": max(first_tokens),
    }


def _step_side(
    decoder: ModelRunner, adapters: Sequence[str | None], rows: int, args: argparse.Namespace
) -> dict[str, float]:
    """Take bare steps while the engine has nothing to do."""
    num_steps = args.output_tokens - 8
    milliseconds = time_steps(decoder, rows, adapters, args.prompt_tokens, num_steps)
    return {"tokens_per_s": 1000 * rows / milliseconds, "step_ms": milliseconds}


def _in_turn(sides: Mapping[str, Side], repeats: int) -> dict[str, dict[str, Any]]:
    """Run each side once to warm up, then all in turn; return medians and every token rate."""
    samples: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            sample = side()
            if repeat:
                samples[name].append(sample)
    return {name: _medians(taken) for name, taken in samples.items()}


def _medians(taken: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    medians = {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
    rates = [round(sample["tokens_per_s"], 1) for sample in taken]
    rounded = {key: round(value, 4) for key, value in medians.items()}
    return {**rounded, "tokens_per_s_samples": rates}


def _ratios(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the engine's token rate over that of each baseline of this run."""
    ratios = {
        name: round(results[ours]["tokens_per_s"] / results[theirs]["tokens_per_s"], 2)
        for name, ours, theirs in _RATIOS
        if theirs in results
    }
    for ours, theirs in (("process_mixed", "step_mixed"), ("process_one_stream", "step_one_row")):
        if ours in results:
            share = results[ours]["decoding_per_s"] / results[theirs]["tokens_per_s"]
            ratios[f"{ours}, decoding, over bare steps"] = round(share, 3)
    return ratios
