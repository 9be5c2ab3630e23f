"""Classify questions: calibrated probabilities of the specialties, scope, language and evidence.

Hashed n-grams (features.py) and a sentence encoder (encoder.py) read each text, a long one also in
pieces; one linear head takes the output of both (head.py). It is linear in the pooled vector and in
the n-gram logits, and both are sums over tokens or features, so each word's share of a logit is
exact: the evidence. The artefact that holds all this is a folder (artefact.py). Shapes: T tokens, W
words of a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.artefact import Artefact, load_artefact
from router.features import Floats, NgramModel
from router.head import Projection, TextViews, View, read, sigmoid
from router.policy import Classification, Scores, Thresholds
from router.text import Word, clean, detect_language, words_of

DECAY = 0.5  # weight of a user turn relative to the next newer one
LANGUAGE_CHARS = 1000  # enough to tell a language
NUM_EVIDENCE = 3
MAX_PHRASE_WORDS = 4
MAX_EVIDENCE_CHARS = 120  # of one phrase: a "word" may be a page of base64
EVIDENCE_FLOOR = 0.2  # of the strongest word's share; weaker words are not evidence


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

        return detect_language(words, text, p_french, self._artefact.function_words)

    def _evidence(self, turn: _Turn) -> tuple[str, ...]:
        """Return what raised the top specialty most above the mean of all, in the strongest view.

        Returns nothing for a turn without words that carry meaning.
        """
        view = turn.views.strongest
        if not turn.has_signal or not view.words:
            return ()
        head = self._artefact.head
        direction = head.direction(int(np.argmax(head.probabilities(turn.logits))))
        projection, ngrams = self._artefact.projection, self._artefact.ngrams
        return evidence_of(view, direction, projection, ngrams, self._carries_signal)


def evidence_of(
    view: View,
    direction: Floats,
    projection: Projection,
    ngrams: NgramModel,
    carries_signal: Callable[[Word], bool],
) -> tuple[str, ...]:
    """Return the phrases whose words add most along `direction`, strongest first.

    Args:
        direction: (D + S0 + 1,) in the space of the head's features.
        carries_signal: False for a word that is never evidence.
    """
    num_components = projection.components.shape[1]
    by_token = view.encoded.weights * (
        (view.encoded.states - projection.mean)
        @ (projection.components @ direction[:num_components])
    )
    ngram_direction = direction[num_components:-1] * projection.ngram_scale
    by_word = ngrams.by_word(view.ngrams.vector, ngram_direction, len(view.words))
    by_word += _of_words(by_token, view.encoded.spans, view.words)
    for position, word in enumerate(view.words):
        if not carries_signal(word):
            by_word[position] = 0.0
    return _phrases(view.text, view.words, by_word)


def _of_words(
    by_token: npt.NDArray[Any], spans: npt.NDArray[np.int64], words: Sequence[Word]
) -> npt.NDArray[np.float64]:
    """Sum the shares of tokens (T,) over the words that they begin in, (W,)."""
    starts = np.array([word.start for word in words])
    middle = (spans[:, 0] + spans[:, 1]) / 2  # a token may begin with the blank before its word
    owners = np.searchsorted(starts, middle, side="right") - 1
    is_text = (spans[:, 1] > spans[:, 0]) & (owners >= 0)
    found = np.bincount(owners[is_text], by_token[is_text], minlength=len(words))
    return found.astype(np.float64)


def _phrases(text: str, words: Sequence[Word], of_word: npt.NDArray[Any]) -> tuple[str, ...]:
    """Return runs of neighbouring words above the floor, strongest first, each phrase once."""
    floor = EVIDENCE_FLOOR * float(of_word.max(initial=0.0))
    runs: list[list[int]] = []
    for position in range(len(words)):
        if of_word[position] <= floor:
            continue
        if runs and runs[-1][-1] == position - 1 and len(runs[-1]) < MAX_PHRASE_WORDS:
            runs[-1].append(position)
        else:
            runs.append([position])
    runs.sort(key=lambda run: -float(of_word[run].sum()))
    phrases = [text[words[run[0]].start : words[run[-1]].end] for run in runs]
    return tuple(dict.fromkeys(p[:MAX_EVIDENCE_CHARS] for p in phrases))[:NUM_EVIDENCE]
