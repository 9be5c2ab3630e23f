"""From answers to metrics: base, adapter and the dummies, with paired bootstrap intervals."""

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datasets.cleaning import publisher
from scripts.datasets.record import DataError, DataSet, Pair, load_pairs
from scripts.datasets.report import ngrams
from scripts.evaluation.answers import SYSTEMS, AnswerRow, Answers
from scripts.evaluation.diagnostic import DiagnosticItem, is_named
from scripts.evaluation.metrics import (
    Floats,
    bleu_statistics,
    cited_publisher,
    corpus_bleu,
    draws,
    estimate,
    mean,
    nearest_answers,
    repeats,
    rouge_l,
    terms_of,
    unsupported_numbers,
    urls,
    used_share,
)

DUMMIES = ("nearest_neighbour", "random", "echo")
MIN_DIAGNOSTIC = 10  # items below which an accuracy says nothing
NUM_EXAMPLES = 3
TextOf = dict[str, list[str]]  # system -> answers in the order of the questions


def score(
    data: DataSet,
    answers: Answers,
    diagnostic: Sequence[DiagnosticItem],
    elsewhere: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Metrics of one adapter, as its result file holds them.

    Args:
        elsewhere: training answers of other specialties: they tell this one's terms, and what of
            the references has been seen in training.

    Raises:
        DataError: a question has no answer of a system, or no finite likelihood; names it.
    """
    _check_complete(data.validation, diagnostic, answers)
    pairs = data.validation
    texts = _texts(data, answers, seed)
    counts = draws(len(pairs), seed)
    training = [pair.answer for pair in data.train]
    terms = terms_of(training, elsewhere)
    seen = {gram for answer in (*training, *elsewhere) for gram in ngrams(answer)}
    columns = _columns(pairs, answers, texts, terms)
    metrics = {name: _metric(name, by_system, counts) for name, by_system in columns.items()}
    metrics |= _diagnostic(answers, diagnostic, seed)
    metrics |= _citations(data, texts, counts)
    metrics |= _cost(answers, pairs, counts)
    changed = [a != b for a, b in zip(texts["base"], texts["adapter"], strict=True)]
    return {
        "num_terms": len(terms),
        "metrics": metrics,
        "answers_changed": round(sum(changed) / len(pairs), 4),
        "honesty": {system: _honesty(pairs, answers, texts, system) for system in SYSTEMS},
        "by_question_type": _by_type(pairs, columns, seed),
        "examples": _examples(pairs, columns, texts),
        "per_question": _per_question(pairs, columns, seen),
        "diagnostic_items": _diagnostic_rows(answers, diagnostic),
    }


def other_answers(data: Path, specialty: str) -> list[str]:
    """Training answers of every other specialty in the folder; none for a single file.

    Raises:
        DataError: as `load_pairs`.
    """
    if not data.is_dir():
        return []
    names = sorted(path.stem for path in data.glob("*.jsonl") if (data / path.stem).is_dir())
    return [
        pair.answer for name in names if name != specialty for pair in load_pairs(data, name).train
    ]


def _check_complete(
    pairs: Sequence[Pair], diagnostic: Sequence[DiagnosticItem], answers: Answers
) -> None:
    ids = [pair.id for pair in pairs] + [item.id for item in diagnostic]
    for system in SYSTEMS:
        missing = [id_ for id_ in ids if id_ not in answers.rows[system]]
        if missing:
            raise DataError(
                f"{answers.header['specialty']}: {len(missing)} of {len(ids)} questions have no "
                f"answer of {system} (the first: {missing[0]}): run --stage answers again, it goes "
                "on where it stopped"
            )
        for pair in pairs:
            row = answers.rows[system][pair.id]
            if row.nll is None or not math.isfinite(row.nll) or row.num_reference_tokens < 1:
                raise DataError(
                    f"{answers.header['specialty']}: {system}'s answer to {pair.id} has no finite "
                    f"likelihood ({row.nll} over {row.num_reference_tokens} tokens): remove the "
                    "answers file and run --stage answers again"
                )


def _texts(data: DataSet, answers: Answers, seed: int) -> TextOf:
    pairs = data.validation
    training = [(pair.question, pair.answer) for pair in data.train]
    pick = random.Random(seed)
    return {
        **{s: [answers.rows[s][pair.id].answer for pair in pairs] for s in SYSTEMS},
        "nearest_neighbour": nearest_answers([pair.question for pair in pairs], training),
        "random": [pick.choice(training)[1] for _ in pairs],
        "echo": [pair.question for pair in pairs],
    }


def _columns(
    pairs: Sequence[Pair], answers: Answers, texts: TextOf, terms: frozenset[str]
) -> dict[str, dict[str, Floats]]:
    """metric -> system -> value of each question, (Q,); BLEU's statistics are (Q, 10)."""
    references = [pair.answer for pair in pairs]
    rows = {system: [answers.rows[system][pair.id] for pair in pairs] for system in SYSTEMS}
    shares = {
        system: [
            used_share(pair.question, pair.answer, text, terms)
            for pair, text in zip(pairs, given, strict=True)
        ]
        for system, given in texts.items()
    }
    return {
        "nll": {system: np.array([_loss(row) for row in given]) for system, given in rows.items()},
        "bleu": {system: bleu_statistics(references, given) for system, given in texts.items()},
        "rouge_l": {system: rouge_l(references, given) for system, given in texts.items()},
        "terminology": {
            system: np.array([np.nan if s is None else 100 * s for s in given])
            for system, given in shares.items()
        },
    }


def _loss(row: AnswerRow) -> float:
    """Nats for each reference token; `_check_complete` has seen that there is one."""
    assert row.nll is not None, row.id
    return row.nll / row.num_reference_tokens


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
    """(value, (R,) resampled values) of a metric; NaN marks questions that do not count."""
    if name == "bleu":
        total = np.asarray(counts @ values)
        return float(corpus_bleu(values.sum(axis=0))), corpus_bleu(total)
    valid = ~np.isnan(values)
    return float(values[valid].mean()), mean(values[valid], counts[:, valid])


def _metric(name: str, columns: Mapping[str, Floats], counts: Floats) -> dict[str, Any]:
    unit, higher = _ABOUT[name]
    first = columns["base"]
    if np.isnan(first).all():
        return not_available(name, "it applies to none of the questions")
    found = {system: resampled(name, values, counts) for system, values in columns.items()}
    num = len(first) if first.ndim > 1 else int((~np.isnan(first)).sum())
    (base, base_draws), (adapter, adapter_draws) = found["base"], found["adapter"]
    absent = {dummy: "a fixed text has no likelihood" for dummy in DUMMIES if dummy not in columns}
    return {
        "unit": unit,
        "higher_is_better": higher,
        "n": num,
        "systems": {system: estimate(*pair) for system, pair in found.items()},
        "difference": estimate(adapter - base, adapter_draws - base_draws),
        "not_available": absent if name == "nll" else {},
    }


def not_available(name: str, why: str, num: int = 0) -> dict[str, Any]:
    """A metric that could not be computed: no value, and the reason for every system."""
    unit, higher = _ABOUT[name]
    return {
        "unit": unit,
        "higher_is_better": higher,
        "n": num,
        "systems": {},
        "not_available": dict.fromkeys(SYSTEMS, why),
    }


def _diagnostic(
    answers: Answers, items: Sequence[DiagnosticItem], seed: int
) -> dict[str, dict[str, Any]]:
    name = "diagnostic_accuracy"
    if len(items) < MIN_DIAGNOSTIC:
        why = f"fewer than {MIN_DIAGNOSTIC} items"
        return {name: not_available(name, why, len(items))}
    columns = {
        system: np.array(
            [100.0 * is_named(answers.rows[system][item.id].answer, item.names) for item in items]
        )
        for system in SYSTEMS
    }
    return {name: _metric(name, columns, draws(len(items), seed))}


def _diagnostic_rows(answers: Answers, items: Sequence[DiagnosticItem]) -> list[dict[str, Any]]:
    return [
        {
            "id": item.id,
            "origin": item.origin,
            **{s: is_named(answers.rows[s][item.id].answer, item.names) for s in SYSTEMS},
        }
        for item in items
    ]


def _citations(data: DataSet, texts: TextOf, counts: Floats) -> dict[str, dict[str, Any]]:
    """Publishers and pages that answers name."""
    pairs = (*data.train, *data.validation)
    known = {pair.url for pair in pairs} | {url for pair in pairs for url in urls(pair.answer)}
    invented = {
        system: np.array([float(sum(u not in known for u in urls(t))) for t in texts[system]])
        for system in SYSTEMS
    }
    found = {"invented_urls": _metric("invented_urls", invented, counts)}
    if not any(cited_publisher(pair.answer) for pair in data.train):
        why = "its training answers name no sources (prepare them with --with_sources)"
        for name in ("citation_precision", "citation_recall"):
            found[name] = not_available(name, why)
        return found
    truth = [publisher(pair.source, pair.url) for pair in data.validation]
    cited = {system: [cited_publisher(text) for text in texts[system]] for system in SYSTEMS}
    right = {
        system: np.array([100.0 * (c == t) for c, t in zip(names, truth, strict=True)])
        for system, names in cited.items()
    }
    found["citation_recall"] = _metric("citation_recall", right, counts)
    precise = {
        system: np.where([c is None for c in cited[system]], np.nan, right[system])
        for system in SYSTEMS
    }
    if all((~np.isnan(values)).any() for values in precise.values()):
        found["citation_precision"] = _metric("citation_precision", precise, counts)
    else:
        silent = [s for s, values in precise.items() if np.isnan(values).all()]
        found["citation_precision"] = _one_sided(precise, silent, counts)
    return found


def _one_sided(
    columns: Mapping[str, Floats], silent: Sequence[str], counts: Floats
) -> dict[str, Any]:
    """Precision of the systems that cite at all."""
    name = "citation_precision"
    entry = not_available(name, "it names no source in any answer", 0)
    entry["not_available"] = {s: "it names no source in any answer" for s in silent}
    for system, values in columns.items():
        if system not in silent:
            entry["systems"][system] = estimate(*resampled(name, values, counts))
            entry["n"] = int((~np.isnan(values)).sum())
    return entry


def _cost(answers: Answers, pairs: Sequence[Pair], counts: Floats) -> dict[str, dict[str, Any]]:
    times = {
        system: np.array([answers.rows[system][pair.id].time_s for pair in pairs])
        for system in SYSTEMS
    }
    devices = {system: {answers.rows[system][p.id].device for p in pairs} for system in SYSTEMS}
    shared = answers.header.get("shared_device")
    if devices["base"] != devices["adapter"] or len(devices["base"]) > 1:
        why = "the answers of base and adapter were made on different devices"
    elif shared is None:
        why = "whether other work ran on the device is not recorded"
    else:
        why = "other work ran on the device" if shared else ""
    name = "time_per_answer_s"
    time = not_available(name, why, len(pairs)) if why else _metric(name, times, counts)
    memory = not_available("extra_memory_mib", "the base is what it is added to", len(pairs))
    memory["systems"] = {"adapter": {"value": answers.header["extra_memory_mib"]}}
    del memory["not_available"]["adapter"]
    return {name: time, "extra_memory_mib": memory}


def _honesty(
    pairs: Sequence[Pair], answers: Answers, texts: TextOf, system: str
) -> dict[str, float]:
    """Counts of what a reader should know before trusting an answer."""
    rows = [answers.rows[system][pair.id] for pair in pairs]
    numbers = [
        unsupported_numbers(pair.question, pair.answer, text)
        for pair, text in zip(pairs, texts[system], strict=True)
    ]
    return {
        "hit_token_limit": sum(row.hit_limit for row in rows),
        "empty": sum(not row.answer for row in rows),
        "goes_in_circles": sum(repeats(row.answer) for row in rows),
        "answers_with_unsupported_numbers": sum(count > 0 for count in numbers),
        "unsupported_numbers": sum(numbers),
        "median_answer_words": float(np.median([len(row.answer.split()) for row in rows])),
    }


def _by_type(
    pairs: Sequence[Pair], columns: Mapping[str, Mapping[str, Floats]], seed: int
) -> dict[str, Any]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, pair in enumerate(pairs):
        groups[pair.qtype or "unknown"].append(position)
    found = {}
    for qtype, positions in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        counts = draws(len(positions), seed)
        picked = {
            name: {system: columns[name][system][positions] for system in SYSTEMS}
            for name in ("nll", "bleu", "rouge_l")
        }
        found[qtype] = {
            "n": len(positions),
            **{name: _metric(name, by_system, counts) for name, by_system in picked.items()},
        }
    return found


def _examples(
    pairs: Sequence[Pair], columns: Mapping[str, Mapping[str, Floats]], texts: TextOf
) -> list[dict[str, Any]]:
    """The question with the largest loss, the median and the largest gain in ROUGE-L: chosen by
    rule, not by taste."""
    gain = columns["rouge_l"]["adapter"] - columns["rouge_l"]["base"]
    order = np.argsort(gain, kind="stable")
    picks = np.linspace(0, len(order) - 1, min(NUM_EXAMPLES, len(order))).round().astype(int)
    return [
        {
            "id": pairs[i].id,
            "rouge_l_gain": round(float(gain[i]), 2),
            **{system: texts[system][i] for system in SYSTEMS},
        }
        for i in order[picks]
    ]


def _per_question(
    pairs: Sequence[Pair], columns: Mapping[str, Mapping[str, Floats]], seen: set[str]
) -> list[dict[str, Any]]:
    """What pooling over adapters needs: values, BLEU's statistics, and how many of the reference's
    8-grams of words stand in a training answer."""
    return [
        {
            "id": pair.id,
            "question_type": pair.qtype,
            "reference_8grams_in_training": len(seen.intersection(ngrams(pair.answer))),
            **{
                name: {
                    system: [int(x) for x in values[i]] if name == "bleu" else _digits(values[i])
                    for system, values in by_system.items()
                }
                for name, by_system in columns.items()
            },
        }
        for i, pair in enumerate(pairs)
    ]


def _digits(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
