"""Figures of a prepared data set: leaks from training, boilerplate, lengths, languages."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from scripts.datasets.cleaning import boilerplate
from scripts.datasets.record import Record, language, plain_words

NGRAM = 8  # words


def check(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return specialty -> figures of its pairs."""
    pairs = [record for record in records if record.is_pair]
    seen = {gram for r in pairs if r.split == "train" for gram in ngrams(r.answer)}
    repeated = boilerplate(pairs)
    return {
        specialty: _specialty([r for r in pairs if r.specialty == specialty], seen, repeated)
        for specialty in sorted({r.specialty for r in pairs})
    }


def _specialty(pairs: Sequence[Record], seen: set[str], repeated: set[str]) -> dict[str, Any]:
    held_out = [r for r in pairs if r.split == "validation"]
    return {
        "train": len(pairs) - len(held_out),
        "validation": len(held_out),
        "diseases": {
            split: len({r.focus or r.question for r in pairs if r.split == split})
            for split in ("train", "validation")
        },
        "contamination": contamination(held_out, seen, repeated),
        "boilerplate_answers": sum(any(s in r.answer for s in repeated) for r in pairs),
        "answer_words": _lengths([len(r.answer.split()) for r in pairs]),
        "question_words": _lengths([len(r.question.split()) for r in pairs]),
        "language": dict(Counter(language(r.question + " " + r.answer) for r in pairs)),
    }


def contamination(
    held_out: Sequence[Record], seen: set[str], repeated: Iterable[str] = ()
) -> dict[str, int]:
    """Count held-out answers that repeat training answers word for word.

    Args:
        seen: the training answers' 8-grams.
        repeated: boilerplate sentences: a second count leaves them out of the held-out answers.

    Returns:
        Counts of held-out answers with one 8-gram or more in common, and with more than half of
        theirs, with boilerplate and without.
    """
    figures = {"num_answers": len(held_out)}
    for suffix, cut in (("", ()), ("_without_boilerplate", tuple(repeated))):
        shares = []
        for record in held_out:
            text = record.answer
            for sentence in cut:
                text = text.replace(sentence, " | ")  # no 8-gram across the gap
            grams = {gram for part in text.split(" | ") for gram in ngrams(part)}
            shares.append(len(grams & seen) / len(grams) if grams else 0.0)
        figures["any_8gram" + suffix] = sum(share > 0 for share in shares)
        figures["most_8grams" + suffix] = sum(share > 0.5 for share in shares)
    return figures


def ngrams(text: str) -> list[str]:
    """Return the text's sequences of NGRAM words."""
    words = plain_words(text)
    return [" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def _lengths(lengths: Sequence[int]) -> dict[str, int]:
    low, median, p90, high = np.percentile(lengths, [0, 50, 90, 100])
    return {"min": int(low), "median": int(median), "p90": int(p90), "max": int(high)}
