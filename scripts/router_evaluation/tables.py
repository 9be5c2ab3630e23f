"""Markdown tables of a router's figures."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from scripts.router_evaluation.figures import (
    AtThreshold,
    Calibration,
    Perturbed,
    Routing,
    Separation,
)
from scripts.router_evaluation.metrics import MIN_FOR_ECE, Estimate
from scripts.router_evaluation.speed import Speed, median
from scripts.router_evaluation.targets import MB, Target

Lines = list[str]


def number(estimate: Estimate | None, digits: int = 3, factor: float = 1.0) -> str:
    """`value [low, high]`."""
    if estimate is None or estimate.value is None:
        return "n/a"
    value = f"{_zero(factor * estimate.value, digits):.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    low, high = (_zero(factor * bound, digits) for bound in (estimate.low, estimate.high))
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def _zero(value: float, digits: int) -> float:
    """Without the sign of a negative number that rounds to zero."""
    return round(value, digits) + 0.0


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Lines:
    lines = [_line(names), _line(["---"] * len(names))]
    return lines + [_line(row) for row in rows]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def target_table(found: Sequence[Target]) -> Lines:
    def asked(target: Target) -> str:
        if target.bound is None:
            return "report it"
        return f"{'>=' if target.is_least else '<='} {target.bound:g}{target.unit}"

    def digits(target: Target) -> int:
        return 1 if target.unit and target.unit != " s" else 3

    rows = [
        (
            t.name,
            t.measured_on,
            asked(t),
            number(t.estimate, digits(t)) + (t.unit if t.estimate else ""),
            t.estimate.n if t.estimate else 0,
            f"**{t.verdict}**" if t.verdict == "missed" else t.verdict,
        )
        for t in found
    ]
    return table(("number", "measured on", "asked", "figure", "n", "verdict"), rows)


def routing_table(rows: Sequence[Routing], first: str) -> Lines:
    if not rows:
        return ["No question."]
    names = list(rows[0].baselines)
    head = [first, "n", "accuracy", "macro-F1", "coverage", "accuracy when sure"]
    head += [word for name in names for word in (name, f"gain over the {name}")]
    cells = []
    for row in rows:
        line: list[object] = [row.group, row.n, number(row.accuracy), number(row.macro_f1)]
        line += [number(row.coverage), _with_n(row.accuracy_when_sure)]
        for name in names:
            line += [number(row.baselines[name]), number(row.gains[name])]
        cells.append(line)
    return table(head, cells)


def _with_n(estimate: Estimate) -> str:
    return f"{number(estimate)} (n = {estimate.n})"


def recall_table(recalls: Mapping[str, Mapping[str, Estimate]], labels: Sequence[str]) -> Lines:
    rows = [[label, *(_with_n(recalls[name][label]) for name in recalls)] for label in labels]
    return table(("specialty", *recalls), rows)


def confusion_table(counts: npt.NDArray[np.int64], labels: Sequence[str]) -> Lines:
    """Rows are the questions' specialties; a column's head is cut to four letters."""
    short = [label[:4] for label in labels]
    head = short if len(set(short)) == len(short) else list(labels)
    rows = [
        [label, *(str(count) if count else "" for count in row)]
        for label, row in zip(labels, counts.tolist(), strict=True)
    ]
    return table(("", *head), rows)


def calibration_table(rows: Sequence[Calibration]) -> Lines:
    few = f"n/a (n < {MIN_FOR_ECE})"
    cells = [
        (
            row.group,
            row.ece.n,
            few if row.ece.value is None else number(row.ece),
            f"{row.confidence:.3f}",
            f"{row.accuracy:.3f}",
        )
        for row in rows
    ]
    return table(("set", "n", "ECE", "mean confidence", "accuracy"), cells)


def selective_table(curves: Mapping[str, Mapping[float, Estimate]]) -> Lines:
    coverages = list(next(iter(curves.values())))
    rows = [
        [name, points[coverages[-1]].n, *(number(points[c]) for c in coverages)]
        for name, points in curves.items()
    ]
    return table(("set", "n", *(f"{c:.0%}" for c in coverages)), rows)


def separation_table(rows: Sequence[Separation]) -> Lines:
    cells = [
        (r.inside, r.num_inside, r.strangers, r.auroc.n, number(r.auroc), number(r.false_positives))
        for r in rows
    ]
    return table(("in scope", "n", "strangers", "n", "AUROC", "FPR at 95 % recall"), cells)


def threshold_table(rows: Sequence[AtThreshold]) -> Lines:
    cells = [(r.group, r.kept.n, number(r.kept), number(r.to_a_specialist)) for r in rows]
    return table(("questions", "n", "taken as in scope", "reach a specialist"), cells)


def perturbation_table(rows: Sequence[Perturbed]) -> Lines:
    cells = [
        (
            row.group,
            row.perturbation,
            row.accuracy.n,
            row.num_changed,
            number(row.accuracy),
            number(row.lost, 1, 100),
        )
        for row in rows
    ]
    return table(("questions", "perturbation", "n", "changed", "accuracy", "points lost"), cells)


def speed_table(speed: Speed) -> Lines:
    files = ", ".join(f"{name} {size:,}" for name, size in speed.folder_bytes.items())
    rows: list[tuple[str, str, int]] = []
    for name, times in (("one question", speed.question_ms), ("a page", speed.page_ms)):
        rows += [(f"{name}, p{p}", f"{number(t, 1)} ms", t.n) for p, t in times.items()]
    rows += [
        (
            f"questions a second, {speed.batch} in one call",
            _range(speed.per_second, 0),
            len(speed.per_second),
        ),
        ("load the artefact", f"{_range(speed.load_s, 2)} s", len(speed.load_s)),
        ("import the classifier before it", f"{_range(speed.import_s, 2)} s", len(speed.import_s)),
    ]
    if speed.resident_bytes is not None:
        rows.append(
            (
                f"resident memory, loaded and {speed.num_for_memory} questions classified",
                f"{speed.resident_bytes / MB:.0f} MB",
                len(speed.load_s),
            )
        )
    total = sum(speed.folder_bytes.values())
    rows.append(("artefact folder", f"{total:,} bytes ({files})", len(speed.folder_bytes)))
    return table(("what", "figure", "n"), rows)


def _range(values: Sequence[float], digits: int) -> str:
    """The median of some repeats and their range."""
    return (
        f"{median(values):.{digits}f} (range {min(values):.{digits}f} to {max(values):.{digits}f})"
    )
