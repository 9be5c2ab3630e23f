"""Figures of a trained router on questions that it was not trained on, as a report.

    python -m scripts.evaluate_router --data runs/router_data --out docs/router.md
    python -m scripts.evaluate_router --data runs/router_data --out docs/router.md \\
        --strict_model runs/strict/model --strict_data runs/strict/data

The data folder is what `prepare_router_dataset` wrote and `train_router` read; scored are the
questions of its split validation, and our own development and test sets. --strict_model is a second
artefact, trained without the names that held-out questions are about and without whole sources
(`prepare_router_dataset --unseen_names --hold_out SOURCE`); the report shows both. Written: OUT,
OUT's plots as PNG files beside it, and one HTML file with the plots inside. The report holds no
question text. The last line of stdout is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from router.artefact import ArtefactError
from scripts.arguments import HelpFormatter
from scripts.datasets.record import DataError
from scripts.router_evaluation.page import page
from scripts.router_evaluation.plots import CONFUSION, RELIABILITY, SELECTIVE, plots_of
from scripts.router_evaluation.report import report_of
from scripts.router_evaluation.results import Results, evaluate
from scripts.router_evaluation.targets import targets

ROUTER_DIR = Path(__file__).resolve().parent.parent / "router"


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    try:
        report = run(args, given)
    except (DataError, ArtefactError, OSError) as error:
        print(f"evaluate_router: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate_router",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of prepare_router_dataset")
    add("--out", type=Path, required=True, help="the Markdown report, e.g. docs/router.md")
    add("--model", type=Path, default=ROUTER_DIR / "model", help="folder of the artefact")
    add("--dev", type=Path, default=ROUTER_DIR / "data" / "written_dev.jsonl", help="our own")
    add("--test", type=Path, default=ROUTER_DIR / "data" / "written_test.jsonl", help="our own")
    add("--strict_model", type=Path, metavar="FOLDER", help="needs --strict_data")
    add("--strict_data", type=Path, metavar="FOLDER", help="that --strict_model was trained on")
    add(
        "--notes", type=Path, metavar="FILE", help="Markdown put under the targets: why some missed"
    )
    add("--seed", type=int, default=0, help="of bootstrap, samples and perturbations")
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Everything from the folders to the report; returns the targets.

    Raises:
        DataError, ArtefactError, OSError: what cannot be read or does not belong together.
    """
    from scripts.environment import command_line, commit

    if (args.strict_model is None) != (args.strict_data is None):
        raise DataError("--strict_model and --strict_data go together: give both, or neither")
    if args.out.suffix != ".md":
        raise DataError(f"--out {args.out}: a name that ends in .md is expected")
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = evaluate(
        args.data,
        args.model,
        {"development": args.dev, "test": args.test},
        strict=(args.strict_model, args.strict_data) if args.strict_model else None,
        seed=args.seed,
    )
    made_by = f"Commit `{commit()}`, `{command_line('evaluate_router', argv)}`, seed {args.seed}."
    write(results, args.out, made_by, notes)
    return summary(results)


def write(results: Results, out: Path, made_by: str, notes: str) -> None:
    """The report as Markdown with plots beside it, and as one HTML file."""
    names = {plot: f"{out.stem}_{plot}.png" for plot in (RELIABILITY, SELECTIVE, CONFUSION)}
    plots = plots_of(results)
    text = report_of(results, made_by, names, notes)
    for plot, content in plots.items():
        (out.parent / names[plot]).write_bytes(content)
    out.write_text(text, encoding="utf-8")
    inside: Mapping[str, bytes] = {names[plot]: content for plot, content in plots.items()}
    out.with_suffix(".html").write_text(page(text, inside), encoding="utf-8")


def summary(results: Results) -> dict[str, Any]:
    """What the last line says."""
    found = targets(results)
    return {
        "version": results.version,
        "strict_version": results.strict.version if results.strict else None,
        "num_reached": sum(target.verdict == "reached" for target in found),
        "num_missed": sum(target.verdict == "missed" for target in found),
        "targets": [
            {
                "name": target.name,
                "measured_on": target.measured_on,
                "bound": target.bound,
                "value": _rounded(target.estimate.value if target.estimate else None),
                "interval": [_rounded(target.estimate.low), _rounded(target.estimate.high)]
                if target.estimate
                else None,
                "n": target.estimate.n if target.estimate else 0,
                "verdict": target.verdict,
            }
            for target in found
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    raise SystemExit(main())
