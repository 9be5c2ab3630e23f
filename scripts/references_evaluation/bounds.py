"""What answers from given passages can reach: the references checked, and the nearest sentences."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rapidfuzz.distance import LCSseq

from references.passage import Passage
from references.support import SupportCheck
from references.words import sentences, stem, words
from scripts.references_evaluation.answer_measures import Answered, measures

MAX_SENTENCES = 5
MIN_GAIN = 0.01  # of ROUGE-L, that a further sentence brings


def bounds(answers: Sequence[Answered]) -> dict[str, Any]:
    """Return the measures of two answers that no model gives; {} without questions.

    `references`: the references themselves. `nearest_sentences`: see there.
    """
    given = {
        "references": [replace(one, answer=one.reference) for one in answers],
        "nearest_sentences": [
            replace(one, answer=nearest_sentences(one.reference, one.passages)) for one in answers
        ],
    }
    kept = ("unsupported_sentences", "rouge_l")
    found = {name: measures(rows) for name, rows in given.items() if rows}
    return {
        name: {key: row[key] for key in kept} | {"stands": row["after_the_check"]["0.2"]["stands"]}
        for name, row in found.items()
    }


def nearest_sentences(reference: str, passages: Sequence[Passage]) -> str:
    """Return the sentences of the passages nearest to a reference by ROUGE-L.

    They are chosen one by one of those that the check finds supported (the greedy oracle of
    Nallapati et al. 2017, arXiv:1611.04230), up to MAX_SENTENCES, and stand in the passages' order.
    """
    check, wanted = SupportCheck(passages), _stems(reference)
    left = dict.fromkeys(p.text[slice(*span)] for p in passages for span in sentences(p.text))
    place = {text: number for number, text in enumerate(left)}
    chosen, best = list[str](), 0.0
    while left and len(chosen) < MAX_SENTENCES:
        found = {text: sorted([*chosen, text], key=place.__getitem__) for text in left}
        scores = {text: _rouge_l(wanted, _stems(" ".join(texts))) for text, texts in found.items()}
        nearest = max(scores, key=scores.__getitem__)
        if chosen and scores[nearest] <= best + MIN_GAIN:
            break
        del left[nearest]
        if (check.of(nearest, "en") or (None,))[0]:
            chosen, best = found[nearest], scores[nearest]
    return " ".join(chosen)


def _stems(text: str) -> list[str]:
    return [stem(word) for word in words(text)]


def _rouge_l(reference: Sequence[str], answer: Sequence[str]) -> float:
    """Return ROUGE-L F1, 0 to 1 (Lin 2004)."""
    return 2 * float(LCSseq.similarity(reference, answer)) / (len(reference) + len(answer) or 1)
