"""One metric of base, adapter and dummies: values, paired difference, intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.bootstrap import Floats, corpus_bleu, estimate, mean

MIN_DIAGNOSTIC = 10  # items below which an accuracy says nothing
DUMMIES = ("nearest_neighbour", "random", "echo")
_ABOUT: dict[str, tuple[str, bool]] = {  # metric -> (unit, higher is better)
    "nll": ("nats for each reference token", False),
    "bleu": ("percent", True),
    "rouge_l": ("percent", True),
    "terminology": ("percent", True),
    "diagnostic_accuracy": ("percent", True),
    "citation_precision": ("percent", True),
    "citation_recall": ("percent", True),
    "invented_urls": ("for each answer", False),
    "time_per_answer_s": ("seconds", False),
    "extra_memory_mib": ("MiB", False),
}


def resampled(name: str, values: Floats, counts: Floats) -> tuple[float, Floats]:
    """Return (value, (R,) resampled values); NaN marks questions that do not count."""
    if name == "bleu":
        total = np.asarray(counts @ values)
        return float(corpus_bleu(values.sum(axis=0))), corpus_bleu(total)
    valid = ~np.isnan(values)
    return float(values[valid].mean()), mean(values[valid], counts[:, valid])


def compared(
    name: str, columns: Mapping[str, Floats], counts: Floats
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return (system -> {"value", "interval"}, the same of adapter minus base).

    Args:
        columns: system -> value of each question, (Q,); BLEU's statistics are (Q, 10).
        counts: how often each resample has each question, (R, Q).
    """
    found = {system: resampled(name, values, counts) for system, values in columns.items()}
    (base, base_draws), (adapter, adapter_draws) = found["base"], found["adapter"]
    difference = estimate(adapter - base, adapter_draws - base_draws)
    return {system: estimate(*pair) for system, pair in found.items()}, difference


def metric(name: str, columns: Mapping[str, Floats], counts: Floats) -> dict[str, Any]:
    """Return the metric's entry in a result file; arguments are those of `compared`."""
    first = columns["base"]
    if np.isnan(first).all():
        return not_available(name, "it applies to none of the questions")
    systems, difference = compared(name, columns, counts)
    absent = {dummy: "a fixed text has no likelihood" for dummy in DUMMIES if dummy not in columns}
    num = len(first) if first.ndim > 1 else int((~np.isnan(first)).sum())
    return _about(name, num) | {
        "systems": systems,
        "difference": difference,
        "not_available": absent if name == "nll" else {},
    }


def not_available(name: str, why: str, num: int = 0) -> dict[str, Any]:
    """Return the entry of a metric that cannot be computed: the reason for every system."""
    return _about(name, num) | {"systems": {}, "not_available": dict.fromkeys(SYSTEMS, why)}


def _about(name: str, num: int) -> dict[str, Any]:
    unit, higher = _ABOUT[name]
    return {"unit": unit, "higher_is_better": higher, "n": num}
