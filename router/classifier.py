"""Questions -> calibrated probabilities over the specialties, scope, language and evidence.

Hashed n-grams (ngrams.py) and a sentence encoder (encoder.py) read each text, a long one in pieces
too (reading.py), and meet in one linear head (head.py). The artefact that holds them is a folder
(artefact.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router import language
from router.artefact import Artefact, load_artefact
from router.features import Word, words_of
from router.head import sigmoid
from router.policy import Classification, Scores, Thresholds
from router.text import clean
from router.views import TextViews, View, read

DECAY = 0.5  # weight of a user turn relative to the next newer one
NUM_EVIDENCE = 3
LANGUAGE_CHARS = 1000  # enough to tell a language
MAX_EVIDENCE_CHARS = 120  # of one phrase: a "word" may be a page of base64
EVIDENCE_FLOOR = 0.2  # of the strongest word's share; weaker words are no evidence
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Turn:
    reading: TextViews
    logits: Floats  # (S,), not yet divided by the temperature
    scope: float  # logit
    has_signal: bool


class Classifier:
    """Immutable once built, so any number of threads may use it."""

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact

    @classmethod
    def load(cls, directory: Path, *, encoder: str | None = None, threads: int = 1) -> "Classifier":
        """Read an artefact folder and check it.

        Raises:
            ArtefactError: naming the file, what was found, and the mend.
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
        """One result for each conversation: its user turns, oldest first, at least one.

        All turns of all conversations run through the encoder together.

        Raises:
            ValueError: a conversation without a turn.
        """
        if not all(conversations):
            raise ValueError("a conversation needs at least one user turn")
        turns = iter(self._turns([text for texts in conversations for text in texts]))
        return [self._classify([next(turns) for _ in texts]) for texts in conversations]

    def features(self, texts: Sequence[str]) -> Floats:
        """What the head sees of each text, (texts, D + S0 + 1); holds none of its words."""
        return np.stack([reading.features for reading in self._read(texts)])

    def language(self, text: str) -> str:
        """ISO 639-1 code of a text, or "und" when it is too short to tell. Quick: of a long text
        only the beginning is read."""
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
        readings = self._read(texts)
        logits, scopes = self._artefact.head.logits(np.stack([r.features for r in readings]))
        return [
            _Turn(
                reading=reading,
                logits=logits[i],
                scope=float(scopes[i]),
                has_signal=any(self._carries_signal(word) for word in reading.whole.words),
            )
            for i, reading in enumerate(readings)
        ]

    def _classify(self, turns: Sequence[_Turn]) -> Classification:
        newest = turns[-1]
        conversation = self._scores(turns)
        last = self._scores([newest]) if len(turns) > 1 else conversation
        return Classification(
            last=last,
            conversation=conversation,
            num_turns=len(turns),
            language=self._language(newest.reading.whole),
            evidence=self._evidence(newest),
        )

    def _scores(self, turns: Sequence[_Turn]) -> Scores:
        """Weighted mean of the turns' logits; a turn without signal has no say beside others."""
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
        """`french`: gives the trained score of being French, a logit."""

        def p_french() -> float:
            return float(sigmoid(np.asarray(french())))

        return language.detect(words, text, p_french, self._artefact.function_words)

    def _evidence(self, turn: _Turn) -> tuple[str, ...]:
        """Phrases that raised the top specialty most above the mean of the others, in the view
        that weighs most.

        The head is linear in the pooled vector and in the n-gram logits, and both are sums over
        tokens or features, so each word's share of the difference is exact.
        """
        view = turn.reading.strongest
        if not turn.has_signal or not view.words:
            return ()
        head, projection = self._artefact.head, self._artefact.projection
        top = int(np.argmax(turn.logits))
        direction = head.specialty[:, top] - head.specialty.mean(axis=1)
        num_components = projection.components.shape[1]
        by_token = view.encoded.weights * (
            (view.encoded.states - projection.mean)
            @ (projection.components @ direction[:num_components])
        )
        ngram_direction = direction[num_components:-1] * projection.ngram_scale
        by_word = self._artefact.ngrams.by_word(
            view.ngrams.vector, ngram_direction, len(view.words)
        )
        by_word += _of_words(by_token, view.encoded.spans, view.words)
        for position, word in enumerate(view.words):
            if not self._carries_signal(word):
                by_word[position] = 0.0
        return _phrases(view.text, view.words, by_word)


def _of_words(
    by_token: npt.NDArray[Any], spans: npt.NDArray[np.int64], words: Sequence[Word]
) -> npt.NDArray[np.float64]:
    """Shares of tokens -> shares of the words that they begin in; words ascend in the text."""
    starts = np.array([word.start for word in words])
    middle = (spans[:, 0] + spans[:, 1]) / 2  # a token may begin with the blank before its word
    owners = np.searchsorted(starts, middle, side="right") - 1
    is_text = (spans[:, 1] > spans[:, 0]) & (owners >= 0)
    found = np.bincount(owners[is_text], by_token[is_text], minlength=len(words))
    return found.astype(np.float64)


def _phrases(text: str, words: Sequence[Word], of_word: npt.NDArray[Any]) -> tuple[str, ...]:
    """Runs of neighbouring words with weight, strongest first, each phrase once."""
    floor = EVIDENCE_FLOOR * float(of_word.max(initial=0.0))
    runs: list[list[int]] = []
    for position in range(len(words)):
        if of_word[position] <= floor:
            continue
        if runs and runs[-1][-1] == position - 1 and len(runs[-1]) < 4:
            runs[-1].append(position)
        else:
            runs.append([position])
    runs.sort(key=lambda run: -float(of_word[run].sum()))
    phrases = [text[words[run[0]].start : words[run[-1]].end] for run in runs]
    return tuple(dict.fromkeys(p[:MAX_EVIDENCE_CHARS] for p in phrases))[:NUM_EVIDENCE]
