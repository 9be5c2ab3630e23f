"""Train the router: n-grams and head for an encoder that is trained already.

    python -m scripts.train_router --data runs/router_data         # the built-in encoder
    python -m scripts.train_router --data runs/router_data --encoder ORG/NAME --out FOLDER

The folder is what `prepare_router_dataset` wrote. The n-grams learn from its split `encoder`, head,
calibration and thresholds from `head`; `validation` is only scored. The built-in encoder is read
from --encoder_dir, by default the artefact itself (`train_router_encoder` makes one); --encoder
names any Hugging Face encoder instead, and serving then needs it too (`router.artefact` and
`router.encoder` in serve_config.yaml). The same data, encoder and seed give the same bytes on one
machine. The last line of stdout is one JSON object.
"""

import argparse
import datetime
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from router.encoder import OnnxEncoder, TextEncoder, encoder_file
from router.training.examples import LabelledText, Recipe
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError, readable
from scripts.environment import command_line
from scripts.router.augmentation import as_question
from scripts.router.dataset import MANIFEST, SPLITS, read_entries

MODEL_DIR = Path(__file__).resolve().parent.parent / "router" / "model"


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, lambda: (DataError, ValueError, OSError), run)


def _parser() -> CommandParser:
    parser = CommandParser("train_router", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of prepare_router_dataset")
    add("--encoder_dir", type=Path, default=MODEL_DIR, help="has encoder.onnx and tokenizer.json")
    add("--encoder", help="a Hugging Face encoder (id or folder) instead of the built-in one")
    add("--out", type=Path, default=MODEL_DIR, help="folder of the artefact")
    add("--date", default=datetime.date.today().isoformat(), help="first part of the version")
    add("--threads", type=int, default=2, help="of the encoder")
    add("--seed", type=int, default=0, help="of samples, and of the questions around terms")
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Train on the folder and save the artefact; returns the report."""
    from router.training.train import train
    from router.training.trained import save

    examples = read_examples(args.data, args.seed)
    provenance = _provenance(args.data, argv)
    encoder_dir = None if args.encoder else args.encoder_dir
    recipe = Recipe(seed=args.seed)
    trained = train(
        examples["encoder"],
        examples["head"],
        [e for e in examples["validation"] if e.kind == "question"],
        encoder=_encoder(args),
        encoder_dir=encoder_dir,
        recipe=recipe,
    )
    version = save(trained, args.out, date=args.date, provenance=provenance)
    manifest = trained.manifest
    return {
        "version": version,
        "num_examples": {name: len(found) for name, found in examples.items()},
        "num_features": manifest["num_features"],
        "calibration": manifest["calibration"],
        "thresholds": manifest["thresholds"],
        "cross_validated": manifest["cross_validated"],
        "bytes": sum(path.stat().st_size for path in args.out.iterdir() if path.is_file()),
    }


def _provenance(data: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Return what was trained on, and the command, without paths of this machine."""
    hint = "make the folder with prepare_router_dataset"
    with readable(f"--data {data}: {MANIFEST} cannot be read: {hint}"):
        prepared = json.loads((data / MANIFEST).read_text(encoding="utf-8"))
        about = {key: prepared[key] for key in ("sources", "hold_out", "unseen_names", "sha256")}
        attribution = prepared["attribution"]
    command = command_line("train_router", argv)
    return {"data": about, "attribution": attribution, "command": command}


def _encoder(args: argparse.Namespace) -> TextEncoder:
    if args.encoder:
        from router.transformers_encoder import TransformersEncoder

        return TransformersEncoder(args.encoder, threads=args.threads)
    if not encoder_file(args.encoder_dir).is_file():
        raise DataError(
            f"--encoder_dir {args.encoder_dir}: no encoder.onnx in it; make one with "
            "scripts.train_router_encoder, or name a Hugging Face encoder with --encoder"
        )
    return OnnxEncoder(args.encoder_dir, "built-in", threads=args.threads)


def read_examples(data: Path, seed: int) -> dict[str, list[LabelledText]]:
    """Read the examples of each split; the same seed puts terms into the same questions.

    Raises:
        DataError: the folder is not one of prepare_router_dataset, or a line is malformed.
    """
    examples: dict[str, list[LabelledText]] = {split: [] for split in SPLITS}
    for entry in read_entries(data):
        text = entry.text
        if entry.kind == "term" and entry.split in ("encoder", "head"):
            text = as_question(text, entry.lang, random.Random(f"{seed}/{entry.id}"))
        examples[entry.split].append(
            LabelledText(text, entry.specialty, entry.lang, entry.source, entry.group, entry.kind)
        )
    return examples


if __name__ == "__main__":
    raise SystemExit(main())
