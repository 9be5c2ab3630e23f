"""Scores of one answer against its reference, and what can be told of an answer without one.

Which words of an answer are terms of a specialty.

Two rules, both computed when they are used: words with a medical word form (-itis, -osis, -emia,
cardio-, ...), and words that training answers of this specialty use much more often than those of
the others. Validation answers take no part.

Percentile bootstrap over questions (Efron and Tibshirani 1993, chapter 13), vectorised.

A resample is how often each question was drawn. Systems that are compared share the draws, which
makes their difference a paired one.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.datasets.cleaning import PUBLISHERS
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
    """Words of the specialty, without plural `s`.

    Args:
        here, elsewhere: training answers of this specialty and of all others. Without others
            there is only the rule of word forms.
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
    """Share of the reference's terms that `answer` has, 0 to 1; terms that the question has are
    not counted, or an echo would score. None: no term is left."""
    wanted = (_words(reference) & terms) - _words(question)
    if not wanted:
        return None
    return len(wanted & _words(answer)) / len(wanted)


def _answers_with(answers: Sequence[str]) -> Counter[str]:
    return Counter(word for answer in answers for word in _words(answer))


def _words(text: str) -> set[str]:
    """A term and its plural count as the same: "tumours", "tumour"."""
    return {
        word[:-1] if len(word) > MIN_LETTERS and re.search(r"[^sui]s$", word) else word
        for word in plain_words(text)
    }


Floats = npt.NDArray[np.float64]
NUM_RESAMPLES = 10_000
MAX_ORDER = 4  # of n-grams in BLEU


def draws(num_questions: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> Floats:
    """How often each question is in each resample, (num_resamples, num_questions)."""
    generator = np.random.default_rng(seed)
    even = np.full(num_questions, 1 / num_questions)
    return generator.multinomial(num_questions, even, size=num_resamples).astype(np.float64)


def mean(values: Floats, counts: Floats) -> Floats:
    """Mean of `values` (Q,) in each resample of `counts` (R, Q), (R,)."""
    return np.asarray(counts @ values / counts.sum(axis=1))


def corpus_bleu(statistics: Floats) -> Floats:
    """Corpus BLEU, percent, from summed statistics (..., 10), (...).

    The last axis is sacrebleu's: system length, reference length, matches of 1- to 4-grams, and
    the system's number of them. Brevity penalty and exponential smoothing are sacrebleu's defaults
    (Papineni et al. 2002; Post 2018); a test compares the two.
    """
    lengths, references = statistics[..., 0], statistics[..., 1]
    matches, totals = statistics[..., 2 : 2 + MAX_ORDER], statistics[..., 2 + MAX_ORDER :]
    smoothing = np.ones_like(lengths)
    logs = np.zeros_like(lengths)
    for order in range(MAX_ORDER):
        match, total = matches[..., order], totals[..., order]
        none = (match == 0) & (total > 0)
        smoothing = np.where(none, smoothing * 2, smoothing)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(none, 1 / (smoothing * total), match / total)
            logs += np.log(precision)
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.minimum(0.0, 1 - references / lengths)
    bleu = 100 * np.exp(logs / MAX_ORDER + penalty)
    # Nothing is smoothed where no word matches, or where no answer has a 4-gram.
    return np.where((matches.sum(axis=-1) == 0) | (totals[..., -1] == 0), 0.0, bleu)


def interval(values: Floats) -> list[float]:
    """The middle 95 % of resampled values (R,)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def estimate(value: float, resampled: Floats) -> dict[str, Any]:
    return {"value": float(value), "interval": interval(resampled)}


_URL = re.compile(r"(?:https?://|www\.)[^\s)>\]]+", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SOURCE = re.compile(r"^Source:\s*(.+)$", re.MULTILINE)


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> Floats:
    """ROUGE-L F1 of each answer, percent (Lin 2004; the rouge-score package, with stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.array(
        [
            100 * scorer.score(reference, answer)["rougeL"].fmeasure
            for reference, answer in zip(references, answers, strict=True)
        ]
    )


def bleu_statistics(references: Sequence[str], answers: Sequence[str]) -> Floats:
    """sacrebleu's statistics of each answer, (len(answers), 10): see `bootstrap.corpus_bleu`."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        score = metric.corpus_score([answer], [[reference]])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, dtype=np.float64)


def nearest_answers(questions: Sequence[str], training: Sequence[tuple[str, str]]) -> list[str]:
    """The answer of the training question that is nearest in TF-IDF cosine, for each question."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    known = vectorizer.fit_transform([question for question, _ in training])
    similarity = vectorizer.transform(questions) @ known.T
    return [training[i][1] for i in np.asarray(similarity.todense()).argmax(axis=1)]


def urls(text: str) -> list[str]:
    return [found.rstrip(".,;:") for found in _URL.findall(text)]


def cited_publisher(answer: str) -> str | None:
    """What stands after `Source:` on a line of its own; None: nothing is cited."""
    match = _SOURCE.search(answer)
    return match[1].strip() if match else None


def is_known_publisher(name: str) -> bool:
    return name in PUBLISHERS.values()


def repeats(answer: str) -> bool:
    """Whether a sequence of four words comes three times or more: a generation that went round in
    circles."""
    words = answer.lower().split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return any(grams.count(gram) >= 3 for gram in set(grams))


def unsupported_numbers(question: str, reference: str, answer: str) -> int:
    """Numbers of the answer that neither question nor reference has: a proxy of invented facts."""
    known = set(_NUMBER.findall(question)) | set(_NUMBER.findall(reference))
    return len(set(_NUMBER.findall(answer)) - known)
