"""Measure the engine in process, against PEFT, in one run: many adapters in one batch.

    python -m scripts.benchmark engine --dtype float32 --out docs/benchmarks/engine_cpu.json
    python -m scripts.benchmark engine --model flan-t5-xl-shape --device cuda --requests 64 \\
        --rows 64 --prompt_tokens 64 --output_tokens 128 --out docs/benchmarks/engine_h100.json

Random adapters, `--requests` questions at once, one adapter after the other; end-of-sequence
tokens are ignored, so that every side makes the same number of tokens. Side by side: the engine
with mixed adapters, the engine without adapters, one stream; PEFT's mixed batch (`adapter_names`),
and `set_adapter` + `generate` one request at a time. Warm-ups are discarded. Sides are timed in
turn, `--repeats` times each, and the medians are compared. The last line of stdout is one JSON
object. No Ray, no HTTP; tokens are turned into text, as in service.

Time of one decode step by batch size, and its memory floor.

The floor is what must be read once for a step (decoder weights, output layer, keys and values at
the mean context) over the bandwidth of a large copy on the same device, measured in the same run.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.engine import Engine, EngineLimits
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduler import Scheduler
from scripts.benchmarks.load import make_resident
from scripts.benchmarks.models import load_base, make_random_adapters
from scripts.environment import device_name, environment, save_report

_WARM_UP = 6


def weight_bytes(model: Any) -> int:
    """Bytes of weights that one decode step reads. To be called before a decoder takes them."""
    read = 0
    for name, parameter in model.named_parameters():
        is_cross_kv = ".EncDecAttention.k." in name or ".EncDecAttention.v." in name
        is_layer = name.startswith(("decoder.block.", "model.layers."))
        if is_layer and not is_cross_kv:
            read += parameter.nbytes
    head: torch.Tensor = model.lm_head.weight
    return read + head.nbytes


def step_times(
    decoder: ModelRunner,
    adapters: Sequence[str | None],
    *,
    num_rows: Sequence[int],
    prompt_tokens: int,
    num_steps: int,
    weights: int,
) -> list[dict[str, float]]:
    """One line for each batch size; milliseconds are means over `num_steps` steps."""
    bandwidth = _copy_bandwidth(decoder.device)
    bytes_per_position = decoder.num_kv_bytes / (sum(decoder.capacities) + 16)
    context = prompt_tokens + (num_steps + _WARM_UP) / 2
    lines = []
    for rows in num_rows:
        floor_ms = 1000 * (weights + rows * context * bytes_per_position) / bandwidth
        step_ms = min(_timed(decoder, rows, adapters, prompt_tokens, num_steps) for _ in range(2))
        lines.append(
            {
                "rows": rows,
                "step_ms": round(step_ms, 3),
                "floor_ms": round(floor_ms, 3),
                "floor_over_step": round(floor_ms / step_ms, 3),
                "tokens_per_s": round(1000 * rows / step_ms),
            }
        )
    return lines


def _timed(
    decoder: ModelRunner,
    num_rows: int,
    adapters: Sequence[str | None],
    prompt_tokens: int,
    num_steps: int,
) -> float:
    """Milliseconds a step."""
    books = Scheduler(
        decoder.capacities,
        prefill_tokens=num_rows * prompt_tokens,
        can_split_prompts=decoder.can_split_prompts,
    )
    sampling = SamplingParams(num_steps + _WARM_UP)
    prompt = tuple(3 + i % 97 for i in range(prompt_tokens))
    for i in range(num_rows):
        books.add(Request("r", prompt, adapters[i % len(adapters)], sampling), 0.0)
    started = 0.0
    for step in range(num_steps + _WARM_UP):
        plan = books.schedule(0.0)
        for job in plan.admitted:
            assert job.row is not None, "admitted without a row"
            decoder.set_adapter(job.row, job.request.adapter)
        pending = decoder.step(plan)
        if step == _WARM_UP - 1:
            pending.wait()
            started = time.perf_counter()
    pending.wait()
    milliseconds = 1000 * (time.perf_counter() - started) / num_steps
    decoder.reset()
    return milliseconds


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy, reads and writes counted."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        _synchronise(device)
        started = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        _synchronise(device)
        best = max(best, 8 * size / (time.perf_counter() - started))
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


_DIFFERENT_ADAPTERS = 8  # more are copies, each at a place of its own

Work = list[tuple[tuple[int, ...], str | None]]
"""(prompt ids, adapter) of each request."""


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        report = _measure(args, Path(scratch))
    report["command"] = "python -m scripts.benchmark " + " ".join(argv or sys.argv[1:])
    line = json.dumps(report)
    save_report(report, args.out)
    for name, side in report["sides"].items():
        print(f"{name:<28} {json.dumps(side)}")
    for step in report["steps"]:
        print(f"{'step':<28} {json.dumps(step)}")
    print(f"{'ratios':<28} {json.dumps(report['ratios'])}")
    print(line)
    return 0


def _measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    base = load_base(args.model, args.device, args.dtype)
    num_files = min(args.adapters, _DIFFERENT_ADAPTERS)
    folders = make_random_adapters(
        base.model, scratch, num=num_files, rank=args.rank, targets=args.targets
    )
    work = _work(args, base.model.config.get_text_config().vocab_size, list(folders))
    sides: dict[str, Callable[[], dict[str, float]]] = {}
    if not args.skip_peft:
        peft = _Peft(load_base(args.model, args.device, args.dtype), folders, args.output_tokens)
        sides["peft_mixed_batch"] = lambda: peft.mixed(work)
        sides["peft_sequential"] = lambda: peft.sequential(work[: args.sequential])
    weights = weight_bytes(base.model)
    decoder = _decoder(args, dataclasses.replace(base, eos_ids=frozenset()), folders)
    step_settings: dict[str, Any] = {
        "num_rows": [n for n in (1, 8, 16, 32, 64, 128, 256) if n <= args.rows],
        "prompt_tokens": args.prompt_tokens,
        "num_steps": args.output_tokens - 8,
        "weights": weights,
    }
    without = step_times(decoder, [None], **step_settings)
    make_resident(decoder, list(folders.values()), args.adapters)
    adapters = [f"a{number}" for number in range(args.adapters)]
    steps = [
        {**line, "step_ms_without_lora": plain["step_ms"]}
        for line, plain in zip(step_times(decoder, adapters, **step_settings), without, strict=True)
    ]
    engine = _start_engine(args, decoder)
    plain: Work = [(prompt, None) for prompt, _ in work]
    sides["engine_mixed"] = lambda: _engine_side(engine, work, args.output_tokens)
    sides["engine_no_adapters"] = lambda: _engine_side(engine, plain, args.output_tokens)
    sides["engine_one_stream"] = lambda: _engine_side(engine, work[:1], args.output_tokens)
    results = _in_turn(sides, args.repeats)
    info = engine.info
    engine.close()
    return {
        "what": "engine",
        **environment(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "what")},
        "torch_threads": torch.get_num_threads(),
        "device": device_name(args.device),
        "dtype": info.dtype,
        "decoder": f"{info.name}: {info.reason}",
        "sides": results,
        "steps": steps,
        "ratios": _ratios(results),
    }


def _work(args: argparse.Namespace, vocab_size: int, adapters: Sequence[str]) -> Work:
    """Prompts of --prompt_tokens, a fifth shorter or longer, of random ids."""
    rng = random.Random(0)
    low, high = int(args.prompt_tokens * 0.8), int(args.prompt_tokens * 1.2)
    return [
        (
            tuple(rng.randrange(3, vocab_size) for _ in range(rng.randint(low, high))),
            adapters[i % len(adapters)],
        )
        for i in range(args.requests)
    ]


def _in_turn(
    sides: dict[str, Callable[[], dict[str, float]]], repeats: int
) -> dict[str, dict[str, Any]]:
    """Each side once to warm up, then all of them in turn; medians and every sample."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            sample = side()
            if repeat:
                samples[name].append(sample)
    return {
        name: {
            **{
                key: round(statistics.median(sample[key] for sample in taken), 4)
                for key in taken[0]
            },
            "tokens_per_s_samples": [round(sample["tokens_per_s"], 1) for sample in taken],
        }
        for name, taken in samples.items()
    }


def _ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Speed of the engine over that of each baseline, of the same dtype, in the same run."""
    pairs = [
        ("mixed over PEFT's mixed batch", "engine_mixed", "peft_mixed_batch"),
        ("mixed over sequential", "engine_mixed", "peft_sequential"),
        ("one stream over sequential", "engine_one_stream", "peft_sequential"),
        ("mixed over no adapters", "engine_mixed", "engine_no_adapters"),
    ]
    return {
        name: round(results[ours]["tokens_per_s"] / results[theirs]["tokens_per_s"], 2)
        for name, ours, theirs in pairs
        if theirs in results
    }


def _decoder(args: argparse.Namespace, base: Pretrained, folders: dict[str, Path]) -> ModelRunner:
    limits = FastLimits(
        args.rows, _longest_prompt(args) + args.output_tokens, max_adapters=args.adapters
    )
    decoder = build_decoder(base, "fast", limits, folders)
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    return decoder


def _start_engine(args: argparse.Namespace, decoder: ModelRunner) -> Engine:
    decoder.warm_up()
    limits = EngineLimits(
        args.rows,
        args.requests,
        _longest_prompt(args),
        prefill_tokens=args.prefill_tokens,
        emit_interval_s=0.03,
    )
    engine = Engine(decoder, limits)
    engine.start()
    return engine


def _longest_prompt(args: argparse.Namespace) -> int:
    return int(args.prompt_tokens * 1.2) + 1


def _engine_side(engine: Engine, work: Work, num_tokens: int) -> dict[str, float]:
    """All requests at once, streamed."""

    async def one(number: int, prompt: tuple[int, ...], adapter: str | None) -> tuple[int, float]:
        request = Request(f"r{number}", prompt, adapter, SamplingParams(num_tokens))
        async for event in engine.generate(request):
            last = event
        if last.error is not None or last.timings.first_token_s is None:
            raise RuntimeError(f"request {number} failed: {last.error}")
        return last.num_tokens, last.timings.first_token_s

    async def everything() -> list[tuple[int, float]]:
        return await asyncio.gather(*(one(i, *item) for i, item in enumerate(work)))

    started = time.perf_counter()
    done = asyncio.run(everything())
    seconds = time.perf_counter() - started
    return {
        "tokens_per_s": sum(tokens for tokens, _ in done) / seconds,
        "seconds": seconds,
        "first_token_p50_s": statistics.median(first for _, first in done),
        "first_token_max_s": max(first for _, first in done),
    }


class _Peft:
    """The baselines: transformers' generate over PEFT's layers."""

    def __init__(self, base: Pretrained, folders: dict[str, Path], num_tokens: int) -> None:
        self._pad_id = base.pad_id
        self._is_causal = base.family == "causal"
        model: Any = None
        for name, folder in folders.items():
            if model is None:
                model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=name)
            else:
                model.load_adapter(str(folder), adapter_name=name)
        self._model = model.eval()
        self._device = base.model.device
        config = base.model.generation_config
        config.eos_token_id, config.do_sample = None, False
        config.max_new_tokens, config.pad_token_id = num_tokens, base.pad_id

    def mixed(self, work: Work) -> dict[str, float]:
        return self._timed(lambda: [self._generate(work, adapter_names=[a for _, a in work])])

    def sequential(self, work: Work) -> dict[str, float]:
        def each() -> list[int]:
            counts = []
            for item in work:
                self._model.set_adapter(item[1], inference_mode=True)
                counts.append(self._generate([item]))
            return counts

        return self._timed(each)

    def _timed(self, generate: Callable[[], list[int]]) -> dict[str, float]:
        started = time.perf_counter()
        num_tokens = sum(generate())
        seconds = time.perf_counter() - started
        return {"tokens_per_s": num_tokens / seconds, "seconds": seconds}

    @torch.inference_mode()
    def _generate(self, work: Work, **options: Any) -> int:
        """Generated tokens of one batch, padded as the family wants it."""
        longest = max(len(prompt) for prompt, _ in work)
        ids, mask = [], []
        for prompt, _ in work:
            padding, zeros = [self._pad_id] * (longest - len(prompt)), [0] * (longest - len(prompt))
            ones = [1] * len(prompt)
            ids.append([*padding, *prompt] if self._is_causal else [*prompt, *padding])
            mask.append([*zeros, *ones] if self._is_causal else [*ones, *zeros])
        output = self._model.generate(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            **options,
        )
        start = longest if self._is_causal else 1
        return int(output[:, start:].numel())
