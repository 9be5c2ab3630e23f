"""Write the report on several adapters; its prose and tables are in report.md.j2 and cells.j2."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.figures import (
    Pooled,
    Result,
    by_question_type,
    diagnostic,
    honesty,
    pooled,
    unseen_wording,
    verdict,
)
from scripts.evaluation.plots import differences, systems
from scripts.pages.markdown import render

TEMPLATE = Path(__file__).with_name("report.md.j2")
TITLES = {
    "nll": "loss, nats a token (lower is better)",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "terminology": "terminology, %",
}
MIN_OF_A_TYPE = 15  # questions below which a type has no row


def report_of(results: Sequence[Result], made_by: str, seed: int) -> tuple[str, list[str]]:
    """Return (Markdown, plots as SVG texts).

    Args:
        made_by: a sentence on commit and command.
        seed: of the bootstrap.
    """
    everything = pooled(results, seed)
    measured = [result["metrics"] for result in results]
    invented = [metrics["invented_urls"] for metrics in measured]
    protocol = results[0]["protocol"]
    text = render(
        TEMPLATE,
        results=results,
        systems=SYSTEMS,
        everything=everything,
        verdict=verdict(results, everything),
        ahead=[
            name
            for name, by_system in everything.systems.items()
            if "nearest_neighbour" in by_system
            and by_system["nearest_neighbour"]["value"] > by_system["adapter"]["value"]
        ],
        unseen=unseen_wording(results, seed),
        types=by_question_type(results, seed, MIN_OF_A_TYPE),
        min_of_a_type=MIN_OF_A_TYPE,
        diagnostic=diagnostic(results, seed),
        honesty=honesty(results),
        invented=[
            round(sum(m["systems"][system]["value"] * m["n"] for m in invented))
            for system in SYSTEMS
        ],
        missing=_missing(results),
        memory=[m["extra_memory_mib"]["systems"]["adapter"]["value"] for m in measured],
        timed=[r for r in results if "difference" in r["metrics"]["time_per_answer_s"]],
        escaped=_escaped,
        protocol={k: v for k, v in protocol.items() if not k.startswith("base_instruction")},
        made_by=made_by,
    )
    return text, _plots(results, everything)


def results_table(results: Sequence[Result], everything: Pooled) -> str:
    """Return a row for each specialty and one over all: base → adapter [their difference]."""
    template = TEMPLATE.with_name("results_table.md.j2")
    return render(template, results=results, everything=everything).rstrip()


def _plots(results: Sequence[Result], everything: Pooled) -> list[str]:
    rows = {
        result["specialty"]: {
            name: metric["difference"]
            for name, metric in result["metrics"].items()
            if "difference" in metric
        }
        for result in results
    }
    rows["pooled"] = everything.differences
    titles = {name: title for name, title in TITLES.items() if name in everything.systems}
    return [differences(rows, titles), systems(everything.systems, titles)]


def _missing(results: Sequence[Result]) -> dict[tuple[str, str], list[str]]:
    """Return (metric, why the adapter has no value) -> specialties."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        for name, metric in result["metrics"].items():
            if "adapter" in metric["not_available"]:
                reasons[name, metric["not_available"]["adapter"]].append(result["specialty"])
    return reasons


def _escaped(text: str) -> str:
    """Return the text as one paragraph of Markdown that shows it and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split())) or "(empty)"
