"""Measure what guessing tokens from the prompt saves where an answer quotes it, in process.

    python -m scripts.benchmark quoting --weights auto --out docs/benchmarks/quoting_2_cores.json
    python -m scripts.benchmark quoting --model llama-8b-shape --device cuda --streams 1 2 4

Greedy, the base model alone: it is asked to repeat a passage (`quotes`), and about something that
is not in the prompt (`writes`); each with guesses and without, in turn, after a warm-up. A shape's
random weights are changed so that each token has one successor (`_chain`), and its prompt to quote
has runs of 24 of them. Where a step's rounding does not depend on its number of rows, both answers
must be the same text; elsewhere the report says whether they are. `steps`: seconds of a step of one
row, by the tokens that it takes.
"""

import argparse
import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.command import add_model_arguments, conditions, publish

if TYPE_CHECKING:
    from deployments.engine.engine import Engine
    from deployments.engine.model_loader import Pretrained
    from deployments.engine.request import Request, TokenEvent

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


_PROMPT_TOKENS = 512  # of random weights
_RUN = 24  # tokens that such an answer quotes without a break
_TIMED_STEPS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--weights", choices=["none", "auto", "int8"], default="none")
    parser.add_argument("--output_tokens", type=int, default=120, help="of an answer, at most")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")
    streams = "answers at once; each number by itself"
    parser.add_argument("--streams", type=int, nargs="+", default=[1], help=streams)
    parser.add_argument("--batch_invariant", action="store_true", help="sums keep one order")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.model_runner import ModelRunner
    from scripts.benchmarks.bases.models import load_base

    if args.threads:
        torch.set_num_threads(args.threads)
    load_before = os.getloadavg()
    base = load_base(args.model, args.device, args.dtype)
    requests = _requests(base, args.output_tokens)
    limits = FastLimits(max(2, *args.streams), 640 + args.output_tokens, max_adapters=1)
    invariant = True if args.batch_invariant else "auto"
    options: dict[str, Any] = {"weights": args.weights, "batch_invariant": invariant}
    decoder = build_decoder(base, "fast", limits, {}, **options)
    assert isinstance(decoder, ModelRunner), decoder.info.reason
    decoder.warm_up()
    answers = {
        f"{name}, {streams} streams" if streams > 1 else name: _compared(
            decoder, request, streams, args.repeats
        )
        for name, request in requests.items()
        for streams in args.streams
    }
    measured = {
        **conditions(args, load_before),
        "weights": decoder.info.weights,
        "batch_invariant": decoder.info.batch_invariant,
        "answers": answers,
        "steps": _timed_steps(decoder),
    }
    publish("quoting", arguments, measured, out=args.out, lines=answers.items())
    return 0


def _requests(base: "Pretrained", output_tokens: int) -> "dict[str, Request]":
    from deployments.engine.request import Request, SamplingParams
    from scripts.benchmarks.bases.models import NumberTokenizer

    if not isinstance(base.tokenizer, NumberTokenizer):
        return {
            name: Request(name, _prompt(base.tokenizer, asked), None, SamplingParams(output_tokens))
            for name, asked in _ASKED.items()
        }
    chain = _chain(base)
    sampling = SamplingParams(output_tokens, min_tokens=output_tokens)
    other = random.Random(0).choices(chain[2 * _PROMPT_TOKENS :], k=_PROMPT_TOKENS)
    quoted: list[int] = []
    for first in range(0, output_tokens, _RUN):
        quoted += [*chain[first : first + _RUN], other[first]]
    prompts = {"quotes": [*other, *quoted][-_PROMPT_TOKENS:-1], "writes": other[1:]}
    return {name: Request(name, (*ids, chain[0]), None, sampling) for name, ids in prompts.items()}


def _chain(base: "Pretrained") -> list[int]:
    """Change random weights so that each token is followed by the next of a list, which is
    returned; an encoder-decoder's answer begins with its first. Layers compute what they computed,
    and add nothing."""
    import torch

    model, added = base.model, ("o_proj", "down_proj", ".o", ".wo")
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.endswith(added):
                module.weight.zero_()
        inputs = model.get_input_embeddings().weight
        outputs = inputs.clone()  # some shapes tie the two
        order = torch.randperm(len(inputs) - 3, generator=torch.Generator().manual_seed(0)) + 3
        outputs[:3] = 0  # special tokens follow nothing
        outputs[order[1:]] = inputs[order[:-1]]
        start = order[-1] if base.decoder_start_id is None else base.decoder_start_id
        outputs[order[0]] = inputs[start]
        model.get_output_embeddings().weight = torch.nn.Parameter(outputs, requires_grad=False)
        model.config.tie_word_embeddings = False
    return [int(token) for token in order]


def _prompt(tokenizer: Any, question: str) -> tuple[int, ...]:
    if tokenizer.chat_template is None:
        return tuple(tokenizer(question)["input_ids"])
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _compared(decoder: Any, request: "Request", streams: int, repeats: int) -> dict[str, Any]:
    """Return tokens a second of all streams together, with guesses and without.

    Raises:
        RuntimeError: the answers differ, and no rounding explains it.
    """
    from deployments.engine.core import EngineLimits
    from deployments.engine.engine import Engine

    rates: dict[bool, list[float]] = {True: [], False: []}
    found: set[str] = set()
    num_tokens = 0
    for repeat in range(repeats + 1):
        for tries, samples in rates.items():
            length = len(request.prompt_ids)
            limits = EngineLimits(2, 8, length, emit_interval_s=0.03, tries_drafts=tries)
            engine = Engine.on_thread(decoder, limits)
            texts, num_tokens, seconds = asyncio.run(_answers(engine, request, streams))
            engine.close()
            found.update(texts)
            if repeat:
                samples.append((num_tokens - streams) / seconds)
    if len(found) > 1 and (decoder.info.batch_invariant or decoder.device.type == "cpu"):
        raise RuntimeError(f"{request.request_id}: {len(found)} answers to one question")
    guessed, plain = (statistics.median(rates[tries]) for tries in (True, False))
    return {
        "n": repeats,
        "num_tokens": num_tokens,
        "guessed_tokens_per_s": round(guessed, 1),
        "tokens_per_s": round(plain, 1),
        "guessed_over_plain": round(guessed / plain, 3),
        "is_same_text": len(found) == 1,
    }


async def _answers(
    engine: "Engine", request: "Request", streams: int
) -> tuple[list[str], int, float]:
    """Return the answers, their tokens, and the seconds from the last one's first token to the last
    of all."""
    asked = [replace(request, request_id=f"{request.request_id} {i}") for i in range(streams)]
    started = time.perf_counter()
    ended = await asyncio.gather(*(_answer(engine, each) for each in asked))
    first_s = max(event.timings.first_token_s or 0.0 for _, event in ended)
    seconds = time.perf_counter() - started - first_s
    return [text for text, _ in ended], sum(event.num_tokens for _, event in ended), seconds


async def _answer(engine: "Engine", request: "Request") -> "tuple[str, TokenEvent]":
    text = ""
    async for event in engine.generate(request):
        text += event.text
    return text, event


def _timed_steps(decoder: Any) -> dict[str, float]:
    """Return seconds of a step of one row, which is waited for, by its number of tokens."""
    from deployments.engine.request import PrefillChunk, Request, SamplingParams, SchedulerOutput

    room = min(decoder.capacities[0], decoder.info.num_positions) - decoder.draft_tokens - 8
    size = min(_PROMPT_TOKENS, room)
    ids = tuple(random.Random(1).choices(range(3, decoder.vocab_size), k=size))
    request = Request("steps", ids, None, SamplingParams(8, min_tokens=8))
    found: dict[str, float] = {}
    nothing: dict[str, Any] = {"expired": (), "released": (), "admitted": ()}
    for count in (1, *(2**i for i in range(1, 6) if 2**i <= decoder.draft_tokens)):
        decoder.set_adapter(0, None)
        chunk = PrefillChunk(0, request, 0, len(ids))
        decoder.step(SchedulerOutput(prefill=(chunk,), decode=(), emits=(), **nothing)).wait()
        lines, length, samples = {0: [7] * count}, decoder._states[0].length, []
        decode = SchedulerOutput(prefill=(), decode=(0,), emits=(), **nothing)
        for _ in range(_TIMED_STEPS):
            started = time.perf_counter()
            if count == 1:
                decoder.step(decode).wait()
            else:
                decoder.step_drafts(lines)
            samples.append(time.perf_counter() - started)
            decoder._states[0].length = length
        found[str(count)] = round(statistics.median(samples), 6)
        decoder.free(0)
    return found
