"""Measure what it costs that answers keep to JSON schemas, in process.

    python -m scripts.benchmark structured --weights auto --rank 16
    python -m scripts.benchmark structured --model llama-8b-shape --device cuda --tokenizer FOLDER \
        --served

The same requests, all at once, in turn: without a schema (`plain`), all with one (`structured`),
and every other one (`half`). No schema of the three can be met before the last token, so all
answers have as many tokens. Tokens a second count from the first request to the last token, prompts
included; a ratio is the median over turns of a side and the plain one beside it.

A shape has no texts; `--tokenizer` names a folder with a tokenizer whose tokens stand for its ids.
With `--served` the engine runs in a process of its own, as a replica's does: who reads the answers
does not hold the lock of its interpreter.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.arguments import positive
from scripts.benchmarks.command import WEIGHTS, add_model_arguments, conditions, publish

if TYPE_CHECKING:
    from deployments.engine.engine import Engine
    from deployments.engine.model_loader import Pretrained
    from deployments.engine.request import Request

_TEXT = {"type": "string", "maxLength": 24}
_CODE = {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}
_ITEMS: tuple[dict[str, Any], ...] = (
    {"name": _TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
    {"severity": {"enum": ["mild", "moderate", "severe"]}, "is_new": {"type": "boolean"}},
    {"code": _CODE, "at": {"type": "string", "format": "date"}, "notes": {"type": "array"}},
)
_FEWEST_ITEMS = 1000  # each has ten tokens or more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--weights", choices=WEIGHTS, default="none", help="on a CPU")
    add("--tokenizer", type=Path, help="folder; of a shape")
    add("--served", action="store_true", help="in a process of its own; writes the base first")
    add("--adapters", type=positive, default=8, help="on the device; requests ask in turn")
    add("--rows", type=positive, default=64, help="answers of one batch")
    add("--prefill_tokens", type=positive, default=256, help="prompt tokens of a step")
    add("--prompt_tokens", type=positive, default=64, help="of a request")
    add("--output_tokens", type=positive, default=128, help="of a request")
    add("--repeats", type=positive, default=5, help="the median counts")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from scripts.benchmarks.in_process.engine_runs import seconds_to_answer

    if args.threads:
        torch.set_num_threads(args.threads)
    load_before = os.getloadavg()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine, plain = (_served if args.served else _in_process)(args, scratch, stack)
        grammars = itertools.cycle([_grammar(properties) for properties in _ITEMS])
        structured = [_sampled(each, grammar=next(grammars), min_tokens=0) for each in plain]
        half = [pair[number % 2] for number, pair in enumerate(zip(plain, structured, strict=True))]
        sides = {"plain": plain, "structured": structured, "half": half}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(args.repeats + 1):
            for name, requests in sides.items():
                seconds = seconds_to_answer(engine, requests)
                if repeat:
                    rates[name].append(args.rows * args.output_tokens / seconds)
        found = {name: _summary(samples, rates["plain"]) for name, samples in rates.items()}
        measured = {**conditions(args, load_before), "weights": engine.info.weights, "sides": found}
    publish("structured", arguments, measured, out=args.out, lines=found.items())
    return 0


def _in_process(
    args: argparse.Namespace, scratch: Path, stack: contextlib.ExitStack
) -> "tuple[Engine, list[Request]]":
    """Return an engine, and a request for each of its rows, none of which ends before its last
    token."""
    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.model_runner import ModelRunner
    from scripts.benchmarks.in_process.engine_runs import make_resident, start_engine

    base = _base(args)
    folders = _adapters(args, base, scratch)
    limits = FastLimits(args.rows, args.prompt_tokens + args.output_tokens, args.adapters)
    decoder = build_decoder(base, "fast", limits, {}, weights=args.weights)
    assert isinstance(decoder, ModelRunner), decoder.info.reason
    make_resident(decoder, list(folders.values()), args.adapters)
    requests = _endless(args, len(base.tokenizer))
    engine = start_engine(decoder, requests, args.rows, args.prefill_tokens)
    stack.callback(engine.close)
    return engine, requests


def _served(
    args: argparse.Namespace, scratch: Path, stack: contextlib.ExitStack
) -> "tuple[Engine, list[Request]]":
    """Do what `_in_process` does with the engine in a process of its own."""
    import torch

    from scripts.benchmarks.in_process.served_engine import served_engine

    base = _base(args)
    folders = _adapters(args, base, scratch)
    requests = _endless(args, len(base.tokenizer))
    base.model.save_pretrained(scratch / "base")
    base.tokenizer.save_pretrained(scratch / "base")
    del base  # the engine's process has it
    if args.device == "cuda":
        torch.cuda.empty_cache()
    wanted = vars(args) | {"model": str(scratch / "base"), "kv_cache_dtype": "auto"}
    engine = served_engine(argparse.Namespace(**wanted), scratch, folders, requests)
    return stack.enter_context(engine), requests


def _adapters(args: argparse.Namespace, base: "Pretrained", scratch: Path) -> dict[str, Path]:
    from scripts.benchmarks.in_process.random_adapters import make_random_adapters

    shape = {"rank": args.rank, "targets": args.targets}
    return make_random_adapters(base.model, scratch / "adapters", num=args.adapters, **shape)


def _endless(args: argparse.Namespace, num_ids: int) -> "list[Request]":
    from scripts.benchmarks.in_process.engine_runs import random_requests

    requests = random_requests(
        args.rows,
        num_ids,
        prompt_tokens=(args.prompt_tokens, args.prompt_tokens),
        output_tokens=(args.output_tokens, args.output_tokens),
        adapters=[f"a{number}" for number in range(args.adapters)],
    )
    return [_sampled(request, min_tokens=args.output_tokens) for request in requests]


def _base(args: argparse.Namespace) -> "Pretrained":
    from transformers import AutoTokenizer

    from scripts.benchmarks.bases.models import load_base

    base = load_base(args.model, args.device, args.dtype)
    if args.tokenizer is None:
        return base
    return dataclasses.replace(base, tokenizer=AutoTokenizer.from_pretrained(args.tokenizer))


def _sampled(request: "Request", **changes: Any) -> "Request":
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, **changes))


def _grammar(properties: Mapping[str, Any]) -> str:
    """Return the grammar of a list of such objects, longer than any answer."""
    from deployments.engine.structured.grammar import json_grammar

    item = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return json_grammar({"type": "array", "items": item, "minItems": _FEWEST_ITEMS})


def _summary(rates: Sequence[float], plain: Sequence[float]) -> dict[str, Any]:
    ratios = [own / other for own, other in zip(rates, plain, strict=True)]
    return {
        "n": len(rates),
        "tokens_per_s": round(statistics.median(rates), 1),
        "tokens_per_s_samples": [round(rate, 1) for rate in rates],
        "over_plain": round(statistics.median(ratios), 3),
        "over_plain_samples": [round(ratio, 3) for ratio in ratios],
    }
