"""Classify questions: calibrated probabilities of the specialties, scope, language and evidence.

Hashed n-grams (features.py) and a sentence encoder (encoder.py) read each text, a long one also in
pieces (views.py); one linear head (head.py) takes the output of both. The artefact that holds them
is a folder (artefact.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router import language
from router.artefact import Artefact, load_artefact
from router.evidence import evidence_of
from router.features import Word, words_of
from router.head import Floats, sigmoid
from router.policy import Classification, Scores, Thresholds
from router.text import clean
from router.views import TextViews, View, read

DECAY = 0.5  # weight of a user turn relative to the next newer one
LANGUAGE_CHARS = 1000  # enough to tell a language


@dataclass(frozen=True, slots=True)
class _Turn:
    views: TextViews
    logits: Floats  # (S,), not yet divided by the temperature
    scope: float  # logit
    has_signal: bool


class Classifier:
    """The trained router. It never changes once built, so any number of threads may use it."""

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact

    @classmethod
    def load(cls, directory: Path, *, encoder: str | None = None, threads: int = 1) -> "Classifier":
        """Read an artefact folder and check it.

        Raises:
            ArtefactError: names the file, what was found, and the fix.
        """
        return cls(load_artefact(directory, encoder=encoder, threads=threads))

    @property
    def specialties(self) -> tuple[str, ...]:
        return self._artefact.specialties

    @property
    def version(self) -> str:
        return self._artefact.version

    @property
    def thresholds(self) -> Thresholds:
        return self._artefact.thresholds

    @property
    def encoder_name(self) -> str:
        return self._artefact.encoder.name

    def classify(self, conversations: Sequence[Sequence[str]]) -> list[Classification]:
        """Classify conversations; all their turns run through the encoder together.

        Args:
            conversations: of each its user turns, oldest first, at least one.

        Raises:
            ValueError: a conversation has no turn.
        """
        if not all(conversations):
            raise ValueError("a conversation needs at least one user turn")
        turns = iter(self._turns([text for texts in conversations for text in texts]))
        return [self._classify([next(turns) for _ in texts]) for texts in conversations]

    def features(self, texts: Sequence[str]) -> Floats:
        """Return the head's input for each text, (texts, D + S0 + 1), which holds no words."""
        return np.stack([views.features for views in self._read(texts)])

    def language(self, text: str) -> str:
        """Return the ISO 639-1 code of a text, or "und" when it is too short to tell.

        Reads only the first LANGUAGE_CHARS characters, so it is quick.
        """
        cleaned = clean(text[:LANGUAGE_CHARS])
        words = words_of(cleaned)
        return self._detect(cleaned, words, lambda: self._artefact.ngrams.score(words).french)

    def _read(self, texts: Sequence[str]) -> list[TextViews]:
        artefact = self._artefact
        return read(
            [clean(text) for text in texts], artefact.encoder, artefact.ngrams, artefact.projection
        )

    def _turns(self, texts: Sequence[str]) -> list[_Turn]:
        if not texts:
            return []
        found = self._read(texts)
        logits, scopes = self._artefact.head.logits(np.stack([views.features for views in found]))
        return [
            _Turn(
                views=views,
                logits=logits[i],
                scope=float(scopes[i]),
                has_signal=any(self._carries_signal(word) for word in views.whole.words),
            )
            for i, views in enumerate(found)
        ]

    def _classify(self, turns: Sequence[_Turn]) -> Classification:
        newest = turns[-1]
        conversation = self._scores(turns)
        last = self._scores([newest]) if len(turns) > 1 else conversation
        return Classification(
            last=last,
            conversation=conversation,
            num_turns=len(turns),
            language=self._language(newest.views.whole),
            evidence=self._evidence(newest),
        )

    def _scores(self, turns: Sequence[_Turn]) -> Scores:
        """Return the scores of the turns' mean logits, newer turns weighted more.

        Turns without signal count only where no turn has any.
        """
        speaking = [(age, turn) for age, turn in enumerate(reversed(turns)) if turn.has_signal]
        heard = speaking or list(enumerate(reversed(turns)))
        weights = np.array([DECAY**age for age, _ in heard], dtype=np.float32)
        weights /= weights.sum()
        logits = weights @ np.stack([turn.logits for _, turn in heard])
        scope = weights @ np.array([turn.scope for _, turn in heard], dtype=np.float32)
        probabilities = self._artefact.head.probabilities(logits)
        return Scores(
            probabilities=dict(zip(self.specialties, probabilities.tolist(), strict=True)),
            in_scope=float(self._artefact.head.in_scope(np.asarray(scope), probabilities)),
            has_signal=bool(speaking),
        )

    def _carries_signal(self, word: Word) -> bool:
        listed = (*self._artefact.function_words.values(), *self._artefact.generic.values())
        return len(word.normal) > 1 and not any(word.normal in group for group in listed)

    def _language(self, view: View) -> str:
        return self._detect(view.text, view.words, lambda: view.ngrams.french)

    def _detect(self, text: str, words: list[Word], french: Callable[[], float]) -> str:
        """Detect the language; `french` computes the trained logit of being French."""

        def p_french() -> float:
            return float(sigmoid(np.asarray(french())))

        return language.detect(words, text, p_french, self._artefact.function_words)

    def _evidence(self, turn: _Turn) -> tuple[str, ...]:
        """Return what raised the top specialty most above the mean of all, in the strongest view.

        Returns nothing for a turn without words that carry meaning.
        """
        view = turn.views.strongest
        if not turn.has_signal or not view.words:
            return ()
        specialty = self._artefact.head.specialty
        direction = specialty[:, int(np.argmax(turn.logits))] - specialty.mean(axis=1)
        projection, ngrams = self._artefact.projection, self._artefact.ngrams
        return evidence_of(view, direction, projection, ngrams, self._carries_signal)
