"""Measure the default reference shelf: build, search, diagnosis from signs.

    python -m scripts.evaluate_references --out docs/references_report.md
    python -m scripts.evaluate_references --out docs/references_report.md --large 1000000 \\
        --french shared/data/router_only_fr_hpo.jsonl
    python -m scripts.evaluate_references --figures docs/references_report.json \\
        --out docs/references_report.md [--large 1000000 [--work FOLDER]]

The shelf is built anew in a temporary folder. Questions and signs are those of
scripts/references_evaluation/questions.yaml.bz2; --french adds official French names of HPO terms
(JSON lines with `id` and `focus`, as router_only_fr_hpo.jsonl has them), which are not ours to
ship. With --figures, a report is written of an earlier run's, and only a large shelf is measured
and added. Timings hold for the machine's load, which the report states beside a plain full-text
query that was timed in turn with each search. Written: OUT, and the figures beside it as JSON. The
last line of stdout is one JSON object.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from references.default_shelf import ensure_shelf
from references.embedding import WordVectors
from references.ingest.hpo import Hpo, installed_files, read_hpo, sign_names
from references.ingest.hpo import passages as hpo_passages
from references.passage import ReferencesError
from references.shelf import Shelf, build
from scripts.arguments import CommandParser, at_least
from scripts.environment import command_line, environment
from scripts.pages.markdown import render
from scripts.references_evaluation import measures

TEMPLATE = measures.FOLDER / "report.md.j2"


def main(argv: Sequence[str] | None = None) -> int:
    errors = (ReferencesError, OSError, ValueError)
    return _parser().run(argv, lambda: errors, run)


def _parser() -> CommandParser:
    parser = CommandParser("evaluate_references", __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the Markdown report")
    add(
        "--figures",
        type=Path,
        metavar="FILE",
        help="JSON of an earlier run: measure no more than --large",
    )
    add("--french", type=Path, metavar="FILE", help="official French names of HPO terms")
    add("--large", type=at_least(1), metavar="N", help="time a shelf of N passages, too")
    add("--work", type=Path, metavar="FOLDER", help="keeps that shelf, and is looked at for it")
    add("--vignettes", type=int, default=100, help="patients for each number of signs")
    add("--seed", type=int, default=0)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> Mapping[str, Any]:
    if args.figures:
        figures = json.loads(args.figures.read_text(encoding="utf-8"))
    else:
        figures = measure(args) | {
            "environment": environment(),
            "command": command_line("evaluate_references", argv),
        }
    if args.large:
        figures["large"] = _large(args.large, args.seed, args.work)
    if args.large or not args.figures:
        text = json.dumps(figures, indent=1) + "\n"
        args.out.with_suffix(".json").write_text(text, encoding="utf-8")
    args.out.write_text(render(TEMPLATE, **figures), encoding="utf-8")
    return {"report": args.out.name, "recall": figures["paraphrases"]["held_out"]}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build the shelf and return every figure of the report."""
    hpo = read_hpo(installed_files())
    with tempfile.TemporaryDirectory() as folder:
        shelf, built = _built(Path(folder) / "shelf.db")
        search = measures.Search(shelf, hpo)
        figures: dict[str, Any] = {
            "build": built,
            "load": list(os.getloadavg()),
            "paraphrases": {
                name: {lang: search.paraphrases(name, lang) for lang in _languages(name)}
                for name in measures.SETS
            },
            "synonyms": search.synonyms(args.seed),
            "names": search.names(args.seed),
            "absent": {
                rows: search.absent(rows) for rows in ("en", "fr", "en_held_out", "fr_held_out")
            },
            "diagnosis": measures.diagnoses(
                shelf, hpo, _ways(hpo, args.french), args.vignettes, args.seed
            ),
            "times": _times(shelf),
        }
    return figures


def _languages(name: str) -> list[str]:
    return [lang for lang in ("en", "fr") if lang in measures.questions()[name][0]]


def _built(path: Path) -> tuple[Shelf, dict[str, float]]:
    start, cpu = time.perf_counter(), time.process_time()
    shelf = ensure_shelf(path)
    return shelf, {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "megabytes": path.stat().st_size / 1e6,
        "passages": shelf.num_passages,
    }


def _ways(hpo: Hpo, french: Path | None) -> dict[str, dict[str, Sequence[str]]]:
    """Return, by way of speaking, term id -> phrases for it."""
    names = sign_names(hpo)
    ids = {own[0]: id_ for id_, own in names.items()}
    rows = measures.questions()["signs"]
    ours: dict[str, dict[str, Sequence[str]]]
    ours = {lang: {ids[row["sign"]]: [row[lang]] for row in rows[1::2]} for lang in ("en", "fr")}
    layperson: dict[str, Sequence[str]]
    layperson = {id_: hpo.terms[id_].layperson for id_ in names if hpo.terms[id_].layperson}
    ways: dict[str, dict[str, Sequence[str]]] = {
        "names and synonyms": dict(names),
        "everyday English": layperson | ours["en"],
    }
    if french is not None:
        lines = french.read_text(encoding="utf-8").splitlines()
        official = {
            f"HP:{row['id'].rpartition('-')[2]}": [row["focus"]] for row in map(json.loads, lines)
        }
        known: dict[str, Sequence[str]]
        known = {id_: text for id_, text in official.items() if id_ in names}
        ways["French"] = known | ours["fr"]
    return ways


def _times(shelf: Shelf) -> dict[str, Any]:
    """Return times of a search and of a plain full-text query, in turn."""
    rows = [*measures.questions()["held_out"], *measures.questions()["development"]]
    questions = [row[lang] for row in rows for lang in ("en", "fr")]
    fresh = Shelf(shelf.path, vectorise=WordVectors())
    fresh.search("hair loss")  # opens the file and reads the vectors
    connection = fresh.connection()
    ways: dict[str, Callable[[str], object]] = {
        "search": fresh.search,
        "plain": lambda question: measures.full_text(connection, question),
    }
    return {**measures.alternated(questions, ways), "load": list(os.getloadavg())}


def _large(count: int, seed: int, work: Path | None) -> dict[str, Any]:
    """Time a shelf of `count` passages, the default ones with noise, built in `work` or nowhere."""
    with tempfile.TemporaryDirectory() as scratch:
        path = (work or Path(scratch)) / f"large_{count}_{seed}.db"
        noted = path.with_suffix(".json")
        if not noted.exists():
            noted.write_text(json.dumps(_built_large(path, count, seed)), encoding="utf-8")
        built: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
        return built | _times(Shelf(path))


def _built_large(path: Path, count: int, seed: int) -> dict[str, Any]:
    passages = list(hpo_passages(read_hpo(installed_files())))
    start, cpu = time.perf_counter(), time.process_time()
    build(path, measures.noisy(passages, count, seed), vectorise=WordVectors())
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "megabytes": path.stat().st_size / 1e6,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "passages": count,
        "environment": environment(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
