"""One report on several adapters, from the results of scripts.evaluate_adapter.

    python -m scripts.report_adapters --evaluations runs/specialists/evaluation \\
        --out docs/specialists

Writes OUT.md and OUT.html (one file, with plots): metrics of base, adapter and dummies for each
specialty and pooled over them, by question type, counts of what an answer should not do, and
examples by id with our models' own words. It holds no text of the data. --table_into puts the
results table into another Markdown file, between the lines `<!-- results -->` and
`<!-- /results -->`. --with_text writes EVALUATIONS/with_text.local.html, with every question,
reference and answer: for your own eyes, and git ignores files of that name. The last line of stdout
is one JSON object.
"""

import argparse
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.arguments import HelpFormatter
from scripts.datasets.record import DataError, load_pairs
from scripts.evaluation.answers import SYSTEMS, read_answers
from scripts.evaluation.figures import Result, pooled, read_results
from scripts.evaluation.report_text import report_of, results_table
from scripts.lora.card import command_line, commit

BEGIN, END = "<!-- results -->", "<!-- /results -->"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px}"
    "th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left}th{background:#f3f3f3}"
    "blockquote{border-left:3px solid #ccc;margin-left:0;padding-left:1em;color:#444}"
    "svg{max-width:100%;height:auto}"
)


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    try:
        report = run(args, given)
    except (DataError, OSError) as error:
        print(f"report_adapters: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report_adapters",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--evaluations", type=Path, required=True, help="folder of <specialty>.json results")
    add("--out", type=Path, required=True, help="without ending")
    add("--table_into", type=Path, metavar="FILE", help="Markdown file with the two marker lines")
    add("--with_text", type=Path, metavar="DATA", help="the data folder that was evaluated on")
    add("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Write what was asked for; the pooled figures.

    Raises:
        DataError, OSError: unreadable results, marker lines missing, data that is not theirs.
    """
    results = read_results(args.evaluations)
    made_by = f"Commit `{commit()}`, `{command_line('report_adapters', argv)}`."
    text, plots = report_of(results, made_by, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page = args.out.with_name(args.out.name + ".html")
    args.out.with_name(args.out.name + ".md").write_text(text, encoding="utf-8")
    page.write_text(_page(text, plots), encoding="utf-8")
    if args.table_into is not None:
        _put_table(args.table_into, results, args.seed)
    if args.with_text is not None:
        target = args.evaluations / "with_text.local.html"
        target.write_text(_with_text(args.with_text, args.evaluations, results), encoding="utf-8")
    everything = pooled(results, args.seed)
    return {
        "num_adapters": len(results),
        "num_questions": everything.num_questions,
        "differences": everything.differences,
    }


def _page(text: str, plots: Sequence[str]) -> str:
    """One HTML file of the Markdown, with the plots behind its first heading's paragraphs."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    first = body.find("<h2>")
    body = body[:first] + "\n".join(plots) + body[first:]
    title = html.escape(text.splitlines()[0].lstrip("# "))
    return _document(title, body)


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _put_table(file: Path, results: Sequence[Result], seed: int) -> None:
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{file}: it needs the line {BEGIN}, and the line {END} after it, once")
    before, rest = text.split(BEGIN)
    table = "\n".join(results_table(results, pooled(results, seed)))
    file.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _with_text(data: Path, evaluations: Path, results: Sequence[Result]) -> str:
    """Every question, its reference and both answers; local, since it quotes the data."""
    parts = ["<h1>Questions, references and answers: not for publication</h1>"]
    for result in results:
        specialty = result["specialty"]
        pairs = load_pairs(data, specialty)
        if pairs.files != result["data_files"]:
            raise DataError(f"--with_text {data}: {specialty} was evaluated on other data")
        answers = read_answers(evaluations / f"{specialty}.answers.jsonl")
        parts.append(f"<h2>{html.escape(specialty)}</h2>")
        for pair in pairs.validation:
            parts.append(f"<h3>{html.escape(pair.id)}: {html.escape(pair.question)}</h3><dl>")
            said = {system: answers.rows[system][pair.id].answer for system in SYSTEMS}
            for name, words in {"reference": pair.answer, **said}.items():
                parts.append(f"<dt><b>{name}</b></dt><dd>{html.escape(words)}</dd>")
            parts.append("</dl>")
    return _document("With text", "\n".join(parts))


if __name__ == "__main__":
    raise SystemExit(main())
