"""From data to promoted adapters and a report: the other scripts, one after the other.

    python -m scripts.make_specialists --data DATA_FOLDER

Stages: prepare (split by disease), train (one adapter on all specialties together, then one for
each that starts from it), answers (of base and adapter to the validation questions), score, promote
(into the catalogue, through the gate), report. What is there already, made by the same command
from the same data, is not made again: after an interrupt the same call continues. Each step's
stderr is in WORK/logs. The last line of stdout is one JSON object.

Without a GPU all twelve take two cores about a day: train the one you need with
scripts.train_lora_adapter, or name few --specialties.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from adapters.bases.models import BaseModelError
from scripts.arguments import CommandParser, positive
from scripts.datasets.record import DataError
from scripts.specialists.steps import ROOT, StepError

STAGES = ("prepare", "train", "answers", "score", "promote", "report")
TWELVE = (
    *("dermatology", "cardiology", "neurology", "oncology", "gastroenterology", "pulmonology"),
    *("endocrinology", "nephrology_urology", "infectious_disease", "ophthalmology"),
    *("hematology", "rheumatology_orthopedics"),
)
ERRORS = (BaseModelError, DataError, StepError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _parser().run(argv, lambda: ERRORS, _run)
    except KeyboardInterrupt:
        print("make_specialists: interrupted; the same call goes on", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    first, last = STAGES.index(args.first), STAGES.index(args.last)
    if first > last:
        raise DataError(f"--first {args.first} comes after --last {args.last}")
    from scripts.specialists.pipeline import Pipeline

    return Pipeline(args).run(STAGES[first : last + 1])


def _parser() -> CommandParser:
    parser = CommandParser("make_specialists", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of <specialty>.jsonl files")
    add("--specialties", nargs="+", default=list(TWELVE), help="default: the twelve")
    add("--licence", help="of the data, where its sources are not those that this project knows")
    add("--with_passages", action="store_true", help="train on prompts with passages, as grounded")
    add("--work", type=Path, default=Path("runs/specialists"), help="folder of all intermediates")
    add("--catalog", type=Path, default=ROOT / "adapters", help="folder of catalog.yaml")
    add("--report", type=Path, default=ROOT / "docs" / "specialists", help="without its ending")
    parser.add_base_model()
    add("--suffix", default="", help="of the adapters' names, for a second base model: -t5")
    add("--dtype", help="of the base while training; default: bfloat16 on a GPU, else float32")
    add("--answer_batch_size", type=positive, help="default: 128 on a GPU, else 16")
    add("--jobs", type=positive, help="trained at the same time; default: 4 on a GPU, else 1")
    add("--first", choices=STAGES, default=STAGES[0], help="stage to begin with")
    add("--last", choices=STAGES, default=STAGES[-1], help="stage to end with")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
