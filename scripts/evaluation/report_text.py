"""The words and tables of the report on several adapters."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.evaluation.answers import SYSTEMS
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

TITLES = {
    "nll": "loss, nats a token (lower is better)",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "terminology": "terminology, %",
}
SHORT = {"nll": "loss", "bleu": "BLEU", "rouge_l": "ROUGE-L", "terminology": "terminology"}
DIGITS = {"nll": 3, "bleu": 1, "rouge_l": 1, "terminology": 1}
MIN_OF_A_TYPE = 15  # questions below which a type is not shown by itself
HONESTY = {
    "hit_token_limit": "ended at the limit of new tokens, not by itself",
    "goes_in_circles": "repeats itself",
    "answers_with_unsupported_numbers": "holds a number that neither question nor reference has",
    "unsupported_numbers": "such numbers in all",
    "empty": "empty",
}
ORIGINS = {"signs": "lists of signs", "vignette": "case reports"}
Lines = list[str]


def report_of(results: Sequence[Result], made_by: str, seed: int) -> tuple[str, list[str]]:
    """(Markdown, plots as SVG texts)."""
    everything = pooled(results, seed)
    lines = [
        f"# {len(results)} specialists on {results[0]['base_model']}",
        "",
        "Research software, **not medical advice**. Base and adapter answered the same validation "
        "questions; no disease of theirs is in the training split. Differences are adapter minus "
        "base with 95 % bootstrap intervals, paired by question; a pooled row draws its questions "
        "within their specialty. The metrics, the dummies and the protocol are defined in "
        "[evaluation.md](evaluation.md).",
        "",
        *_summary(results, everything),
        "",
        "## Results",
        "",
        *results_table(results, everything),
        "",
        *_dummies(results, everything),
        *_unseen(results, seed),
        *_types(results, seed),
        *_diagnostic(results, seed),
        *_honesty(results, everything.num_questions),
        *_missing(results),
        *_cost(results),
        *_limits(),
        *_examples(results),
        *_made(results, made_by),
    ]
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
    plots = [differences(rows, titles), systems(everything.systems, titles)]
    return "\n".join(lines) + "\n", plots


def results_table(results: Sequence[Result], everything: Pooled) -> Lines:
    """One row a specialty and one over all: base → adapter [interval of the difference]."""
    lines = _head("specialty", "n", *(SHORT[name] for name in METRICS))
    for result in results:
        cells = [_metric_cell(name, result["metrics"][name]) for name in METRICS]
        lines.append(_row(result["specialty"], result["num_questions"], *cells))
    return [*lines, _pooled_row("**pooled**", everything)]


def _summary(results: Sequence[Result], everything: Pooled) -> Lines:
    found = verdict(results, everything)
    num = found["num_adapters"]
    return [
        f"- The likelihood of unseen answers rises with {len(found['likelihood_rises'])} of {num} "
        "adapters (interval excludes zero).",
        *[
            f"- {SHORT[name]}: significantly better with {len(found['better'][name])} of {num}, "
            f"significantly worse with {len(found['worse'][name])}"
            + (f" ({', '.join(found['worse'][name])})" if found["worse"][name] else "")
            + f"; pooled {_pooled_cell(name, everything)}{_times(name, everything)}."
            for name in METRICS[1:]
        ],
        "- The epoch with the lowest validation loss was kept, and the recipe was chosen on the "
        "same questions: the figures are a little optimistic.",
    ]


def _dummies(results: Sequence[Result], everything: Pooled) -> Lines:
    lines = [
        "## Against answers that need no model",
        "",
        "Nearest neighbour: the training answer of the most similar training question. Random: "
        "any training answer of the specialty. Echo: the question itself.",
        "",
        *_head("system", *(SHORT[name] for name in METRICS)),
    ]
    for system in everything.systems["bleu"]:
        cells = []
        for name in METRICS:
            estimate = everything.systems.get(name, {}).get(system)
            why = results[0]["metrics"][name].get("not_available", {}).get(system, "not computed")
            cells.append(_estimate(name, estimate) if estimate else f"n/a ({why})")
        lines.append(_row(system.replace("_", " "), *cells))
    ahead = [
        SHORT[name]
        for name, values in everything.systems.items()
        if "nearest_neighbour" in values
        and values["nearest_neighbour"]["value"] > values["adapter"]["value"]
    ]
    if ahead:
        lines += ["", f"The nearest neighbour is ahead of the adapter in {' and '.join(ahead)}."]
    return [*lines, ""]


def _unseen(results: Sequence[Result], seed: int) -> Lines:
    """Part of the gain may be sentences that many answers share."""
    lines = [
        "## By what the reference shares with training answers",
        "",
        "Much of this kind of text is written to a pattern. Questions are set apart here by "
        "whether eight words in a row of their reference stand in any training answer.",
        "",
        *_head("in training", "n", *(SHORT[name] for name in METRICS)),
    ]
    for label, group in unseen_wording(results, seed).items():
        lines.append(_pooled_row(label, group))
    return [*lines, ""]


def _types(results: Sequence[Result], seed: int) -> Lines:
    lines = [
        "## By question type",
        "",
        f"Pooled; types with fewer than {MIN_OF_A_TYPE} questions are only in the rows above.",
        "",
        *_head("type", "n", *(SHORT[name] for name in METRICS)),
    ]
    for label, group in by_question_type(results, seed, MIN_OF_A_TYPE).items():
        lines.append(_pooled_row(label, group))
    return [*lines, ""]


def _diagnostic(results: Sequence[Result], seed: int) -> Lines:
    lines = ["## Diagnostic accuracy", ""]
    found = diagnostic(results, seed)
    if isinstance(found, str):
        return [*lines, f"n/a ({found})", ""]
    origins = ", ".join(f"{num} from {ORIGINS[name]}" for name, num in found["origins"].items())
    right = found["right"]
    low, high = found["difference"]["interval"]
    return [
        *lines,
        f"{found['n']} questions that ask for a disease without naming it ({origins}): the base "
        f"names it in {right['base']}, the adapters in {right['adapter']} (difference "
        f"{found['difference']['value']:+.1f} points [{low:+.1f}, {high:+.1f}]).",
        "",
    ]


def _honesty(results: Sequence[Result], num_questions: int) -> Lines:
    counts = honesty(results)
    lines = [
        "## What an answer should not do",
        "",
        f"Answers of {num_questions} for each system.",
        "",
        *_head("an answer that", *SYSTEMS),
    ]
    for name, label in HONESTY.items():
        lines.append(_row(label, *(counts[system][name] for system in SYSTEMS)))
    invented = [result["metrics"]["invented_urls"] for result in results]
    totals = {
        system: round(sum(m["systems"][system]["value"] * m["n"] for m in invented))
        for system in SYSTEMS
    }
    lines.append(_row("invented web addresses in all", *totals.values()))
    return [*lines, ""]


def _missing(results: Sequence[Result]) -> Lines:
    """Metrics of the adapter without a value, and why."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for result in results:
        for name, metric in result["metrics"].items():
            if "adapter" in metric["not_available"]:
                reasons[name, metric["not_available"]["adapter"]].append(result["specialty"])
    if not reasons:
        return []
    lines = ["## Not available", ""]
    for (name, why), where in reasons.items():
        shown = "every specialty" if len(where) == len(results) else ", ".join(where)
        lines.append(f"- {name.replace('_', ' ')}: n/a ({why}): {shown}")
    return [*lines, ""]


def _cost(results: Sequence[Result]) -> Lines:
    memory = [
        result["metrics"]["extra_memory_mib"]["systems"]["adapter"]["value"] for result in results
    ]
    lines = [
        "## Cost",
        "",
        f"An adapter takes {min(memory):.2f} to {max(memory):.2f} MiB beside its base, in "
        f"{', '.join(sorted({str(result['dtype']) for result in results}))}.",
    ]
    timed = [r for r in results if "difference" in r["metrics"]["time_per_answer_s"]]
    if timed:
        lines += ["", *_head("specialty", "seconds an answer, base", "adapter", "difference")]
    for result in timed:
        metric = result["metrics"]["time_per_answer_s"]
        low, high = metric["difference"]["interval"]
        values = [f"{metric['systems'][system]['value']:.2f}" for system in SYSTEMS]
        lines.append(_row(result["specialty"], *values, f"[{low:+.2f}, {high:+.2f}]"))
    return [*lines, ""]


def _limits() -> Lines:
    return [
        "## What the figures don't say",
        "",
        "- An adapter learns how such answers are written far more than what is true. The gain in "
        "likelihood, BLEU and ROUGE-L says that its words resemble the reference's; none of these "
        "metrics reads the meaning. A base model of this size does not hold the facts, and the "
        "counts above show it: it invents numbers, and it does not find a disease from its signs.",
        "- A larger base such as flan-t5-xl (2.8 billion parameters) is trained and evaluated by "
        "the same commands. It would bring knowledge that no adapter of this size can add: expect "
        "the diagnostic questions, the unsupported numbers and the circles to change, and the gain "
        "from imitation to shrink. We have not measured it: its weights were not at hand.",
        "- All questions come from the sources of the training data, so they say little about "
        "patients' own wording.",
        "",
    ]


def _examples(results: Sequence[Result]) -> Lines:
    lines = [
        "## Examples",
        "",
        "The question with the largest loss, the median one and the one with the largest gain in "
        "ROUGE-L of each specialty: chosen by that rule, not by taste. Only our models' words are "
        "shown; the ids are the data's.",
        "",
    ]
    for result in results:
        lines += [f"### {result['specialty']}", ""]
        for example in result["examples"]:
            lines += [f"`{example['id']}`, ROUGE-L {example['rouge_l_gain']:+.1f}", ""]
            for system in SYSTEMS:
                lines += [f"> **{system}:** {_escaped(example[system])}", ""]
    return lines


def _made(results: Sequence[Result], made_by: str) -> Lines:
    first = results[0]
    devices = ", ".join(sorted({result["device"] for result in results}))
    commits = ", ".join(sorted({f"`{result['commit']}`" for result in results}))
    protocol = {k: v for k, v in first["protocol"].items() if not k.startswith("base_instruction")}
    shown = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in protocol.items())
    lines = [
        "## How it was made",
        "",
        f"Answers: {shown}; the base is told the median length in words of the specialty's "
        f"training answers. Device: {devices}, {first['dtype']}; commit {commits}. {made_by} "
        "All of it: `make specialists DATA=<folder>`.",
        "",
        *_head("specialty", "adapter's sha256", "validation file's sha256"),
    ]
    for result in results:
        files = " ".join(digest[:16] for digest in result["data_files"].values())
        lines.append(_row(result["specialty"], result["adapter_sha256"][:16], files))
    return lines


def _metric_cell(name: str, metric: Mapping[str, Any]) -> str:
    if "difference" not in metric:
        return f"n/a ({next(iter(metric['not_available'].values()))})"
    return _change(name, metric["systems"], metric["difference"])


def _pooled_row(label: str, group: Pooled) -> str:
    return _row(label, group.num_questions, *(_pooled_cell(name, group) for name in METRICS))


def _pooled_cell(name: str, group: Pooled) -> str:
    if name not in group.systems:
        return "n/a (it applies to none of the questions)"
    return _change(name, group.systems[name], group.differences[name])


def _times(name: str, group: Pooled) -> str:
    """ ", 1.63 times base"; nothing when the base is at 0."""
    values = group.systems.get(name)
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


def _head(*names: str) -> Lines:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _escaped(text: str) -> str:
    """As one paragraph of Markdown that shows the text and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split())) or "(empty)"
