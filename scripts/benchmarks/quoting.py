"""Measure what guessing tokens from the prompt saves where an answer quotes it, in process.

    python -m scripts.benchmark quoting --weights auto --out docs/benchmarks/quoting_2_cores.json

One stream, greedy, the base model alone: it is asked to repeat a passage (`quotes`), and about
something that is not in the prompt (`writes`); each with guesses and without, in turn, after a
warm-up. The answers of both must be the same text.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.command import add_model_arguments, conditions, publish

if TYPE_CHECKING:
    from deployments.engine.engine import Engine
    from deployments.engine.request import Request

_PASSAGE = (
    "Eczema makes the skin dry, red and itchy, most often in the folds of the elbows and knees. "
    "It comes and goes: weeks without a complaint are followed by days on which every touch of "
    "wool is too much. Nobody can cure it, but a thick ointment twice a day keeps most of it away, "
    "and a cream with cortisone calms what is left. Whoever scratches at night keeps the nails "
    "short, wears cotton, and leaves the window open, since a warm bed makes the itch worse."
)
_ASKED = {
    "quotes": f"Repeat this text word for word:\n\n{_PASSAGE}",
    "writes": "Write a short story about a fisherman who finds a lamp.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--weights", choices=["none", "auto", "int8"], default="none")
    parser.add_argument("--output_tokens", type=int, default=120, help="of an answer, at most")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.request import Request, SamplingParams
    from scripts.benchmarks.bases.models import load_base

    if args.threads:
        torch.set_num_threads(args.threads)
    load_before = os.getloadavg()
    base = load_base(args.model, args.device, args.dtype)
    limits = FastLimits(2, 512 + args.output_tokens, max_adapters=1)
    decoder = build_decoder(base, "fast", limits, {}, weights=args.weights)
    asked = {}
    for name, question in _ASKED.items():
        ids = _prompt(base.tokenizer, question)
        asked[name] = Request(name, ids, None, SamplingParams(args.output_tokens))
    answers = {name: _compared(decoder, request, args.repeats) for name, request in asked.items()}
    measured = {
        **conditions(args, load_before),
        "weights": decoder.info.weights,
        "answers": answers,
    }
    publish("quoting", arguments, measured, out=args.out, lines=answers.items())
    return 0


def _prompt(tokenizer: Any, question: str) -> tuple[int, ...]:
    if tokenizer.chat_template is None:
        return tuple(tokenizer(question)["input_ids"])
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _compared(decoder: Any, request: "Request", repeats: int) -> dict[str, Any]:
    """Return tokens a second with guesses and without.

    Raises:
        RuntimeError: the answers differ.
    """
    from deployments.engine.core import EngineLimits
    from deployments.engine.engine import Engine

    rates: dict[bool, list[float]] = {True: [], False: []}
    found = set()
    for repeat in range(repeats + 1):
        for tries, samples in rates.items():
            length = len(request.prompt_ids)
            limits = EngineLimits(2, 8, length, emit_interval_s=0.03, tries_drafts=tries)
            engine = Engine.on_thread(decoder, limits)
            text, num_tokens, seconds = asyncio.run(_answer(engine, request))
            engine.close()
            found.add(text)
            if repeat:
                samples.append((num_tokens - 1) / seconds)
    if len(found) > 1:
        raise RuntimeError(f"{request.request_id}: {len(found)} answers to one question")
    guessed, plain = (statistics.median(rates[tries]) for tries in (True, False))
    return {
        "n": repeats,
        "num_tokens": num_tokens,
        "guessed_tokens_per_s": round(guessed, 1),
        "tokens_per_s": round(plain, 1),
        "guessed_over_plain": round(guessed / plain, 3),
    }


async def _answer(engine: "Engine", request: "Request") -> tuple[str, int, float]:
    """Return the answer, its tokens, and the seconds from its first token to its last."""
    text, started = "", time.perf_counter()
    async for event in engine.generate(request):
        text += event.text
    first_s = event.timings.first_token_s or 0.0
    return text, event.num_tokens, time.perf_counter() - started - first_s
