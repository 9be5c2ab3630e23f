"""Scored questions for the tests of groups and figures."""

import numpy as np

from scripts.router.dataset import Entry
from scripts.router_evaluation.scoring import Scored


def question(text: str, specialty: str = "cardiology", **changed: str) -> Entry:
    fields = {"id": text, "lang": "en", "source": "MedQuAD/GARD", "group": "", "kind": "question"}
    return Entry(text=text, specialty=specialty, **(fields | changed))


def scored(*questions: Entry, predicted: str = "cardiology") -> Scored:
    n = len(questions)
    return Scored(
        questions=questions,
        predicted=np.array([predicted] * n),
        confidence=np.linspace(0.5, 0.9, n),
        in_scope=np.linspace(0.1, 0.9, n),
        named=np.ones(n, dtype=bool),
        has_signal=np.ones(n, dtype=bool),
    )
