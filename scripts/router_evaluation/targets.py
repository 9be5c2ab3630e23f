"""The targets of the router, and whether they were reached: by the value, not by the interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scripts.router_evaluation.baselines import ALL_TEXTS, PUBLIC
from scripts.router_evaluation.figures import Calibration, Routing
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.results import Results

Verdict = Literal["reached", "missed", "reported", "not measured"]
FRENCH, ENGLISH = "French (HPO)", "English"
WRITTEN = ("development", "test")
ACCURACY, HELD_OUT, IN_FRENCH = 0.85, 0.75, 0.88
MAX_ECE, MAX_LOST = 0.05, 0.03
MIN_AUROC, MAX_FALSE = 0.98, 0.05
MAX_P95_MS, MIN_PER_SECOND, MAX_LOAD_S = 25.0, 150.0, 3.0
MAX_FOLDER_MB, MAX_MEMORY_MB = 12.0, 500.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class RouterTarget:
    """A number that was asked for."""

    name: str
    measured_on: str
    estimate: Estimate | None
    bound: float | None  # None where the number is only to be reported
    is_least: bool = True  # the bound is a minimum; otherwise it is a maximum
    unit: str = ""  # written behind figure and bound

    @property
    def verdict(self) -> Verdict:
        value = self.estimate.value if self.estimate else None
        if value is None:
            return "not measured"
        if self.bound is None:
            return "reported"
        is_reached = value >= self.bound if self.is_least else value <= self.bound
        return "reached" if is_reached else "missed"


def targets(results: Results) -> list[RouterTarget]:
    """Return all targets with their figures, in the report's order."""
    parts = (_english, _french, _vignettes, _perturbations, _scope, _speed)
    return [target for part in parts for target in part(results)]


def _accuracy(rows: Sequence[Routing], group: str) -> Estimate | None:
    return next((row.accuracy for row in rows if row.group == group), None)


def _english(results: Results) -> list[RouterTarget]:
    strict = results.strict
    validations = {"shipped": results.routing["validation"]}
    if strict:
        validations["strict"] = strict.routing["validation"]
    found = []
    for artefact, rows in validations.items():
        where = f"validation, {artefact} artefact"
        f1 = next((row.macro_f1 for row in rows if row.group == ENGLISH), None)
        found.append(RouterTarget("English: accuracy", where, _accuracy(rows, ENGLISH), ACCURACY))
        found.append(RouterTarget("English: macro-F1", where, f1, ACCURACY))
    title = "held-out English source: accuracy"
    held_out = strict.routing["held out"] if strict else []
    found += [
        RouterTarget(title, f"{row.group}, strict artefact", row.accuracy, HELD_OUT)
        for row in held_out
    ] or [RouterTarget(title, "strict artefact", None, HELD_OUT)]
    found.append(_ece(results.calibration, f"validation, {ENGLISH}", "shipped"))
    if strict:
        found.append(_ece(strict.calibration, ENGLISH, "strict"))
    return found


def _ece(rows: Sequence[Calibration], group: str, artefact: str) -> RouterTarget:
    found = next((row.ece for row in rows if row.group == group), None)
    return RouterTarget("English: ECE", f"validation, {artefact} artefact", found, MAX_ECE, False)


def _french(results: Results) -> list[RouterTarget]:
    title, where = "French HPO questions: accuracy", "validation, {} artefact ({})"
    known = where.format("shipped", "templates held out, terms may be known")
    unknown = where.format("strict", "templates and terms held out")
    shipped = _accuracy(results.routing["validation"], FRENCH)
    strict = results.strict.routing["validation"] if results.strict else ()
    plain = {name: _accuracy(results.routing[name], "plain, French") for name in WRITTEN}
    return [
        RouterTarget(title, known, shipped, IN_FRENCH),
        RouterTarget(title, unknown, _accuracy(strict, FRENCH), IN_FRENCH),
        *(
            RouterTarget("plain French questions: accuracy", f"{name} set", value, IN_FRENCH)
            for name, value in plain.items()
        ),
    ]


def _vignettes(results: Results) -> list[RouterTarget]:
    where = "validation, shipped artefact"
    found = []
    for language in ("English", "French"):
        name = f"exam vignettes, {language}"
        rows = results.routing["validation"]
        accuracy = _accuracy(rows, name)
        found.append(RouterTarget(f"{name}: accuracy", where, accuracy, None))
        for baseline in (PUBLIC, ALL_TEXTS):
            gain = next((row.gains.get(baseline) for row in rows if row.group == name), None)
            title = f"{name}: gain over the {baseline}"
            found.append(RouterTarget(title, f"{where}, paired", gain, 0.0))
    return found


def _perturbations(results: Results) -> list[RouterTarget]:
    found = []
    for group in dict.fromkeys(row.group for row in results.perturbed):
        rows = [row for row in results.perturbed if row.group == group]
        lost = [row.lost.value or 0.0 for row in rows]
        worst = rows[lost.index(max(lost))]
        num_over = sum(value > MAX_LOST for value in lost)
        where = f"{group}: {worst.perturbation} ({num_over} of {len(rows)} lose more than asked)"
        title = "largest loss under a perturbation"
        found.append(RouterTarget(title, where, worst.lost, MAX_LOST, False))
    return found


def _scope(results: Results) -> list[RouterTarget]:
    """Compare each of our own sets with its out-of-scope questions."""
    found = []
    for row in results.separation:
        kind, _, origin = row.outside.partition(" (")
        if kind not in ("far", "near misses") or origin != f"{row.inside})":
            continue
        min_auroc, max_false = (MIN_AUROC, MAX_FALSE) if kind == "far" else (None, None)
        where, false = f"{row.inside} set", row.false_positives
        found += [
            RouterTarget(f"AUROC, {kind}", where, row.auroc, min_auroc),
            RouterTarget(f"FPR at 95 % recall, {kind}", where, false, max_false, False),
        ]
    return found


def _speed(results: Results) -> list[RouterTarget]:
    speed = results.speed
    machine = f"{speed.num_cores} cores, 1-minute load {speed.load_1_min:.1f}"
    batch = f"{speed.batch} questions, median"
    p95 = speed.question_ms["p95"]
    sizes = (speed.resident_bytes / MB, sum(speed.folder_bytes.values()) / MB)
    memory, folder = (Estimate(size, None, None, 1) for size in sizes)
    fresh = "fresh process"
    return [
        RouterTarget("one question, p95", machine, p95, MAX_P95_MS, False, " ms"),
        RouterTarget(
            "questions a second in one call", batch, speed.per_second, MIN_PER_SECOND, True, " / s"
        ),
        RouterTarget("load", f"{fresh}es, median", speed.load_s, MAX_LOAD_S, False, " s"),
        RouterTarget("resident memory", f"{fresh}, largest", memory, MAX_MEMORY_MB, False, " MB"),
        RouterTarget("size in git", "artefact folder", folder, MAX_FOLDER_MB, False, " MB"),
    ]
