"""Evaluate a trained router on questions that it was not trained on, and write a report.

    python -m scripts.evaluate_router --data runs/router_data --out docs/router.md
    python -m scripts.evaluate_router --data runs/router_data --out docs/router.md \\
        --strict_model runs/strict/model --strict_data runs/strict/data
    python -m scripts.evaluate_router --figures docs/router.json --out docs/router.md
    python -m scripts.evaluate_router --phrasings --out docs/router_phrasings.md

The data folder is what `prepare_router_dataset` wrote and `train_router` read; scored are the
questions of its split validation, and our own development and test sets. --strict_model is a second
artefact, trained without the names that held-out questions are about and without whole sources
(`prepare_router_dataset --unseen_names --hold_out SOURCE`); the report shows both. Written: OUT;
the figures as JSON and the plots as PNG files in the same folder; with --html one HTML file with
the plots inside. --figures writes the report of an earlier run's JSON again and measures nothing.
The report holds no question text. --phrasings needs no data: it scores the conversations and
phrasings of scripts/router_evaluation and writes a report and its figures as JSON; --before takes
such figures of another router, to show beside. The last line of stdout is one JSON object.
"""

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from router.artefact import ArtefactError
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError

ROUTER_DIR = Path(__file__).resolve().parent.parent / "router"
SECTIONS = ("made_by", "targets", "protocol")  # that a report cannot do without


def main(argv: Sequence[str] | None = None) -> int:
    errors = (DataError, ArtefactError, OSError)
    return _parser().run(argv, lambda: errors, _run)


def _run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    return run_phrasings(args, argv) if args.phrasings else summary(run(args, argv))


def run_phrasings(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Score our conversations and phrasings, write the report, and return the figures.

    Raises:
        DataError, ArtefactError, OSError: an input cannot be read.
    """
    from scripts.environment import command_line, commit
    from scripts.router_evaluation import phrasings

    needed = set(phrasings.SECTIONS)
    before = read_figures(args.before, "--before", needed) if args.before else None
    figures = phrasings.measure(args.model)
    made_by = f"Commit `{commit()}`, `{command_line('evaluate_router', argv)}`."
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    args.out.write_text(phrasings.render(figures, before, made_by), encoding="utf-8")
    return {"version": figures["version"], "out": args.out.name}


def _parser() -> CommandParser:
    parser = CommandParser("evaluate_router", __doc__)
    add = parser.add_argument
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--data", type=Path, help="folder of prepare_router_dataset")
    measured.add_argument("--figures", type=Path, metavar="FILE", help="JSON of an earlier run")
    measured.add_argument("--phrasings", action="store_true", help="score texts that we wrote")
    add("--before", type=Path, metavar="FILE", help="figures of --phrasings to show beside")
    add("--out", type=Path, required=True, help="the Markdown report, e.g. docs/router.md")
    add("--html", action="store_true", help="write the report as one HTML file too")
    add("--model", type=Path, default=ROUTER_DIR / "model", help="folder of the artefact")
    add("--dev", type=Path, default=ROUTER_DIR / "data" / "written_dev.jsonl.bz2", help="our own")
    add("--test", type=Path, default=ROUTER_DIR / "data" / "written_test.jsonl.bz2", help="our own")
    add("--strict_model", type=Path, metavar="FOLDER", help="needs --strict_data")
    add("--strict_data", type=Path, metavar="FOLDER", help="that --strict_model was trained on")
    add("--notes", type=Path, metavar="FILE", help="Markdown on missed targets, put under them")
    add("--seed", type=int, default=0, help="of bootstrap, samples and perturbations")
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Measure or read the figures, write the report, and return the figures.

    Raises:
        DataError, ArtefactError, OSError: an input cannot be read, or does not fit another.
    """
    from scripts.router_evaluation.report import render

    if (args.strict_model is None) != (args.strict_data is None):
        raise DataError("--strict_model and --strict_data go together: give both, or neither")
    if args.out.suffix != ".md":
        raise DataError(f"--out {args.out}: a name that ends in .md is expected")
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figures = read_figures(args.figures) if args.figures else measure(args, argv)
    text = render(figures, {plot: path.name for plot, path in plot_files(args.out).items()}, notes)
    args.out.write_text(text, encoding="utf-8")
    if args.html:
        from scripts.pages.markdown import page

        html = page(_with_pictures(text, plot_files(args.out).values()))
        args.out.with_suffix(".html").write_text(html, encoding="utf-8")
    return figures


def _with_pictures(text: str, files: Iterable[Path]) -> str:
    """Put PNG files into the Markdown text that shows them."""
    for file in files:
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        text = text.replace(f"]({file.name})", f"](data:image/png;base64,{data})")
    return text


def plot_files(out: Path) -> dict[str, Path]:
    """Return the file of each plot of the report `out`."""
    plots = ("reliability", "selective", "confusion")
    return {plot: out.with_name(f"{out.stem}_{plot}.png") for plot in plots}


def read_figures(
    path: Path, option: str = "--figures", needed: Set[str] = frozenset(SECTIONS)
) -> dict[str, Any]:
    """Read the figures that an earlier run wrote, given as the value of `option`.

    Raises:
        DataError: the file holds no JSON object with the sections that are needed.
    """
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = needed - set(figures)
    except (ValueError, TypeError) as error:
        raise DataError(f"{option} {path}: not JSON ({error})") from None
    if missing:
        raise DataError(
            f"{option} {path}: no {', '.join(sorted(missing))} in it; expected the .json file "
            "that evaluate_router wrote with its report"
        )
    return figures


def measure(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Evaluate, and write figures and plots; returns the figures."""
    from scripts.environment import command_line, commit
    from scripts.router_evaluation.plots import plots_of
    from scripts.router_evaluation.report import figures_of, to_json
    from scripts.router_evaluation.results import evaluate

    results, sets = evaluate(
        args.data,
        args.model,
        {"development": args.dev, "test": args.test},
        strict=(args.strict_model, args.strict_data) if args.strict_model else None,
        seed=args.seed,
    )
    made_by = f"Commit `{commit()}`, `{command_line('evaluate_router', argv)}`, seed {args.seed}."
    figures = {"made_by": made_by, **figures_of(results)}
    args.out.with_suffix(".json").write_text(to_json(figures), encoding="utf-8")
    files = plot_files(args.out)
    for plot, content in plots_of(results, sets).items():
        files[plot].write_bytes(content)
    return figures


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Return what the last line says."""
    found, strict = figures["targets"], figures["strict"]
    return {
        "version": figures["version"],
        "strict_version": strict["version"] if strict else None,
        "num_reached": sum(target["verdict"] == "reached" for target in found),
        "num_missed": sum(target["verdict"] == "missed" for target in found),
        "targets": [_told(target) for target in found],
    }


def _told(target: dict[str, Any]) -> dict[str, Any]:
    about = {key: target[key] for key in ("name", "measured_on", "bound", "verdict")}
    if not target["estimate"]:
        return {**about, "value": None, "interval": None, "n": 0}
    parts = (target["estimate"][part] for part in ("value", "low", "high"))
    value, *interval = (None if part is None else round(part, 4) for part in parts)
    return {**about, "value": value, "interval": interval, "n": target["estimate"]["n"]}


if __name__ == "__main__":
    raise SystemExit(main())
