"""Train the router's encoder: a teacher of twelve layers, then a small student of 4-bit weights.

    python -m scripts.train_router_encoder --data runs/router_data --init runs/encoder_init \\
        --out router/model --layers 1 4 7 10

`--finish ARTEFACT` continues with the encoder of a trained artefact instead, without a teacher.
Teacher and student start from the folder of scripts/router/encoder_init.py and learn the specialty
and the scope of the entries of the split `encoder`. The student also learns the teacher's
probabilities and its pooled vector (Hinton et al. 2015); in its second half it trains with weights
rounded to 4 bits, as it will be served.
The split `validation` is scored after each epoch and decides nothing. Written: encoder.onnx and
tokenizer.json. A GPU does it in minutes. The last line of stdout is one JSON object.
"""

import argparse
import io
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from router.artefact import load_artefact
from router.encoder import (
    ENCODER,
    PACKED_ENCODER,
    PACKED_TOKENIZER,
    TOKENIZER,
    read_encoder,
    read_tokenizer,
    tokenizer_file,
)
from router.training.examples import OUT_OF_SCOPE
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError
from scripts.router.dataset import read_entries
from scripts.router.encoder_batches import Text
from scripts.router.encoder_export import export, read_back
from scripts.router.encoder_model import Encoder, from_init
from scripts.router.encoder_trainer import Plan, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, lambda: (DataError, OSError), lambda args, words: run(args))


def _parser() -> CommandParser:
    parser = CommandParser("train_router_encoder", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of prepare_router_dataset")
    add("--init", type=Path, help="folder of encoder_init")
    add("--finish", type=Path, help="an artefact whose encoder to train on, without a teacher")
    add("--out", type=Path, required=True, help="folder for encoder.onnx and tokenizer.json")
    add("--layers", type=int, nargs="+", default=[1, 4, 7, 10], help="the student's, of 0 to 11")
    add("--teacher_epochs", type=int, default=6, help="passes over the texts")
    add("--student_epochs", type=int, default=10, help="passes over the texts")
    add("--teacher_rate", type=float, default=1e-4, help="highest learning rate")
    add("--student_rate", type=float, default=3e-4, help="highest learning rate")
    add("--teacher_file", type=Path, help="safetensors: read if it exists, else written")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="to train on")
    add("--limit", type=int, help="train on this many entries, terms last")
    add("--seed", type=int, default=0, help="of sampling, changes and order")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train teacher and student, and export; returns the report."""
    texts, labels = read_texts(args.data)
    if (args.init is None) == (args.finish is None):
        raise DataError("give --init or --finish, not both")
    training = _limited([t for t in texts if t.split == "encoder"], args.limit, args.seed)
    held_out = [t for t in texts if t.split in ("validation", "held_out") and t.kind == "question"]
    tokenizer_path = tokenizer_file(args.init or args.finish)
    tokenizer = read_tokenizer(tokenizer_path)
    trainer = Trainer(tokenizer, training, held_out, args.device)
    started = time.monotonic()
    if args.finish:
        student = _with_heads(args.finish, labels)
        plan = Plan(args.student_epochs, args.student_rate, 0.0, args.seed + 2)
        figures = trainer.fit(student, plan)
    else:
        teacher = _teacher(args, trainer, len(labels))
        student = from_init(args.init, len(labels), layers=args.layers)
        start_from(student, teacher, args.layers)
        plan = Plan(args.student_epochs, args.student_rate, 0.5, args.seed + 1)
        figures = trainer.fit(student, plan, teacher=teacher)
    student.set_quantised(True)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in {TOKENIZER, PACKED_TOKENIZER} - {tokenizer_path.name}:
        if args.out.resolve() != tokenizer_path.parent.resolve():
            (args.out / name).unlink(missing_ok=True)  # of a training before
    (args.out / PACKED_ENCODER).unlink(missing_ok=True)  # it would be taken for this one
    size = export(student.cpu().eval(), args.out / ENCODER)
    shutil.copyfile(tokenizer_path, args.out / tokenizer_path.name)
    return {
        "labels": labels,
        "num_training": len(training),
        "validation": figures,
        "bytes": size,
        "seconds": round(time.monotonic() - started, 1),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }


def _limited(training: list[Text], limit: int | None, seed: int) -> list[Text]:
    """Return at most `limit` texts; English terms of public lists are left out first."""
    if limit is None or len(training) <= limit:
        return training
    generator = random.Random(seed)
    mixed = generator.sample(training, len(training))
    mixed.sort(key=lambda t: t.kind == "term" and t.lang == "en" and t.source != "glossary")
    return generator.sample(mixed[:limit], limit)


def _with_heads(artefact: Path, labels: Sequence[str]) -> Encoder:
    """Return an artefact's encoder, its two heads set to the directions of the projection."""
    loaded = load_artefact(artefact)
    encoder = read_back(io.BytesIO(read_encoder(artefact)), len(labels))
    projection = loaded.projection
    directions = torch.from_numpy(projection.components / projection.ngram_scale)
    offset = -torch.from_numpy(projection.mean) @ directions
    with torch.no_grad():
        encoder.specialty.weight.copy_(directions[:, -1 - len(labels) : -1].T)
        encoder.specialty.bias.copy_(offset[-1 - len(labels) : -1])
        encoder.scope.weight.copy_(directions[:, -1:].T)
        encoder.scope.bias.copy_(offset[-1:])
    return encoder


def _teacher(args: argparse.Namespace, trainer: Trainer, num_labels: int) -> Encoder:
    from safetensors.torch import load_file, save_file

    teacher = from_init(args.init, num_labels)
    if args.teacher_file and args.teacher_file.is_file():
        teacher.load_state_dict(load_file(args.teacher_file))
        return teacher.to(args.device)
    trainer.fit(teacher, Plan(args.teacher_epochs, args.teacher_rate, None, args.seed))
    if args.teacher_file:
        save_file(teacher.state_dict(), args.teacher_file)
    return teacher


def start_from(student: Encoder, teacher: Encoder, layers: Sequence[int]) -> None:
    """Copy the teacher's weights to the student, of its layers those in `layers`."""
    for name in ("word", "position", "norm", "attention", "specialty", "scope"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    for layer, number in zip(student.layers, layers, strict=True):
        layer.load_state_dict(teacher.layers[number].state_dict())


def read_texts(data: Path) -> tuple[list[Text], list[str]]:
    """Return the texts in file order, and the labels in alphabetical order.

    Raises:
        DataError: the folder is not one of prepare_router_dataset, or a line is malformed.
    """
    entries = list(read_entries(data))
    labels = sorted({entry.specialty for entry in entries} - {OUT_OF_SCOPE})
    index = {label: i for i, label in enumerate(labels)} | {OUT_OF_SCOPE: -1}
    texts = [Text(e.text, index[e.specialty], e.lang, e.kind, e.source, e.split) for e in entries]
    return texts, labels


if __name__ == "__main__":
    raise SystemExit(main())
