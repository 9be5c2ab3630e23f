"""The report: figures as JSON, and the page that the template report.md.j2 makes of them.

The page is rendered from the JSON, so a change of its words needs no new measurement.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.pages import markdown
from scripts.router_evaluation import metrics, perturbations, speed
from scripts.router_evaluation.figures import COVERAGES
from scripts.router_evaluation.results import Results
from scripts.router_evaluation.targets import targets

TEMPLATE = Path(__file__).with_name("report.md.j2")
NUM_DIGITS = 6  # behind the point, of a figure in the JSON
Figures = Mapping[str, Any]


def figures_of(results: Results) -> dict[str, Any]:
    """Return everything that the template shows, as JSON values."""
    found = targets(results)
    protocol = {
        "num_resamples": metrics.NUM_RESAMPLES,
        "num_expensive": metrics.NUM_EXPENSIVE,
        "num_bins": metrics.NUM_BINS,
        "min_for_ece": metrics.MIN_FOR_ECE,
        "num_perturbed": perturbations.NUM_PERTURBED,
        "num_pages": speed.NUM_PAGES,
        "page_chars": speed.PAGE_CHARS,
        "coverages": list(COVERAGES),
    }
    told = [asdict(target) | {"verdict": target.verdict} for target in found]
    rounded: dict[str, Any] = _rounded({**asdict(results), "targets": told, "protocol": protocol})
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, NUM_DIGITS)
    if isinstance(value, Mapping):
        return {str(key): _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value


def to_json(figures: Figures) -> str:
    """Return one line for each section."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in figures.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def render(figures: Figures, plots: Mapping[str, str], notes: str) -> str:
    """Return the page in Markdown.

    Args:
        figures: of `figures_of`, with `made_by`: commit, command and seed.
        plots: plot -> the file that the page shows it from.
        notes: why targets were missed, in the authors' words; may be empty.
    """
    shown = {"number": number, "spread": spread, "cell": cell, "short": short}
    return markdown.render(TEMPLATE, **figures, **shown, plots=plots, notes=notes.strip())


def number(estimate: Figures | None, digits: int = 3, factor: float = 1.0) -> str:
    """Return `value [low, high]`, or "n/a" where nothing was measured."""
    if estimate is None or estimate["value"] is None:
        return "n/a"
    value, *bounds = (
        None if part is None else f"{round(factor * part, digits) + 0.0:.{digits}f}"  # no "-0.0"
        for part in (estimate["value"], estimate["low"], estimate["high"])
    )
    return str(value) if None in bounds else f"{value} [{bounds[0]}, {bounds[1]}]"


def spread(repeats: Figures, digits: int) -> str:
    """Return the median of some repeats and their range."""
    return "{value:.{0}f} (range {low:.{0}f} to {high:.{0}f})".format(digits, **repeats)


def cell(text: str) -> str:
    """Return a name as the text of a table's cell."""
    return text.replace("|", "\\|")


def short(labels: Sequence[str]) -> list[str]:
    """Return the labels cut to four letters, or as they are where two would be the same."""
    cut = [label[:4] for label in labels]
    return cut if len(set(cut)) == len(cut) else list(labels)
