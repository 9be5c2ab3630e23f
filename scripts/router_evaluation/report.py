"""The words of the router's report: sections of Markdown around the tables. No question text."""

from collections.abc import Mapping, Sequence

from scripts.router_evaluation.figures import COVERAGES
from scripts.router_evaluation.metrics import MIN_FOR_ECE, NUM_BINS, confusion
from scripts.router_evaluation.plots import CONFUSION, RELIABILITY, SELECTIVE
from scripts.router_evaluation.protocol import method
from scripts.router_evaluation.questions import Scored
from scripts.router_evaluation.results import NUM_PERTURBED, Results, Strict
from scripts.router_evaluation.speed import NUM_PAGES, PAGE_CHARS
from scripts.router_evaluation.tables import (
    Lines,
    calibration_table,
    confusion_table,
    perturbation_table,
    recall_table,
    routing_table,
    selective_table,
    separation_table,
    speed_table,
    table,
    target_table,
    threshold_table,
)
from scripts.router_evaluation.targets import targets


def report_of(results: Results, made_by: str, plot_names: Mapping[str, str], notes: str) -> str:
    """Markdown.

    Args:
        made_by: commit, command and seed.
        plot_names: plot -> the file that the page shows it from.
        notes: why targets were missed, in the authors' words; may be empty.
    """
    lines = [
        "# The router: figures",
        "",
        f"Artefact `{results.version}`. {made_by} This page is written by the command and holds no "
        "text of any question; examples are named by id.",
        "",
        *_targets(results, notes),
        *method(results),
        *_routing(results),
        *_strict(results.strict),
        *_recall(results, plot_names[CONFUSION]),
        *_calibration(results, plot_names),
        *_scope(results),
        *_perturbations(results),
        *_follow_ups(results),
        *_speed(results),
        *_errors(results),
    ]
    return "\n".join(lines) + "\n"


def _test(results: Results) -> Scored:
    return results.sets.written["test"].inside


def _targets(results: Results, notes: str) -> Lines:
    found = targets(results)
    missed = sum(target.verdict == "missed" for target in found)
    reached = sum(target.verdict == "reached" for target in found)
    return [
        "## Targets",
        "",
        f"{reached} reached, {missed} missed. The verdict goes by the value; the interval beside "
        "it is the middle 95 % of a percentile bootstrap over the questions (of repeated "
        "measurements: their range).",
        "",
        *target_table(found),
        "",
        *([notes.strip(), ""] if notes.strip() else []),
    ]


def _routing(results: Results) -> Lines:
    titles = {"validation": "Validation", "development": "Development set", "test": "Test set"}
    lines = ["## Which specialist", "", "In-scope questions only.", ""]
    for name, title in titles.items():
        lines += [f"### {title}", "", *routing_table(results.routing[name], "questions"), ""]
    lines += ["### By source, validation", "", *routing_table(results.routing["source"], "source")]
    if results.routing["held-out sources"]:
        lines += ["", "Sources that were held out of this artefact's training:", ""]
        lines += routing_table(results.routing["held-out sources"], "source")
    for name in titles:
        lines += ["", f"### By length, {name}", ""]
        lines += routing_table(results.routing[f"length, {name}"], "length")
    return [*lines, ""]


def _strict(strict: Strict | None) -> Lines:
    lines = ["## Without the names, and on sources never seen (strict)", ""]
    if strict is None:
        return [*lines, "Not measured in this run (`--strict_model`, `--strict_data`).", ""]
    held = ", ".join(strict.hold_out) or "none"
    names = (
        "without the names that held-out questions are about"
        if strict.unseen_names
        else "**with** the names of terminologies"
    )
    return [
        *lines,
        f"The same recipe trained again {names}, and without these whole sources: {held} (artefact "
        f"`{strict.version}`; {strict.origin}). It is not shipped. Compare its validation with the "
        "shipped artefact's above: the difference is what the public lists of names give. The "
        "sources that it does not know are scored whole; a disease of theirs may be in another "
        "source's training questions. Its baselines learn from its own training texts.",
        "",
        "### Strict: validation",
        "",
        *routing_table(strict.routing["validation"], "questions"),
        "",
        "### Strict: held-out sources",
        "",
        *routing_table(strict.routing["held out"], "source"),
        "",
        "### Strict: calibration",
        "",
        *calibration_table(strict.calibration),
        "",
    ]


def _recall(results: Results, plot: str) -> Lines:
    lines = ["## Recall by specialty", "", *recall_table(results.recalls, results.labels), ""]
    lines += ["## Confusion", "", f"![confusion matrices of validation and test]({plot})"]
    for name, scored in (("Validation", results.sets.validation.inside), ("Test", _test(results))):
        counts = confusion(scored.truth, scored.predicted, results.labels)
        lines += ["", f"### {name} (n = {counts.sum()})", ""]
        lines += ["Rows: the question's specialty; columns: the router's.", ""]
        lines += confusion_table(counts, results.labels)
    return [*lines, ""]


def _calibration(results: Results, plots: Mapping[str, str]) -> Lines:
    covered = ", ".join(f"{c:.0%}" for c in COVERAGES)
    return [
        "## Calibration",
        "",
        f"Expected calibration error of the top specialty's probability over {NUM_BINS} bins of "
        f"equal mass, on sets of {MIN_FOR_ECE} questions or more. A resample's ECE is larger than "
        "the set's own on average, so an interval may lie above its value.",
        "",
        *calibration_table(results.calibration),
        "",
        f"![reliability]({plots[RELIABILITY]})",
        "",
        "## Selective accuracy",
        "",
        f"Accuracy on the most confident {covered} of the questions.",
        "",
        *selective_table(results.selective),
        "",
        f"![selective accuracy]({plots[SELECTIVE]})",
        "",
    ]


def _scope(results: Results) -> Lines:
    return [
        "## In scope or not",
        "",
        "AUROC: how probably an in-scope question scores above a stranger. FPR: the share of "
        "strangers above the threshold that keeps 95 % of the in-scope questions. Both sides are "
        "resampled. *Far* questions have nothing to do with a clinic; *near misses* do (animals, "
        "parking, insurance, fiction); CLINC150 is a public set of strangers.",
        "",
        *separation_table(results.separation),
        "",
        "### At the artefact's threshold",
        "",
        f"In scope from {results.thresholds['in scope']:g}. Of strangers, *taken as in scope* is "
        "the share that is not refused; one that reaches a specialist is also confidently routed.",
        "",
        *threshold_table(results.at_threshold),
        "",
    ]


def _perturbations(results: Results) -> Lines:
    return [
        "## Perturbations",
        "",
        "The same in-scope questions as they are and changed; points lost are paired, a negative "
        f"number is a gain. Of validation, at most {NUM_PERTURBED} questions of each language, "
        "drawn with the seed. *Changed*: questions that the perturbation alters at all. Accents, "
        "punctuation and slips change in the ways that training changes them, at other places; the "
        "polite chat and the page are sentences that training does not have.",
        "",
        *perturbation_table(results.perturbed),
        "",
    ]


def _follow_ups(results: Results) -> Lines:
    found = results.follow_ups
    share = "n/a" if found.value is None else f"{found.value:.0%}"
    bounds = "" if found.low is None else f" [{found.low:.0%}, {found.high:.0%}]"
    return [
        "## Follow-ups",
        "",
        f"Of {found.n} follow-ups without words of their own (development set), {share}{bounds} "
        "are seen as such: the conversation's specialty goes on.",
        "",
    ]


def _speed(results: Results) -> Lines:
    speed = results.speed
    return [
        "## Speed and size",
        "",
        f"{speed.processor}, {speed.num_cores} cores, 1-minute load {speed.load_1_min:.1f} when "
        "timing began; one encoder thread; warm. Questions are the test set's, one at a time; "
        f"{NUM_PAGES} pages of {PAGE_CHARS:,} characters are put together from them. Load and "
        "memory are a fresh process's.",
        "",
        *speed_table(speed),
        "",
    ]


def _errors(results: Results) -> Lines:
    lines = ["## Most confident errors", "", "By id; none of the test set, which stays unread.", ""]
    rows: list[Sequence[object]] = [
        (name, id_, truth, given, f"{confidence:.2f}")
        for name, found in results.errors.items()
        for id_, truth, given, confidence in found
    ]
    return [*lines, *table(("set", "id", "specialty", "the router's", "confidence"), rows)]
