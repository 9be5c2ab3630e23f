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

import numpy as np

from router.artefact import Artefact, load_artefact
from router.conversation import SHORT_WORDS, Content, content_of, thread
from router.evidence import evidence_of
from router.features import Floats
from router.head import TextViews, read, sigmoid
from router.policy import BENEFIT_OF_THE_DOUBT, Classification, Scores, names
from router.preparation.languages import UNKNOWN, detect_language, likely_french
from router.preparation.pasted import find_question
from router.preparation.prepare import Prepared, prepare
from router.text import Word, clean, normalise, words_of

DECAY = 0.5  # weight of a user turn relative to the next newer one
LANGUAGE_CHARS = 1000  # enough to tell a language


@dataclass(frozen=True, slots=True)
class _Turn:
    prepared: Prepared
    views: TextViews
    logits: Floats  # (S,), not yet divided by the temperature
    scope: float  # logit
    has_signal: bool
    content: Content


class Classifier:
    """The trained router. It never changes once built, so any number of threads may use it."""

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self.specialties = artefact.specialties
        self.version = artefact.version
        self.thresholds = artefact.thresholds
        self.encoder_name = artefact.encoder.name

    @classmethod
    def load(cls, directory: Path, *, encoder: str | None = None, threads: int = 1) -> "Classifier":
        """Read an artefact folder and check it.

        Raises:
            ArtefactError: names the file, what was found, and the fix.
        """
        return cls(load_artefact(directory, encoder=encoder, threads=threads))

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
        return np.stack([views.features for views in self._read([prepare(t) for t in texts])])

    def language(self, text: str) -> str:
        """Return the ISO 639-1 code of a text, or "und" when it is too short to tell.

        Reads only the first LANGUAGE_CHARS characters, so it is quick.
        """
        cleaned = clean(text[:LANGUAGE_CHARS])
        words = words_of(cleaned)
        return self._detect(cleaned, words, lambda: self._artefact.ngrams.score(words).french)

    def _read(self, texts: Sequence[Prepared]) -> list[TextViews]:
        artefact = self._artefact
        return read(
            [text.text for text in texts], artefact.encoder, artefact.ngrams, artefact.projection
        )

    def _turns(self, texts: Sequence[str]) -> list[_Turn]:
        """Read texts; one that holds pasted context and a question counts as its question.

        The question must name a topic, and where it has no label be sure, else the whole counts.
        """
        if not texts:
            return []
        wholes = [prepare(text) for text in texts]
        questions = {at: found for at, text in enumerate(wholes) if (found := _question_of(text))}
        asked = [prepare(question) for question, _ in questions.values()]
        turns = self._scored([*wholes, *asked])
        chosen = turns[: len(wholes)]
        for (at, (_, is_labelled)), turn in zip(
            questions.items(), turns[len(wholes) :], strict=True
        ):
            if turn.content.has_topic and (is_labelled or self._settled([turn])):
                chosen[at] = turn
        return chosen

    def _scored(self, texts: Sequence[Prepared]) -> list[_Turn]:
        found = self._read(texts)
        logits, scopes = self._artefact.head.logits(np.stack([views.features for views in found]))
        return [
            _Turn(text, views, logits[i], float(scopes[i]), *self._said(text, views.whole.words))
            for i, (text, views) in enumerate(zip(texts, found, strict=True))
        ]

    def _said(self, text: Prepared, words: Sequence[Word]) -> tuple[bool, Content]:
        """Return whether a word carries signal, and what the words say."""
        is_mute = text.only_denies or (text.foreign is not None and len(words) <= SHORT_WORDS)
        written = [normalise(text.edited.original(word.start, word.end)) for word in words]
        content = content_of(text.text, words, written, is_mute=is_mute)
        carries = content.has_place or any(map(self._carries_signal, words))
        return content.has_signal and carries, content

    def _classify(self, turns: Sequence[_Turn]) -> Classification:
        newest = turns[-1]
        last = self._scores([newest])
        telling = [newest]
        if len(turns) > 1:
            telling = thread(
                turns,
                content=lambda turn: turn.content,
                settled=self._settled,
                is_outside=self._is_outside,
            )
        return Classification(
            last=last,
            conversation=self._scores(telling) if len(turns) > 1 else last,
            num_turns=len(turns),
            language=self._language(turns),
            evidence=self._evidence(newest) if len(turns) == 1 or newest.content.has_topic else (),
            has_topic=newest.content.has_topic,
            is_request=newest.content.is_request,
        )

    def _settled(self, turns: Sequence[_Turn]) -> str | None:
        """Return the specialty that the turns name for sure, if they do."""
        scores = self._scores(turns)
        if scores.in_scope < self.thresholds.min_in_scope or not names(scores, self.thresholds):
            return None
        return max(scores.probabilities, key=lambda name: scores.probabilities[name])

    def _is_outside(self, turn: _Turn) -> bool:
        strange = BENEFIT_OF_THE_DOUBT * self.thresholds.min_in_scope
        return self._scores([turn]).in_scope < strange

    def _scores(self, turns: Sequence[_Turn]) -> Scores:
        """Return the scores of the turns' mean logits, newer turns weighted more."""
        weights = np.array([DECAY**age for age in range(len(turns))][::-1], dtype=np.float32)
        weights /= weights.sum()
        logits = weights @ np.stack([turn.logits for turn in turns])
        scope = weights @ np.array([turn.scope for turn in turns], dtype=np.float32)
        probabilities = self._artefact.head.probabilities(logits)
        return Scores(
            probabilities=dict(zip(self.specialties, probabilities.tolist(), strict=True)),
            in_scope=float(self._artefact.head.in_scope(np.asarray(scope), probabilities)),
            has_signal=any(turn.has_signal for turn in turns),
        )

    def _carries_signal(self, word: Word) -> bool:
        listed = (*self._artefact.function_words.values(), *self._artefact.generic.values())
        return len(word.normal) > 1 and not any(word.normal in group for group in listed)

    def _language(self, turns: Sequence[_Turn]) -> str:
        """Return the newest turn's language; for a few bare nouns, that of an earlier turn."""
        newest = turns[-1].views.whole
        foreign = turns[-1].prepared.foreign
        if foreign is not None:
            return foreign
        if likely_french(newest.words) is None and len(newest.words) <= SHORT_WORDS:
            for turn in reversed(turns[:-1]):
                found = self._language([turn])
                if found != UNKNOWN:
                    return found
        return self._detect(newest.text, newest.words, lambda: newest.ngrams.french)

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
        written = turn.prepared.edited
        return evidence_of(view, written, direction, projection, ngrams, self._carries_signal)


def _question_of(text: Prepared) -> tuple[str, bool] | None:
    """Return the question in a text with pasted context, and whether it stands behind a label."""
    source = text.edited.source
    question = find_question(source)
    if question is None:
        return None
    return source[question.start : question.end], question.is_labelled
