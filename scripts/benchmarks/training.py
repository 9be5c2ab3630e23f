"""Measure memory and speed of training on a quantised base, at flan-t5-xl's full shape.

    python -m scripts.benchmark training --quantization none int8 nf4 --steps 150

Needs an NVIDIA GPU and 12 GB of disk, and nothing from a hub: the weights are random, which
changes neither memory nor time. The data are made up as well: every prompt and every answer fills
its --tokens, and answers are drawn evenly from four words, so that the loss can fall from the
logarithm of the vocabulary to ln 4 = 1.386 nats and no further.

Each run is a process of scripts/train_lora_adapter.py. Two peaks are reported: of PyTorch's tensors
(`torch.cuda.max_memory_allocated`), and of the whole process, which is the highest `memory.used` of
nvidia-smi, read each half second, above that before the start: keep other work off the GPU.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.catalog import load_catalog
from adapters.prompting import encode_example
from scripts.arguments import positive
from scripts.benchmarks.command import add_out, publish
from scripts.environment import device_name

ROOT = Path(__file__).resolve().parent.parent.parent
BASE_NAME = "google/flan-t5-xl"
QUESTION_WORDS = [f"q{i}" for i in range(1000)]
ANSWER_WORDS = [f"a{i}" for i in range(4)]
POLL_S = 0.5
_PASSED_ON = ("dtype", "device", "batch_size", "rank", "learning_rate", "optimiser", "seed")
_FIGURES = (
    *("validation_loss_at_start", "validation_loss", "num_steps", "train_s"),
    *("num_trained_parameters", "num_parameters", "peak_memory_mib", "peak_reserved_mib"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = ["none", "int8", "nf4"]
    add("--quantization", nargs="+", choices=kinds, default=kinds[1:], help="default: int8 nf4")
    add("--steps", type=positive, default=150, help="optimiser steps")
    add("--batch_size", type=positive, default=2, help="pairs in one forward pass")
    add("--tokens", type=positive, default=256, help="of each prompt and of each answer")
    add("--rank", type=positive, default=8, help="of LoRA")
    add("--learning_rate", type=float, default=1e-3, help="highest")
    optimisers = ["adamw_torch", "adamw_8bit"]
    add("--optimiser", choices=optimisers, default="adamw_8bit", help="8 bits need bitsandbytes")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the base")
    add("--device", choices=["cpu", "cuda"], default="cuda", help="cpu is for a trial")
    add("--shape", default="{}", metavar="JSON", help="fields of T5Config, for a smaller trial")
    add("--seed", type=int, default=0, help="of weights and data")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    from scripts.benchmarks.bases.shapes import SHAPES

    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmark training: no NVIDIA GPU was found", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        shape = {**SHAPES["flan-t5-xl-shape"][1], **json.loads(args.shape)}
        tokenizer = make_base(work / "base", shape, args.seed, args.device)
        make_data(work / "benchmark.jsonl", tokenizer, args)
        runs = {name: _run(work, name, args) for name in args.quantization}
    measured = {"device": device_name(args.device), "shape": shape, "runs": runs}
    publish("training", arguments, measured, out=args.out, lines=runs.items())
    return 0 if all(run["exit_code"] == 0 for run in runs.values()) else 1


def make_base(folder: Path, shape: dict[str, Any], seed: int, device: str) -> Any:
    """Write a T5 folder of this shape with random bfloat16 weights; return its word tokenizer.

    The output layer is scaled by d_model ** -0.5, so that a logit's variance is about 1, as in a
    trained model; Transformers initialises it for d_model.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from scripts.benchmarks.bases.models import word_tokenizer

    tokenizer = word_tokenizer([*ANSWER_WORDS, *QUESTION_WORDS], "seq2seq")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    with torch.device(device):
        model = T5ForConditionalGeneration(T5Config(**shape)).to(torch.bfloat16)
    model.lm_head.weight.data *= shape["d_model"] ** -0.5
    model.save_pretrained(folder, max_shard_size="4GB")
    return tokenizer


def make_data(file: Path, tokenizer: Any, args: argparse.Namespace) -> None:
    """Write pairs whose prompt and answer fill their tokens, with one validation batch."""
    rng = random.Random(args.seed)
    entry = load_catalog(ROOT / "adapters").base_model(BASE_NAME, family="seq2seq")
    one_word, _ = encode_example(
        entry.prompt_format, "q0", "a0", tokenizer=tokenizer, system_line=entry.system_line
    )
    num_words = args.tokens - len(one_word) + 1
    with file.open("w", encoding="utf-8") as lines:
        for i in range(args.steps * args.batch_size + args.batch_size):
            pair = {
                "id": str(i),
                "input": " ".join(rng.choices(QUESTION_WORDS, k=num_words)),
                "output": " ".join(rng.choices(ANSWER_WORDS, k=args.tokens - 1)),
                "split": "train" if i >= args.batch_size else "validation",
            }
            lines.write(json.dumps(pair) + "\n")


def _run(work: Path, quantization: str, args: argparse.Namespace) -> dict[str, Any]:
    options = {
        "data": work / "benchmark.jsonl",
        "specialty": "benchmark",
        "out": work / f"adapter-{quantization}",
        "base_model": work / "base",
        "base_model_name": BASE_NAME,
        "quantization": quantization,
        **{name: getattr(args, name) for name in _PASSED_ON},
        "grad_accum": 1,
        "max_prompt_tokens": args.tokens,
        "max_answer_tokens": args.tokens,
        "epochs": 1,
        "max_steps": args.steps,
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "scripts.train_lora_adapter", *given]
    command.append("--gradient_checkpointing")
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    with _peak_of_device(args.device) as peak:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        return {"exit_code": done.returncode}
    report = json.loads(done.stdout.strip().splitlines()[-1])
    figures = {name: report[name] for name in _FIGURES if name in report}
    return {"exit_code": 0, **figures, "process_peak_mib": peak[0]}


@contextmanager
def _peak_of_device(device: str) -> Iterator[list[int | None]]:
    """Yield a list whose one item becomes the highest rise of the GPU's used memory, in MiB."""
    peak: list[int | None] = [None]
    if device == "cpu":
        yield peak
        return
    before = _used_mib()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            peak[0] = max(peak[0] or 0, _used_mib() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _used_mib() -> int:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])
