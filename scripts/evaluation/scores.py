"""From answers to metrics: base, adapter and the dummies, with paired bootstrap intervals."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datasets.checks import ngrams
from scripts.datasets.pairs import DataSet, load_pairs
from scripts.datasets.record import DataError, Record
from scripts.evaluation.answer_file import SYSTEMS, AnswerRow, Answers
from scripts.evaluation.bootstrap import Floats, draws
from scripts.evaluation.by_question import examples, per_question
from scripts.evaluation.citations import citations
from scripts.evaluation.comparison import MIN_DIAGNOSTIC, metric, not_available
from scripts.evaluation.diagnostic import DiagnosticItem, is_named
from scripts.evaluation.metrics import (
    bleu_statistics,
    nearest_answers,
    repeats,
    rouge_l,
    unsupported_numbers,
)
from scripts.evaluation.terms import terms_of, used_share

Rows = Mapping[str, Sequence[AnswerRow]]  # system -> rows in the order of the questions
TextOf = dict[str, list[str]]  # system -> answers in the order of the questions


def score(
    data: DataSet,
    answers: Answers,
    diagnostic: Sequence[DiagnosticItem],
    elsewhere: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of one adapter, as its result file holds them.

    Args:
        elsewhere: training answers of other specialties; they determine which words are this
            one's terms, and which 8-grams of the references were seen in training.

    Raises:
        DataError: a question has no answer of a system, or no finite likelihood; names it.
    """
    _check_complete(data.validation, diagnostic, answers)
    pairs = data.validation
    rows = {system: [answers.rows[system][pair.id] for pair in pairs] for system in SYSTEMS}
    texts = _texts(data, rows, seed)
    counts = draws(len(pairs), seed)
    training = [pair.answer for pair in data.train]
    terms = terms_of(training, elsewhere)
    seen = {gram for answer in (*training, *elsewhere) for gram in ngrams(answer)}
    columns = _columns(pairs, rows, texts, terms)
    metrics = {name: metric(name, by_system, counts) for name, by_system in columns.items()}
    named = _diagnostic_rows(answers, diagnostic)
    metrics["diagnostic_accuracy"] = _diagnostic(named, seed)
    metrics |= citations(data, texts, counts) | _cost(answers.header, rows, counts)
    changed = [a != b for a, b in zip(texts["base"], texts["adapter"], strict=True)]
    return {
        "num_terms": len(terms),
        "metrics": metrics,
        "answers_changed": round(sum(changed) / len(pairs), 4),
        "honesty": {
            system: _honesty(pairs, given, texts[system]) for system, given in rows.items()
        },
        "examples": examples(pairs, columns, texts),
        "per_question": per_question(pairs, columns, seen),
        "diagnostic_items": named,
    }


def other_answers(data: Path, specialty: str) -> list[str]:
    """Return the training answers of the folder's other specialties; [] for a single file.

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
    pairs: Sequence[Record], diagnostic: Sequence[DiagnosticItem], answers: Answers
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


def _texts(data: DataSet, rows: Rows, seed: int) -> TextOf:
    pairs = data.validation
    training = [(pair.question, pair.answer) for pair in data.train]
    pick = random.Random(seed)
    return {
        **{system: [row.answer for row in given] for system, given in rows.items()},
        "nearest_neighbour": nearest_answers([pair.question for pair in pairs], training),
        "random": [pick.choice(training)[1] for _ in pairs],
        "echo": [pair.question for pair in pairs],
    }


def _columns(
    pairs: Sequence[Record], rows: Rows, texts: TextOf, terms: frozenset[str]
) -> dict[str, dict[str, Floats]]:
    """Return metric -> system -> value of each question, (Q,); BLEU's statistics are (Q, 10)."""
    references = [pair.answer for pair in pairs]
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
    """Return nats for each reference token; `_check_complete` has seen that there is one."""
    assert row.nll is not None, row.id
    return row.nll / row.num_reference_tokens


def _diagnostic(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    name, num = "diagnostic_accuracy", len(rows)
    if num < MIN_DIAGNOSTIC:
        return not_available(name, f"fewer than {MIN_DIAGNOSTIC} items", num)
    columns = {system: np.array([100.0 * row[system] for row in rows]) for system in SYSTEMS}
    return metric(name, columns, draws(num, seed))


def _diagnostic_rows(answers: Answers, items: Sequence[DiagnosticItem]) -> list[dict[str, Any]]:
    """Return each item with whether base and adapter name its disease."""
    return [
        {
            "id": item.id,
            "origin": item.origin,
            **{s: is_named(answers.rows[s][item.id].answer, item.names) for s in SYSTEMS},
        }
        for item in items
    ]


def _cost(header: Mapping[str, Any], rows: Rows, counts: Floats) -> dict[str, dict[str, Any]]:
    times = {system: np.array([row.time_s for row in given]) for system, given in rows.items()}
    devices = {system: {row.device for row in given} for system, given in rows.items()}
    shared, num = header.get("shared_device"), len(rows["base"])
    if devices["base"] != devices["adapter"] or len(devices["base"]) > 1:
        why = "the answers of base and adapter were made on different devices"
    elif shared is None:
        why = "whether other work ran on the device is not recorded"
    else:
        why = "other work ran on the device" if shared else ""
    name = "time_per_answer_s"
    time = not_available(name, why, num) if why else metric(name, times, counts)
    memory = not_available("extra_memory_mib", "the base is what it is added to", num)
    memory["systems"] = {"adapter": {"value": header["extra_memory_mib"]}}
    del memory["not_available"]["adapter"]
    return {name: time, "extra_memory_mib": memory}


def _honesty(
    pairs: Sequence[Record], rows: Sequence[AnswerRow], texts: Sequence[str]
) -> dict[str, float]:
    """Count what a reader should know before trusting an answer."""
    numbers = [
        unsupported_numbers(pair.question, pair.answer, text)
        for pair, text in zip(pairs, texts, strict=True)
    ]
    return {
        "hit_token_limit": sum(row.hit_limit for row in rows),
        "empty": sum(not row.answer for row in rows),
        "goes_in_circles": sum(repeats(row.answer) for row in rows),
        "answers_with_unsupported_numbers": sum(count > 0 for count in numbers),
        "unsupported_numbers": sum(numbers),
        "median_answer_words": float(np.median([len(row.answer.split()) for row in rows])),
    }
