"""The baselines that the router is compared with: word TF-IDF and logistic regression."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scripts.datasets.record import DataError
from scripts.router.dataset import Entry

OURS = ("written", "glossary")  # sources that we wrote
# The names of the baselines in the report: trained on public questions, or on all texts.
PUBLIC, ALL_TEXTS = "baseline", "baseline, all texts"


def training_of(name: str, training: Sequence[Entry]) -> list[Entry]:
    """Return the in-scope texts that the baseline `name` learns from."""
    inside = [question for question in training if question.is_inside]
    if name == ALL_TEXTS:
        return inside
    return [q for q in inside if q.kind == "question" and q.source not in OURS]


class Baseline:
    """Word TF-IDF and logistic regression (scikit-learn, sublinear term frequency).

    Raises:
        DataError: the training texts have fewer than two specialties.
    """

    def __init__(self, name: str, training: Sequence[Entry]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.name = name
        texts = training_of(name, training)
        self.num_texts = len(texts)
        labels = [question.specialty for question in texts]
        if len(set(labels)) < 2:
            raise DataError(f"{name}: fewer than two specialties to learn in the training split")
        self._model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000)
        )
        self._model.fit([question.text for question in texts], labels)

    def predict(self, questions: Sequence[Entry]) -> npt.NDArray[np.str_]:
        """Return the predicted labels, (Q,)."""
        if not questions:
            return np.array([], dtype=np.str_)
        return np.asarray(self._model.predict([q.text for q in questions]), dtype=np.str_)
