"""Scores of one answer against its reference, and what an answer shows without one."""

import re
from collections.abc import Sequence

import numpy as np

from scripts.evaluation.bootstrap import Floats

_URL = re.compile(r"(?:https?://|www\.)[^\s)>\]]+", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SOURCE = re.compile(r"^Source:\s*(.+)$", re.MULTILINE)


def rouge_l(references: Sequence[str], answers: Sequence[str]) -> Floats:
    """Return ROUGE-L F1 of each answer, percent (Lin 2004; the rouge-score package, stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.array(
        [
            100 * scorer.score(reference, answer)["rougeL"].fmeasure
            for reference, answer in zip(references, answers, strict=True)
        ]
    )


def bleu_statistics(references: Sequence[str], answers: Sequence[str]) -> Floats:
    """Return sacrebleu's statistics of each answer, (len(answers), 10), for `corpus_bleu`."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    rows = []
    for reference, answer in zip(references, answers, strict=True):
        score = metric.corpus_score([answer], [[reference]])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, dtype=np.float64)


def nearest_answers(questions: Sequence[str], training: Sequence[tuple[str, str]]) -> list[str]:
    """Return for each question the answer of the training question nearest in TF-IDF cosine."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    known = vectorizer.fit_transform([question for question, _ in training])
    similarity = vectorizer.transform(questions) @ known.T
    return [training[i][1] for i in np.asarray(similarity.todense()).argmax(axis=1)]


def urls(text: str) -> list[str]:
    return [found.rstrip(".,;:") for found in _URL.findall(text)]


def cited_publisher(answer: str) -> str | None:
    """Return what follows `Source:` at the start of a line; None when nothing does."""
    match = _SOURCE.search(answer)
    return match[1].strip() if match else None


def repeats(answer: str) -> bool:
    """Tell whether a sequence of four words comes three times or more, as in a loop."""
    words = answer.lower().split()
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return any(grams.count(gram) >= 3 for gram in set(grams))


def unsupported_numbers(question: str, reference: str, answer: str) -> int:
    """Count the answer's numbers that neither question nor reference has, a sign of invention."""
    known = set(_NUMBER.findall(question)) | set(_NUMBER.findall(reference))
    return len(set(_NUMBER.findall(answer)) - known)
