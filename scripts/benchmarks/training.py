"""Measure the memory and the speed of training on a quantised base, at flan-t5-xl's full shape.

    python -m scripts.benchmarks.training --quantization none int8 nf4 --steps 150

Needs an NVIDIA GPU and 12 GB of disk, and nothing from a hub: the weights are random, which
changes neither memory nor time. The data are made up as well: every prompt and every answer fills
its --tokens, and answers are drawn evenly from four words, so that the loss can fall from the
logarithm of the vocabulary to ln 4 = 1.386 nats and no further.

Each run is a process of scripts/train_lora_adapter.py. Two peaks are told: of PyTorch's own tensors
(`torch.cuda.max_memory_allocated`), and of the whole process, which is the highest `memory.used` of
nvidia-smi, read each half second, above that before the start: keep other work off the GPU. The
last line of stdout is one JSON object.
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

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from adapters.catalog import load_catalog
from adapters.prompting import encode_example
from scripts.arguments import HelpFormatter
from scripts.environment import command_line, commit

ROOT = Path(__file__).resolve().parent.parent.parent
BASE_NAME = "google/flan-t5-xl"
# config.json of google/flan-t5-xl (2.85 billion parameters).
FLAN_T5_XL = {
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
NUM_WORDS = 1000  # in questions
ANSWER_WORDS = 4
POLL_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmark_training: no NVIDIA GPU was found", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        shape = FLAN_T5_XL | json.loads(args.shape)
        tokenizer = make_base(work / "base", shape, args.seed, args.device)
        make_data(work / "benchmark.jsonl", tokenizer, args)
        runs = {name: _run(work, name, args) for name in args.quantization}
    report = {
        "what": "training",
        "command": command_line("benchmark_training", given),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "shape": shape,
        "runs": runs,
    }
    for name, run in runs.items():
        print(f"{name:5} {run}")
    print(json.dumps(report))
    return 0 if all(run["exit_code"] == 0 for run in runs.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.training",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add(
        "--quantization",
        nargs="+",
        choices=["none", "int8", "nf4"],
        default=["int8", "nf4"],
        help="of the base, a run for each; default: int8 nf4",
    )
    add("--steps", type=int, default=150, help="optimiser steps")
    add("--batch_size", type=int, default=2, help="pairs in one forward pass")
    add("--tokens", type=int, default=256, help="of each prompt and of each answer")
    add("--rank", type=int, default=8, help="of LoRA")
    add("--learning_rate", type=float, default=1e-3, help="highest")
    optimisers = ["adamw_torch", "adamw_8bit"]
    add("--optimiser", choices=optimisers, default="adamw_8bit", help="8 bits need bitsandbytes")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the base")
    add("--device", choices=["cpu", "cuda"], default="cuda", help="cpu is for a trial")
    add("--shape", default="{}", metavar="JSON", help="fields of T5Config, for a smaller trial")
    add("--seed", type=int, default=0, help="of weights and data")
    return parser


def make_base(folder: Path, shape: dict[str, Any], seed: int, device: str) -> Any:
    """A T5 folder of this shape with random bfloat16 weights; returns its whole-word tokenizer.

    The output layer is scaled by d_model ** -0.5, so that a logit's variance is 1 as it is, about,
    in a trained model; Transformers initialises it for d_model.
    """
    words = ["<pad>", "</s>", "<unk>", *_answer_words(), *_question_words()]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    with torch.device(device):
        model = T5ForConditionalGeneration(T5Config(**shape)).to(torch.bfloat16)
    model.lm_head.weight.data *= shape["d_model"] ** -0.5
    model.save_pretrained(folder, max_shard_size="4GB")
    return tokenizer


def make_data(file: Path, tokenizer: Any, args: argparse.Namespace) -> None:
    """Pairs whose prompt and answer fill their tokens; one validation batch."""
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
                "input": " ".join(rng.choices(_question_words(), k=num_words)),
                "output": " ".join(rng.choices(_answer_words(), k=args.tokens - 1)),
                "split": "train" if i >= args.batch_size else "validation",
            }
            lines.write(json.dumps(pair) + "\n")


def _answer_words() -> list[str]:
    return [f"a{i}" for i in range(ANSWER_WORDS)]


def _question_words() -> list[str]:
    return [f"q{i}" for i in range(NUM_WORDS)]


def _run(work: Path, quantization: str, args: argparse.Namespace) -> dict[str, Any]:
    options = [
        *("--data", str(work / "benchmark.jsonl"), "--specialty", "benchmark"),
        *("--out", str(work / f"adapter-{quantization}")),
        *("--base_model", str(work / "base"), "--base_model_name", BASE_NAME),
        *("--quantization", quantization, "--dtype", args.dtype, "--device", args.device),
        *("--batch_size", str(args.batch_size), "--grad_accum", "1"),
        *(
            "--rank",
            str(args.rank),
            "--learning_rate",
            str(args.learning_rate),
            "--optimiser",
            args.optimiser,
            "--gradient_checkpointing",
        ),
        *("--max_prompt_tokens", str(args.tokens), "--max_answer_tokens", str(args.tokens)),
        *("--epochs", "1", "--max_steps", str(args.steps), "--seed", str(args.seed)),
    ]
    command = [sys.executable, "-m", "scripts.train_lora_adapter", *options]
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    with _peak_of_device(args.device) as peak:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        return {"exit_code": done.returncode}
    told = json.loads(done.stdout.strip().splitlines()[-1])
    kept = "validation_loss_at_start validation_loss num_steps train_s num_trained_parameters"
    kept += " num_parameters peak_memory_mib peak_reserved_mib"
    figures = {name: told[name] for name in kept.split() if name in told}
    return {"exit_code": 0, **figures, "process_peak_mib": peak[0]}


@contextmanager
def _peak_of_device(device: str) -> Iterator[list[int | None]]:
    """Its one item is, in the end, the highest rise of the GPU's used memory, in MiB."""
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


if __name__ == "__main__":
    raise SystemExit(main())
