"""Draw the report's figures, as SVG texts to put into a page."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scripts.evaluation.bootstrap import Floats

Estimate = Mapping[str, Any]  # {"value", "interval"}
BLUE, GREY = "#1f5fa8", "#888888"


def differences(rows: Mapping[str, Mapping[str, Estimate]], titles: Mapping[str, str]) -> str:
    """Draw adapter minus base with its 95 % interval: a line for each row, a panel for each metric.

    Args:
        rows: specialty -> metric -> estimate.
        titles: metric -> title of its panel.
    """
    names = list(rows)
    figure = Figure(figsize=(3.1 * len(titles), 0.28 * len(names) + 0.9), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        found = {i: rows[name][metric] for i, name in enumerate(names) if metric in rows[name]}
        values, errors = _with_errors(found.values())
        axes.errorbar(values, list(found), xerr=errors, fmt="o", color=BLUE, capsize=2)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_title(title, fontsize=10)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return _svg(figure)


def systems(rows: Mapping[str, Mapping[str, Estimate]], titles: Mapping[str, str]) -> str:
    """Draw a bar with its 95 % interval for each system, a panel for each metric.

    Args:
        rows: metric -> system -> estimate.
        titles: metric -> title of its panel.
    """
    figure = Figure(figsize=(3.1 * len(titles), 2.2), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        found = rows[metric]
        values, errors = _with_errors(found.values())
        colours = [BLUE if name == "adapter" else GREY for name in found]
        axes.barh(range(len(found)), values, xerr=errors, color=colours, height=0.6, capsize=2)
        axes.set_yticks(range(len(found)), [name.replace("_", " ") for name in found], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
    return _svg(figure)


def _with_errors(found: Iterable[Estimate]) -> tuple[Floats, Floats]:
    """Return values (N,) and their bars below and above (2, N), 0 beyond the interval."""
    rows = [(e["value"], *e["interval"]) for e in found]
    value, low, high = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return value, np.maximum([value - low, high - value], 0.0)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "polyclinic"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
