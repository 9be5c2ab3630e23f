"""One report on several adapters, from the results of scripts.evaluate_adapter.

    python -m scripts.report_adapters --evaluations runs/specialists/evaluation \\
        --out docs/specialists

Writes OUT.md, and with --html OUT.html (one file, with plots): metrics of base, adapter and dummies
for each specialty and pooled over them, by question type, counts of what an answer should not do,
and examples by id with our models' own words. It holds no text of the data. --table_into puts the
results table into another Markdown file, between the lines `<!-- results -->` and
`<!-- /results -->`. --with_text writes EVALUATIONS/with_text.local.html, with every question,
reference and answer: for your own eyes; git ignores files of that name. The last line of stdout
is one JSON object.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.arguments import CommandParser
from scripts.datasets.pairs import load_pairs
from scripts.datasets.record import DataError
from scripts.environment import command_line, commit
from scripts.evaluation.answer_file import SYSTEMS, read_answers
from scripts.pages.markdown import document, page, put_between, render

WITH_TEXT = Path(__file__).parent / "evaluation" / "with_text.html.j2"


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, lambda: (DataError, OSError), run)


def _parser() -> CommandParser:
    parser = CommandParser("report_adapters", __doc__)
    add = parser.add_argument
    add("--evaluations", type=Path, required=True, help="folder of <specialty>.json results")
    add("--out", type=Path, required=True, help="without ending")
    add("--html", action="store_true", help="write OUT.html too, with plots")
    add("--table_into", type=Path, metavar="FILE", help="Markdown file with the two marker lines")
    add("--with_text", type=Path, metavar="DATA", help="the data folder that was evaluated on")
    add("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Write what was asked for; return the pooled figures.

    Raises:
        DataError, OSError: unreadable results, marker lines missing, data that is not theirs.
    """
    from scripts.evaluation.figures import pooled, read_results
    from scripts.evaluation.report import report_of, results_table

    results = read_results(args.evaluations)
    everything = pooled(results, args.seed)
    made_by = f"Commit `{commit()}`, `{command_line('report_adapters', argv)}`."
    text, plots = report_of(results, made_by, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_name(args.out.name + ".md").write_text(text, encoding="utf-8")
    if args.html:
        whole = page(text, "\n".join(plots))
        args.out.with_name(args.out.name + ".html").write_text(whole, encoding="utf-8")
    if args.table_into is not None:
        put_between(args.table_into, "results", results_table(results, everything))
    if args.with_text is not None:
        target = args.evaluations / "with_text.local.html"
        target.write_text(_with_text(args.with_text, args.evaluations, results), encoding="utf-8")
    return {
        "num_adapters": len(results),
        "num_questions": everything.num_questions,
        "differences": everything.differences,
    }


def _with_text(data: Path, evaluations: Path, results: Sequence[dict[str, Any]]) -> str:
    """Return a page of every question, its reference and both answers: it quotes the data."""
    found = []
    for result in results:
        specialty = result["specialty"]
        pairs = load_pairs(data, specialty)
        if pairs.files != result["data_files"]:
            raise DataError(f"--with_text {data}: {specialty} was evaluated on other data")
        answers = read_answers(evaluations / f"{specialty}.answers.jsonl")
        found.append((specialty, pairs.validation, answers.rows))
    return document("With text", render(WITH_TEXT, specialties=found, systems=SYSTEMS))


if __name__ == "__main__":
    raise SystemExit(main())
