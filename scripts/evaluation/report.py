"""The report on several adapters: cells of its tables; prose and layout are in report.md.j2."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.figures import (
    METRICS,
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
from scripts.markdown import head, render, row

TEMPLATE = Path(__file__).with_name("report.md.j2")
TITLES = {
    "nll": "loss, nats a token (lower is better)",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "terminology": "terminology, %",
}
SHORT = {"nll": "loss", "bleu": "BLEU", "rouge_l": "ROUGE-L", "terminology": "terminology"}
DIGITS = {"nll": 3, "bleu": 1, "rouge_l": 1, "terminology": 1}
MIN_OF_A_TYPE = 15  # questions below which a type has no row
HONESTY = {
    "hit_token_limit": "ended at the limit of new tokens, not by itself",
    "goes_in_circles": "repeats itself",
    "answers_with_unsupported_numbers": "holds a number that neither question nor reference has",
    "unsupported_numbers": "such numbers in all",
    "empty": "empty",
}
ORIGINS = {"signs": "lists of signs", "vignette": "case reports"}


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
        first=results[0],
        metrics=METRICS,
        systems=SYSTEMS,
        short=SHORT,
        everything=everything,
        verdict=verdict(results, everything),
        results_table=results_table(results, everything),
        pooled_cell=_pooled_cell,
        pooled_row=_pooled_row,
        times_base=lambda name: _times_base(everything.systems.get(name)),
        system_cells=lambda system: _system_cells(system, everything, measured[0]),
        ahead=_ahead_of_the_adapter(everything),
        unseen=unseen_wording(results, seed),
        types=by_question_type(results, seed, MIN_OF_A_TYPE),
        min_of_a_type=MIN_OF_A_TYPE,
        diagnostic=diagnostic(results, seed),
        origins=ORIGINS,
        honesty=honesty(results),
        honesty_labels=HONESTY,
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
        hashes=lambda result: " ".join(digest[:16] for digest in result["data_files"].values()),
    )
    return text, _plots(results, everything)


def results_table(results: Sequence[Result], everything: Pooled) -> str:
    """Return a row for each specialty and one over all: base → adapter [their difference]."""
    lines = [head("specialty", "n", *SHORT.values())]
    for result in results:
        cells = [_metric_cell(name, result["metrics"][name]) for name in METRICS]
        lines.append(row(result["specialty"], result["num_questions"], *cells))
    return "\n".join([*lines, _pooled_row("**pooled**", everything)])


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


def _system_cells(system: str, everything: Pooled, metrics: Mapping[str, Any]) -> list[str]:
    cells = []
    for name in METRICS:
        estimate = everything.systems.get(name, {}).get(system)
        why = metrics[name].get("not_available", {}).get(system, "not computed")
        cells.append(_estimate(name, estimate) if estimate else f"n/a ({why})")
    return cells


def _ahead_of_the_adapter(everything: Pooled) -> list[str]:
    """Return the metrics in which the nearest neighbour is ahead."""
    return [
        SHORT[name]
        for name, values in everything.systems.items()
        if "nearest_neighbour" in values
        and values["nearest_neighbour"]["value"] > values["adapter"]["value"]
    ]


def _missing(results: Sequence[Result]) -> dict[tuple[str, str], list[str]]:
    """Return (metric, why the adapter has no value) -> specialties."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        for name, metric in result["metrics"].items():
            if "adapter" in metric["not_available"]:
                reasons[name, metric["not_available"]["adapter"]].append(result["specialty"])
    return reasons


def _metric_cell(name: str, metric: Mapping[str, Any]) -> str:
    if "difference" not in metric:
        return f"n/a ({next(iter(metric['not_available'].values()))})"
    return _change(name, metric["systems"], metric["difference"])


def _pooled_row(label: str, group: Pooled) -> str:
    return row(label, group.num_questions, *(_pooled_cell(name, group) for name in METRICS))


def _pooled_cell(name: str, group: Pooled) -> str:
    if name not in group.systems:
        return "n/a (it applies to none of the questions)"
    return _change(name, group.systems[name], group.differences[name])


def _times_base(values: Mapping[str, Any] | None) -> str:
    """Return ", 1.63 times base"; "" without values, or when the base is at 0."""
    if values is None or values["base"]["value"] == 0:
        return ""
    return f", {values['adapter']['value'] / values['base']['value']:.2f} times base"


def _change(name: str, values: Mapping[str, Any], difference: Mapping[str, Any]) -> str:
    digits = DIGITS[name]
    base, adapter = (f"{values[system]['value']:.{digits}f}" for system in SYSTEMS)
    low, high = (f"{bound:+.{digits}f}" for bound in difference["interval"])
    return f"{base} → {adapter} [{low}, {high}]"


def _estimate(name: str, estimate: Mapping[str, Any]) -> str:
    digits = DIGITS[name]
    low, high = (f"{bound:.{digits}f}" for bound in estimate["interval"])
    return f"{estimate['value']:.{digits}f} [{low}, {high}]"


def _escaped(text: str) -> str:
    """Return the text as one paragraph of Markdown that shows it and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split())) or "(empty)"
