"""Pool the evaluation results of several adapters, question by question."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datasets.record import DataError, readable
from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.bootstrap import draws
from scripts.evaluation.comparison import MIN_DIAGNOSTIC, compared

METRICS = ("nll", "bleu", "rouge_l", "terminology")
Result = dict[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pooled:
    """Some questions of all specialties as one set; an estimate is {"value", "interval"}."""

    num_questions: int
    systems: dict[str, dict[str, dict[str, Any]]]  # metric that applies -> system -> estimate
    differences: dict[str, dict[str, Any]]  # metric -> adapter minus base


def read_results(folder: Path) -> list[Result]:
    """Return every result of scripts.evaluate_adapter in `folder`, by specialty.

    Raises:
        DataError: none there, one unreadable, or of different base models.
    """
    results = []
    for file in sorted(folder.glob("*.json")):
        with readable(f"{file}: no result of scripts.evaluate_adapter"):
            result = json.loads(file.read_text(encoding="utf-8"))
            if result["schema"] != 1:
                raise DataError(f"{file}: schema {result['schema']}; 1 is known")
            result["metrics"], result["per_question"]
        results.append(result)
    if not results:
        raise DataError(f"{folder}: no result of scripts.evaluate_adapter")
    bases = sorted({result["base_model"] for result in results})
    if len(bases) > 1:
        raise DataError(f"{folder}: results of several base models: {', '.join(bases)}")
    return results


def pooled(results: Sequence[Result], seed: int, keep: Callable[[Row], bool] = bool) -> Pooled:
    """Pool the questions that `keep` takes; resample within each specialty (stratified bootstrap).

    It must take at least one. BLEU is corpus BLEU over all of them; the other metrics are means
    over questions.
    """
    strata = [[row for row in result["per_question"] if keep(row)] for result in results]
    strata = [rows for rows in strata if rows]
    counts = np.hstack([draws(len(rows), seed + i) for i, rows in enumerate(strata)])
    rows = [row for stratum in strata for row in stratum]
    systems, differences = {}, {}
    for name in METRICS:
        columns = {  # (Q,), NaN (from null) where a question does not count; (Q, 10) for BLEU
            system: np.array([row[name][system] for row in rows], dtype=np.float64)
            for system in rows[0][name]
        }
        if not np.isnan(columns["base"]).all():
            systems[name], differences[name] = compared(name, columns, counts)
    return Pooled(len(rows), systems, differences)


def by_question_type(results: Sequence[Result], seed: int, smallest: int) -> dict[str, Pooled]:
    """Pool each question type of at least `smallest` questions, the most frequent first."""
    types = Counter(
        row["question_type"] or "unknown" for result in results for row in result["per_question"]
    )
    frequent = [name for name, num in types.most_common() if num >= smallest]

    def of_type(name: str) -> Callable[[Row], bool]:
        return lambda row: (row["question_type"] or "unknown") == name

    return {name: pooled(results, seed, of_type(name)) for name in frequent}


def unseen_wording(results: Sequence[Result], seed: int) -> dict[str, Pooled]:
    """Pool by whether the reference shares an 8-gram of words with a training answer."""
    groups: dict[str, Callable[[Row], bool]] = {
        "none of its 8-grams": lambda row: row["reference_8grams_in_training"] == 0,
        "one or more": lambda row: row["reference_8grams_in_training"] > 0,
    }
    rows = [row for result in results for row in result["per_question"]]
    return {
        name: pooled(results, seed, keep) for name, keep in groups.items() if any(map(keep, rows))
    }


def diagnostic(results: Sequence[Result], seed: int) -> dict[str, Any] | str:
    """Return the accuracy over all items, percent, or why there is none: too few items."""
    items = [item for result in results for item in result["diagnostic_items"]]
    if len(items) < MIN_DIAGNOSTIC:
        return f"{len(items)} items, {MIN_DIAGNOSTIC} are needed"
    counts = draws(len(items), seed)
    values = {s: np.array([100.0 * item[s] for item in items]) for s in SYSTEMS}
    systems, difference = compared("diagnostic_accuracy", values, counts)
    return {
        "n": len(items),
        "origins": dict(Counter(item["origin"] for item in items)),
        "right": {s: int(values[s].sum() / 100) for s in SYSTEMS},
        "systems": systems,
        "difference": difference,
    }


def honesty(results: Iterable[Result]) -> dict[str, dict[str, int]]:
    """Return system -> name of the count -> sum over all specialties."""
    totals: dict[str, dict[str, int]] = {system: defaultdict(int) for system in SYSTEMS}
    for result in results:
        for system in SYSTEMS:
            for name, count in result["honesty"][system].items():
                if not name.startswith("median"):
                    totals[system][name] += count
    return totals


def verdict(results: Sequence[Result], everything: Pooled) -> dict[str, Any]:
    """Tell which adapters differ from the base: the interval of the difference excludes zero."""

    def above(metric: str, sign: int) -> list[str]:
        return [
            result["specialty"]
            for result in results
            if (difference := result["metrics"][metric].get("difference"))
            and min(sign * bound for bound in difference["interval"]) > 0
        ]

    return {
        "num_adapters": len(results),
        "likelihood_rises": above("nll", -1),
        "worse": {metric: above(metric, -1) for metric in METRICS[1:]},
        "better": {metric: above(metric, 1) for metric in METRICS[1:]},
    }
