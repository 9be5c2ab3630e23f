"""Which words of an answer are terms of a specialty.

Two rules: words with a medical word form (-itis, -osis, -emia, cardio-, ...), and words that
training answers of this specialty use much more often than those of the others. Validation answers
take no part.
"""

import re
from collections import Counter
from collections.abc import Sequence

from scripts.datasets.record import plain_words

MIN_LETTERS = 4
MIN_ANSWERS = 3  # training answers of the specialty that have the word
MIN_RATIO = 3.0  # of its share of answers here to its share elsewhere
_FORM = re.compile(
    r"(itis|osis|oses|emia|aemia|oma|omas|opathy|opathies|ectomy|plasty|otomy|ostomy|oscopy|algia|"
    r"penia|plegia|uria|megaly|phagia|trophy|dystrophy|sclerosis|stenosis|genesis|cyte|cytes|"
    r"ologist|ography|mycin|cillin|prazole|statin|mab|olol)$"
    r"|^(cardio|neuro|gastro|hepat|nephro|dermat|osteo|arthr|haem|hemat|encephal|myelo|pulmon|"
    r"broncho|ophthalm|retin|thyro|endocrin|onco|carcino|lympho|immuno|thromb|chromosom)"
)


def terms_of(here: Sequence[str], elsewhere: Sequence[str]) -> frozenset[str]:
    """Return the words of the specialty, without plural `s`.

    Args:
        here, elsewhere: training answers of this specialty and of all others. Without others
            only the rule of word forms is left.
    """
    counts = _answers_with(here)
    others = _answers_with(elsewhere)
    found = set()
    for word, count in counts.items():
        if len(word) < MIN_LETTERS or word.isdecimal():
            continue
        share = count / len(here)
        other_share = (others[word] + 1) / (len(elsewhere) + 1)
        frequent = bool(elsewhere) and count >= MIN_ANSWERS and share >= MIN_RATIO * other_share
        if frequent or _FORM.search(word):
            found.add(word)
    return frozenset(found)


def used_share(question: str, reference: str, answer: str, terms: frozenset[str]) -> float | None:
    """Return the share of the reference's terms that `answer` has, 0 to 1.

    Terms that the question has do not count, or an echo would score. Returns None if none is left.
    """
    wanted = (_words(reference) & terms) - _words(question)
    if not wanted:
        return None
    return len(wanted & _words(answer)) / len(wanted)


def _answers_with(answers: Sequence[str]) -> Counter[str]:
    return Counter(word for answer in answers for word in _words(answer))


def _words(text: str) -> set[str]:
    """Return the words; a plural counts as its singular: "tumours", "tumour"."""
    return {
        word[:-1] if len(word) > MIN_LETTERS and re.search(r"[^sui]s$", word) else word
        for word in plain_words(text)
    }
