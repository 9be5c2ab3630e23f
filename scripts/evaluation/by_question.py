"""Parts of a result: examples, and the values of each question."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.datasets.checks import ngrams
from scripts.datasets.record import Record
from scripts.evaluation.answer_file import SYSTEMS
from scripts.evaluation.bootstrap import Floats

NUM_EXAMPLES = 3
Columns = Mapping[str, Mapping[str, Floats]]  # metric -> system -> value of each question


def examples(
    pairs: Sequence[Record], columns: Columns, texts: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the questions with the largest loss, the median and the largest gain in ROUGE-L."""
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


def per_question(pairs: Sequence[Record], columns: Columns, seen: set[str]) -> list[dict[str, Any]]:
    """Return what pooling needs of each question; `seen` holds the training answers' 8-grams."""
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
