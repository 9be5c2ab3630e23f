"""What the router was asked to reach, and whether it did: by the value, the interval beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scripts.router_evaluation.figures import Calibration, Routing
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.questions import ALL_TEXTS, PUBLIC
from scripts.router_evaluation.results import Results
from scripts.router_evaluation.speed import median

Verdict = Literal["reached", "missed", "reported", "not measured"]
FRENCH, ENGLISH = "French (HPO)", "English"
ACCURACY, HELD_OUT, IN_FRENCH = 0.85, 0.75, 0.88
MAX_ECE, MAX_LOST = 0.05, 0.03
MIN_AUROC, MAX_FALSE = 0.98, 0.05
MAX_P95_MS, MIN_PER_SECOND, MAX_LOAD_S = 25.0, 150.0, 3.0
MAX_FOLDER_MB, MAX_MEMORY_MB = 12.0, 500.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class Target:
    """`is_least`: the bound is the least that is asked for, not the most. `unit` is put behind
    figure and bound."""

    name: str
    measured_on: str
    estimate: Estimate | None
    bound: float | None
    is_least: bool
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        value = self.estimate.value if self.estimate else None
        if value is None:
            return "not measured"
        if self.bound is None:
            return "reported"
        is_reached = value >= self.bound if self.is_least else value <= self.bound
        return "reached" if is_reached else "missed"


def targets(results: Results) -> list[Target]:
    return [
        *_english(results),
        *_french(results),
        *_vignettes(results),
        *_perturbations(results),
        *_scope(results),
        *_speed(results),
    ]


def figure(
    rows: Sequence[Routing], name: str, of: Callable[[Routing], Estimate]
) -> Estimate | None:
    """Of the group with that name; None: there is none."""
    return next((of(row) for row in rows if row.group == name), None)


def accuracy(row: Routing) -> Estimate:
    return row.accuracy


def _english(results: Results) -> list[Target]:
    validations = {"shipped": results.routing["validation"]}
    strict = results.strict
    if strict:
        validations["strict"] = strict.routing["validation"]
    found = []
    for name, rows in validations.items():
        where = f"validation, {name} artefact"
        value = figure(rows, ENGLISH, accuracy)
        found.append(Target("English: accuracy", where, value, ACCURACY, True))
        value = figure(rows, ENGLISH, lambda row: row.macro_f1)
        found.append(Target("English: macro-F1", where, value, ACCURACY, True))
    title = "held-out English source: accuracy"
    if strict and strict.routing["held out"]:
        found += [
            Target(title, f"{row.group}, strict artefact", row.accuracy, HELD_OUT, True)
            for row in strict.routing["held out"]
        ]
    else:
        found.append(Target(title, "strict artefact", None, HELD_OUT, True))
    found.append(_ece(results.calibration, f"validation, {ENGLISH}", "shipped"))
    if strict:
        found.append(_ece(strict.calibration, ENGLISH, "strict"))
    return found


def _ece(rows: Sequence[Calibration], name: str, artefact: str) -> Target:
    found = next((row.ece for row in rows if row.group == name), None)
    return Target("English: ECE", f"validation, {artefact} artefact", found, MAX_ECE, False)


def _french(results: Results) -> list[Target]:
    title = "French HPO questions: accuracy"
    shipped = figure(results.routing["validation"], FRENCH, accuracy)
    strict = None
    if results.strict:
        strict = figure(results.strict.routing["validation"], FRENCH, accuracy)
    where = "validation, {} artefact ({})"
    known = where.format("shipped", "templates held out, terms may be known")
    unknown = where.format("strict", "templates and terms held out")
    found = [
        Target(title, known, shipped, IN_FRENCH, True),
        Target(title, unknown, strict, IN_FRENCH, True),
    ]
    for name in results.sets.written:
        value = figure(results.routing[name], "plain, French", accuracy)
        found.append(
            Target("plain French questions: accuracy", f"{name} set", value, IN_FRENCH, True)
        )
    return found


def _vignettes(results: Results) -> list[Target]:
    rows = results.routing["validation"]
    where = "validation, shipped artefact, paired"
    found = []
    for language in ("English", "French"):
        name = f"exam vignettes, {language}"
        found.append(
            Target(
                f"{name}: accuracy",
                "validation, shipped artefact",
                figure(rows, name, accuracy),
                None,
                True,
            )
        )
        gains = next((row.gains for row in rows if row.group == name), {})
        for baseline in (PUBLIC, ALL_TEXTS):
            title = f"{name}: gain over the {baseline}"
            found.append(Target(title, where, gains.get(baseline), 0.0, True))
    return found


def _perturbations(results: Results) -> list[Target]:
    groups = dict.fromkeys(row.group for row in results.perturbed)
    found = []
    for name in groups:
        rows = [
            row for row in results.perturbed if row.group == name and row.lost.value is not None
        ]
        worst = max(rows, key=lambda row: row.lost.value or 0.0)
        num_over = sum((row.lost.value or 0.0) > MAX_LOST for row in rows)
        found.append(
            Target(
                "largest loss under a perturbation",
                f"{name}: {worst.perturbation} ({num_over} of {len(rows)} lose more than asked)",
                worst.lost,
                MAX_LOST,
                False,
            )
        )
    return found


def _scope(results: Results) -> list[Target]:
    found = []
    for row in results.separation:
        if row.strangers not in (f"far ({row.inside})", f"near misses ({row.inside})"):
            continue
        is_far = row.strangers.startswith("far")
        kind, where = row.strangers.partition(" (")[0], f"{row.inside} set"
        found.append(
            Target(f"AUROC, {kind}", where, row.auroc, MIN_AUROC if is_far else None, True)
        )
        found.append(
            Target(
                f"FPR at 95 % recall, {kind}",
                where,
                row.false_positives,
                MAX_FALSE if is_far else None,
                False,
            )
        )
    return found


def _speed(results: Results) -> list[Target]:
    speed = results.speed
    machine = f"{speed.num_cores} cores, 1-minute load {speed.load_1_min:.1f}"
    resident = speed.resident_bytes
    folder = sum(speed.folder_bytes.values()) / MB
    return [
        Target("one question, p95", machine, speed.question_ms[95], MAX_P95_MS, False, " ms"),
        Target(
            "questions a second in one call",
            f"{speed.batch} questions, median",
            _repeats(speed.per_second),
            MIN_PER_SECOND,
            True,
            " / s",
        ),
        Target("load", "fresh processes, median", _repeats(speed.load_s), MAX_LOAD_S, False, " s"),
        Target(
            "resident memory",
            "fresh process, largest",
            _exact(resident / MB) if resident is not None else None,
            MAX_MEMORY_MB,
            False,
            " MB",
        ),
        Target("size in git", "artefact folder", _exact(folder), MAX_FOLDER_MB, False, " MB"),
    ]


def _repeats(values: Sequence[float]) -> Estimate:
    """Median of a few repeats; the interval is their range."""
    return Estimate(median(values), min(values), max(values), len(values))


def _exact(value: float) -> Estimate:
    return Estimate(value, None, None, 1)
