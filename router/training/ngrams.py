"""Train the n-gram models from labelled texts. Needs scikit-learn; serving never imports this."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from router.features import NgramModel, Vocabulary, char_features, vectorise, word_features
from router.preparation.prepare import prepared_text
from router.text import words_of
from router.training.examples import OUT_OF_SCOPE, LabelledText, Recipe, balanced, example_weights


def train_ngrams(
    examples: Sequence[LabelledText], labels: Sequence[str], recipe: Recipe
) -> NgramModel:
    """Count hashed n-grams, keep the most frequent, and fit three linear models on them."""
    texts = [prepared_text(e.text) for e in examples]
    vocabulary = build_vocabulary(texts, recipe.min_count, recipe.max_features)
    features = matrix(texts, vocabulary)
    weights = example_weights(examples, recipe)
    inside = np.array([e.specialty != OUT_OF_SCOPE for e in examples])
    targets = np.array([e.specialty for e in examples])
    specialty = _logistic(recipe.ngram_c).fit(
        features[inside], targets[inside], sample_weight=weights[inside]
    )
    assert list(specialty.classes_) == list(labels), (list(specialty.classes_), labels)
    scope = _logistic(recipe.ngram_c).fit(features, inside, sample_weight=balanced(weights, inside))
    is_french = np.array([e.language == "fr" for e in examples])
    french = _logistic(recipe.ngram_c).fit(
        features, is_french, sample_weight=balanced(np.ones(len(examples)), is_french)
    )
    return NgramModel(
        vocabulary=vocabulary,
        specialty=_rounded(specialty.coef_.T),
        specialty_bias=specialty.intercept_.astype(np.float32),
        scope=_rounded(scope.coef_[0]),
        scope_bias=float(np.float32(scope.intercept_[0])),
        french=_rounded(french.coef_[0]),
        french_bias=float(np.float32(french.intercept_[0])),
    )


def build_vocabulary(texts: Sequence[str], min_count: int, max_features: int) -> Vocabulary:
    """Keep the `max_features` most frequent features that occur in at least `min_count` texts.

    The idf is smoothed: log((1 + texts) / (1 + texts with the feature)) + 1.
    """
    counts: Counter[int] = Counter()
    for text in texts:
        words = words_of(text)
        counts.update({key for key, *_ in word_features(words)})
        counts.update({key for key, *_ in char_features(words)})
    ranked = sorted((-count, key) for key, count in counts.items() if count >= min_count)
    kept = sorted(key for _, key in ranked[:max_features])
    frequency = np.array([counts[key] for key in kept], dtype=np.float64)
    idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
    return Vocabulary(np.array(kept, dtype=np.uint32), _rounded(idf))


def matrix(texts: Sequence[str], vocabulary: Vocabulary) -> csr_matrix:
    """Return the vectors that serving would compute, (len(texts), F)."""
    vectors = (vectorise(words_of(text), vocabulary) for text in texts)
    return sparse([(vector.rows, vector.values) for vector in vectors], len(vocabulary.keys))


def sparse(
    vectors: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]], width: int
) -> csr_matrix:
    """Return the matrix (len(vectors), width) of vectors that are given as (places, values)."""
    places, values = (np.concatenate(parts) for parts in zip(*vectors, strict=True))
    starts = np.cumsum([0, *(len(found) for found, _ in vectors)])
    return csr_matrix((values, places, starts), shape=(len(vectors), width))


def _logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=400, tol=2e-3)


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round to the artefact's precision, so that what is fitted on top sees the same values."""
    return values.astype(np.float16).astype(np.float32)
