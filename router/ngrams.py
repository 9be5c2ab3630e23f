"""Linear models over hashed n-grams: specialty, scope and language of a text, and which words say
so. Shapes: F features, S specialties that the model knows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.features import Vector, Vocabulary, Word, vectorise

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NgramScores:
    """Of one text: logits of the specialties (S,), of being in scope, of being French."""

    vector: Vector
    specialty: Floats
    scope: float
    french: float


@dataclass(frozen=True, slots=True)
class NgramModel:
    """Immutable, so any number of threads may use it."""

    vocabulary: Vocabulary
    specialty: Floats  # (F, S)
    specialty_bias: Floats  # (S,)
    scope: Floats  # (F,)
    scope_bias: float
    french: Floats  # (F,)
    french_bias: float

    def score(self, words: list[Word]) -> NgramScores:
        vector = vectorise(words, self.vocabulary)
        rows, values = vector.rows, vector.values
        return NgramScores(
            vector=vector,
            specialty=values @ self.specialty[rows] + self.specialty_bias,
            scope=float(values @ self.scope[rows] + self.scope_bias),
            french=float(values @ self.french[rows] + self.french_bias),
        )

    def by_word(self, vector: Vector, direction: Floats, num_words: int) -> npt.NDArray[np.float64]:
        """How much each word adds to `direction @ specialty logits`; direction (S,), -> (words,).

        A feature's share goes to the words that it comes from in equal parts.
        """
        gain = vector.values * (self.specialty[vector.rows] @ direction)
        lengths = np.diff(vector.starts)
        shares = np.repeat(gain / lengths, lengths)
        return np.bincount(vector.origins, shares, minlength=num_words).astype(np.float64)
