"""Evaluate a router source by source: accuracy, calibration, and the gain over another router.

    python -m scripts.router_evaluation.shift --data DATA --out docs/router_shift.md \\
        --baseline OLD_MODEL

The data folder holds the records of `prepare_medical_dataset` (JSON lines); scored are the
questions of their validation split, each source on its own, and the sets of router/data that no
training has seen. --baseline is the artefact to compare with, such as router/model of an earlier
commit; gains are paired by question. Written: OUT. It holds no question text. The last line of
stdout is one JSON object.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from router.artefact import ArtefactError
from router.classifier import Classifier
from router.training.examples import OUT_OF_SCOPE
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError
from scripts.datasets.source import Source
from scripts.datasets.sources import read_source
from scripts.environment import command_line
from scripts.pages.markdown import render
from scripts.router.dataset import Entry, question
from scripts.router_evaluation import metrics
from scripts.router_evaluation.questions import read_written
from scripts.router_evaluation.scoring import Scored, score

TEMPLATE = Path(__file__).with_name("shift.md.j2")
ROUTER_DIR = Path(__file__).resolve().parents[2] / "router"
# Sets of router/data that no training has seen.
UNSEEN = {"written_shift": "written_shift.jsonl.bz2", "written_test": "written_test.jsonl.bz2"}
MIN_QUESTIONS = 10  # of a source


def main(argv: Sequence[str] | None = None) -> int:
    errors = (DataError, ArtefactError, OSError)
    return _parser().run(argv, lambda: errors, run)


def _parser() -> CommandParser:
    parser = CommandParser("router_evaluation.shift", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of JSON lines with split and source")
    add("--out", type=Path, required=True, help="the Markdown report")
    add("--model", type=Path, default=ROUTER_DIR / "model", help="folder of the artefact")
    add("--baseline", type=Path, help="folder of the artefact to compare with")
    add("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Measure, write the report, and return the figures by source.

    Raises:
        DataError, ArtefactError: an input cannot be read.
    """
    classifier = Classifier.load(args.model)
    baseline = Classifier.load(args.baseline) if args.baseline else None
    figures = {}
    for title, questions in sorted(by_source(args.data).items()):
        scored = score(classifier, questions, title)
        other = score(baseline, questions, f"{title}, baseline") if baseline else None
        figures[title] = measured(scored, other, args.seed)
    versions = [classifier.version, *([baseline.version] if baseline else [])]
    found = {"versions": versions, "sources": figures}
    command = command_line("router_evaluation.shift", argv)
    text = render(TEMPLATE, **found, command=command, num_bins=metrics.NUM_BINS)
    args.out.write_text(text, encoding="utf-8")
    return {"out": args.out.name, **found}


def by_source(data: Path) -> dict[str, list[Entry]]:
    """Return the questions to score by source, "all" sources of a language pooled too.

    Raises:
        DataError: the folder cannot be read, or has no validation question.
    """
    found: dict[str, list[Entry]] = defaultdict(list)
    records, _ = read_source(Source("jsonl", str(data)))
    for record in records:
        if record.split == "validation" and record.specialty != OUT_OF_SCOPE:
            title = f"{record.source}, {record.lang}"
            entry = question(
                record.id, record.question, record.specialty, record.lang, record.source, ""
            )
            found[title].append(entry)
    if not found:
        raise DataError(f"--data {data}: no question with split `validation` in it")
    for name, file in UNSEEN.items():
        for entry in read_written(ROUTER_DIR / "data" / file):
            if entry.is_inside:
                found[f"{name}: {entry.kind}, {entry.lang}"].append(entry)
    pooled = {
        f"exam vignettes of all sources, {lang}": [
            entry
            for title, entries in found.items()
            for entry in entries
            if entry.lang == lang and ("vignette" in title or "CasiMedicos" in title)
        ]
        for lang in ("en", "fr")
    }
    return {k: v for k, v in {**found, **pooled}.items() if len(v) >= MIN_QUESTIONS}


def measured(scored: Scored, other: Scored | None, seed: int) -> dict[str, Any]:
    """Return n, accuracy and its interval, mean confidence, ECE, and likewise of the other."""
    accuracy = metrics.share(scored.correct, seed=seed)
    found: dict[str, Any] = {
        "n": accuracy.n,
        "accuracy": [accuracy.value, accuracy.low, accuracy.high],
        "confidence": float(scored.confidence.mean()),
        "ece": metrics.calibration_error(scored.confidence, scored.correct),
        "named": float(scored.named.mean()),
        "wrong": float((scored.named & ~scored.correct).mean()),
    }
    if other is not None:
        gain = metrics.difference(scored.correct, other.correct, seed=seed)
        found |= {
            "gain": [gain.value, gain.low, gain.high],
            "baseline_accuracy": float(other.correct.mean()),
            "baseline_confidence": float(other.confidence.mean()),
            "baseline_ece": metrics.calibration_error(other.confidence, other.correct),
            "baseline_wrong": float((other.named & ~other.correct).mean()),
        }
    return found


if __name__ == "__main__":
    raise SystemExit(main())
