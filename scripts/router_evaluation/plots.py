"""The report's plots as PNG bytes; the same figures give the same bytes."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from scripts.evaluation.plots import BLUE, GREY
from scripts.router_evaluation.figures import COVERAGES, Selective
from scripts.router_evaluation.metrics import MIN_FOR_ECE, NUM_BINS, bins
from scripts.router_evaluation.results import Results
from scripts.router_evaluation.scoring import Scored, together
from scripts.router_evaluation.sets import Sets

RELIABILITY, SELECTIVE, CONFUSION = "reliability", "selective", "confusion"
MIN_FOR_A_CURVE = 100  # questions of a set whose curve is drawn; the table has every set
FEW_BINS = 5  # for a set with fewer than MIN_FOR_ECE questions
NUM_COLUMNS = 3
DPI = 110


def plots_of(results: Results, sets: Sets) -> dict[str, bytes]:
    """Return each plot as PNG."""
    validation, test = sets.validation.inside, sets.test.inside
    development = sets.written["development"].inside
    shown: list[tuple[str, Scored]] = [
        ("validation", validation),
        ("development", development),
        ("test", test),
        ("validation, English", validation.where(lang="en")),
        ("validation, French", validation.where(lang="fr")),
        ("development and test", together(development, test)),
    ]
    return {
        RELIABILITY: reliability([(name, scored) for name, scored in shown if scored.questions]),
        SELECTIVE: selective([row for row in results.selective if row.n >= MIN_FOR_A_CURVE]),
        CONFUSION: confusion(
            {name.lower(): np.array(counts) for name, counts in results.confusion.items()},
            results.labels,
        ),
    }


def reliability(sets: Sequence[tuple[str, Scored]]) -> bytes:
    """Draw accuracy over confidence, one panel for each set; the diagonal is perfect."""
    num_rows = -(-len(sets) // NUM_COLUMNS)
    figure = Figure(figsize=(3.1 * NUM_COLUMNS, 3.1 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).ravel()
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    for axes, (name, scored) in zip(panels, sets, strict=False):
        count = NUM_BINS if len(scored.questions) >= MIN_FOR_ECE else FEW_BINS
        rows = bins(scored.confidence, scored.correct, count)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        axes.plot(rows[:, 0], rows[:, 1], marker="o", markersize=4, color=BLUE)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        axes.set_title(f"{name}\n(n = {len(scored.questions)}, {len(rows)} bins)", fontsize=9)
        axes.set_xlabel("mean confidence", fontsize=8)
        axes.set_ylabel("accuracy", fontsize=8)
    return _png(figure)


def selective(curves: Sequence[Selective]) -> bytes:
    """Draw the accuracy on the most confident share, with its interval."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    coverages = [100 * coverage for coverage in COVERAGES]
    for row in curves:
        bands = np.array([(e.value, e.low, e.high) for e in row.accuracies], dtype=np.float64)
        value, low, high = bands.T
        axes.plot(coverages, value, marker="o", markersize=4, label=row.group)
        axes.fill_between(coverages, low, high, alpha=0.1)
    axes.set_xlabel("coverage, % of the questions")
    axes.set_ylabel("accuracy on them")
    if axes.lines:
        axes.legend(fontsize=8)
    return _png(figure)


def confusion(tables: Mapping[str, npt.NDArray[np.int64]], labels: Sequence[str]) -> bytes:
    """Draw the confusion matrices: a cell shows its count, its colour the share of its row."""
    side = 0.42 * len(labels)
    figure = Figure(figsize=((side + 1) * len(tables) + 2, side + 2), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        axes.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues", vmax=1)
        for row, column in zip(*np.nonzero(table), strict=True):
            colour = "white" if table[row, column] > table[row].sum() / 2 else "black"
            centred = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(column, row, str(table[row, column]), **centred)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_title(f"{name} (n = {table.sum()})", fontsize=10)
        axes.set_xlabel("the router's specialty")
    panels[0].set_ylabel("the question's specialty")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
