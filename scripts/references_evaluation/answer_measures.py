"""What answers with passages are worth, and can reach: support, the check, overlap, loops."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rapidfuzz.distance import LCSseq

from references.markers import MarkedText
from references.passage import LISTS, Passage
from references.quote import quote
from references.support import SupportCheck, unsupported_share
from references.words import sentences, stem, words
from scripts.evaluation.bootstrap import draws, estimate, mean
from scripts.evaluation.metrics import repeats, rouge_l
from scripts.references_evaluation.measures import share

THRESHOLDS = (0.0, 0.2, 0.5)
MAX_SENTENCES = 5
MIN_GAIN = 0.01  # of ROUGE-L, that a further sentence brings


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, before the check."""

    system: str
    id: str
    question: str
    reference: str
    passages: tuple[Passage, ...]
    answer: str
    num_tokens: int
    finish: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Answered":
        passages = tuple(
            Passage(**{**passage, **{name: tuple(passage.get(name, ())) for name in LISTS}})
            for passage in row["passages"]
        )
        return cls(**{**row, "passages": passages})


def measures(answers: Sequence[Answered]) -> dict[str, Any]:
    """Return the figures of one system; {} without answers."""
    if not answers:
        return {}
    checked = [marked(one) for one in answers]
    found = [sentence for one in checked for sentence in one.support]
    # What states nothing cites nothing: the service quotes instead, so it counts as unsupported.
    shares = [unsupported_share(one.support) if one.support else 1.0 for one in checked]
    quoted = [quote(one.passages) for one in answers]
    after = {}
    for threshold in THRESHOLDS:
        stands = [value <= threshold for value in shares]
        kept = [one for one, is_on in zip(checked, stands, strict=True) if is_on]
        standing = [sentence for one in kept for sentence in one.support]
        final = [
            one.text if is_on else text
            for one, is_on, text in zip(checked, stands, quoted, strict=True)
        ]
        after[f"{threshold:g}"] = {
            "stands": share(stands),
            "sentences": len(standing),
            "unsupported": share(s.citation is None for s in standing) if standing else None,
            "rouge_l": _rouge(answers, final),
            "loops": share(repeats(one.text) for one in kept) if kept else None,
        }
    return {
        "answers": len(answers),
        "tokens": sum(one.num_tokens for one in answers) / len(answers),
        "ended_as_loop": share(one.finish == "loop" for one in answers),
        "loops": share(repeats(one.answer) for one in answers),
        "unsupported_sentences": share(s.citation is None for s in found),
        "rouge_l": _rouge(answers, [one.answer for one in answers]),
        "rouge_l_quoted": _rouge(answers, quoted),
        "after_the_check": after,
    }


def _rouge(answers: Sequence[Answered], texts: Sequence[str]) -> dict[str, Any]:
    values = rouge_l([one.reference for one in answers], texts)
    return estimate(float(values.mean()), mean(values, draws(len(values), seed=0)))


def marked(one: Answered) -> MarkedText:
    """Return an answer as the service shows it."""
    written = MarkedText(one.passages)
    written.add(one.answer)
    written.end()
    return written


def supported_sentences(answers: Sequence[Answered], count: int) -> Iterator[str]:
    """Yield drawn sentences that the check found supported, each with its passage, to be read."""
    found = [
        f"{one.system} | {one.question}\n  SAYS {written.text[s.start : s.end]}\n"
        f"  [{s.citation}] {one.passages[s.citation - 1].text}"
        for one in answers
        if one.system != "off"
        for written in [marked(one)]
        for s in written.support
        if s.citation is not None
    ]
    yield from random.Random(0).sample(found, min(count, len(found)))


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
