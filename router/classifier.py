"""Questions -> calibrated probabilities over the specialties, scope, language and evidence.

Three linear heads over the same hashed n-grams (features.py): the specialties (softmax), in scope
or not, French or English. Serving needs numpy only. The artefact is a folder with `weights.npz`
(no pickle) and `manifest.json`.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from router import language
from router.features import Vector, Vocabulary, Word, vectorise, words_of
from router.policy import Thresholds

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.npz"
DECAY = 0.5  # weight of a user turn relative to the next newer one
NUM_EVIDENCE = 3
Floats = npt.NDArray[np.float32]


class ArtefactError(ValueError):
    """The router's artefact is missing, damaged or of another version; says how to mend it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one view of a conversation. `probabilities` are calibrated and sum to 1; `in_scope` is
    the calibrated probability of a question for a clinic; `has_signal` is False for a view
    in which no turn has words of its own ("and the treatment?")."""

    probabilities: Mapping[str, float]
    in_scope: float
    has_signal: bool


@dataclass(frozen=True, slots=True)
class Classification:
    """`last` is the last user turn alone; `conversation` all user turns, the newest weighted
    most. `evidence` holds phrases of the user's own words that spoke for the top specialty."""

    last: Scores
    conversation: Scores
    num_turns: int
    language: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """Weights over F features. S specialties; calibration is folded in where it is linear."""

    specialty: Floats  # (F, S)
    specialty_bias: Floats  # (S,)
    scope: Floats  # (F,)
    french: Floats  # (F,)
    scope_bias: float
    french_bias: float
    temperature: float  # divides the specialty logits (Guo et al. 2017)
    # Platt scaling (1999) with a second input, the log-odds of the top specialty's probability:
    # sigmoid(scope_scale * scope logit + scope_confidence * log-odds + scope_offset)
    scope_scale: float
    scope_confidence: float
    scope_offset: float


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words without a specialty of their own, in normal form, by language."""

    function_words: dict[str, frozenset[str]]
    generic: dict[str, frozenset[str]]

    def carries_signal(self, word: Word) -> bool:
        groups = (*self.function_words.values(), *self.generic.values())
        return len(word.normal) > 1 and not any(word.normal in group for group in groups)


@dataclass(frozen=True, slots=True)
class _Turn:
    words: list[Word]
    vector: Vector
    logits: Floats  # (S,), not yet divided by the temperature
    scope: float  # logit
    french: float  # logit
    has_signal: bool


class Classifier:
    """Immutable once built, so any number of threads may use it."""

    def __init__(
        self,
        *,
        specialties: Sequence[str],
        version: str,
        thresholds: Thresholds,
        vocabulary: Vocabulary,
        heads: Heads,
        lexicon: Lexicon,
    ) -> None:
        self.specialties = tuple(specialties)
        self.version = version
        self.thresholds = thresholds
        self._vocabulary = vocabulary
        self._heads = heads
        self._lexicon = lexicon

    @classmethod
    def load(cls, directory: Path) -> "Classifier":
        """Read an artefact folder and check it.

        Raises:
            ArtefactError: naming the file, what was found, and the mend.
        """
        return _load(directory)

    def classify(self, conversations: Sequence[Sequence[str]]) -> list[Classification]:
        """One result for each conversation: its user turns, oldest first, at least one.

        Raises:
            ValueError: a conversation without a turn.
        """
        return [self._classify(turns) for turns in conversations]

    def language(self, text: str) -> str:
        """ISO 639-1 code of a text, or "und" when it is too short to tell."""
        return self._language(text, self._turn(text))

    def _classify(self, texts: Sequence[str]) -> Classification:
        if not texts:
            raise ValueError("a conversation needs at least one user turn")
        turns = [self._turn(text) for text in texts]
        newest = turns[-1]
        conversation = self._scores(turns)
        last = self._scores([newest]) if len(turns) > 1 else conversation
        return Classification(
            last=last,
            conversation=conversation,
            num_turns=len(turns),
            language=self._language(texts[-1], newest),
            evidence=self._evidence(texts[-1], newest),
        )

    def _turn(self, text: str) -> _Turn:
        words = words_of(text)
        vector = vectorise(words, self._vocabulary)
        heads, rows, values = self._heads, vector.rows, vector.values
        return _Turn(
            words=words,
            vector=vector,
            logits=values @ heads.specialty[rows] + heads.specialty_bias,
            scope=float(values @ heads.scope[rows] + heads.scope_bias),
            french=float(values @ heads.french[rows] + heads.french_bias),
            has_signal=any(self._lexicon.carries_signal(word) for word in words),
        )

    def _scores(self, turns: Sequence[_Turn]) -> Scores:
        """Weighted mean of the turns' logits; a turn without signal has no say beside others."""
        speaking = [(age, turn) for age, turn in enumerate(reversed(turns)) if turn.has_signal]
        heard = speaking or list(enumerate(reversed(turns)))
        weights = np.array([DECAY**age for age, _ in heard], dtype=np.float32)
        weights /= weights.sum()
        logits = weights @ np.stack([turn.logits for _, turn in heard])
        scope = float(weights @ np.array([turn.scope for _, turn in heard], dtype=np.float32))
        probabilities = softmax(logits / self._heads.temperature)
        return Scores(
            probabilities=dict(zip(self.specialties, probabilities.tolist(), strict=True)),
            in_scope=sigmoid(
                self._heads.scope_scale * scope
                + self._heads.scope_confidence * float(log_odds(probabilities.max()))
                + self._heads.scope_offset
            ),
            has_signal=bool(speaking),
        )

    def _language(self, text: str, turn: _Turn) -> str:
        words = self._lexicon.function_words
        return language.detect(turn.words, text, sigmoid(turn.french), words)

    def _evidence(self, text: str, turn: _Turn) -> tuple[str, ...]:
        """Phrases whose features raised the top specialty most above the mean of the others."""
        if not turn.has_signal or not len(turn.vector.rows):
            return ()
        top = int(np.argmax(turn.logits))
        head = self._heads.specialty[turn.vector.rows].astype(np.float32)
        gain = turn.vector.values * (head[:, top] - head.mean(axis=1))
        lengths = np.diff(turn.vector.starts)
        shares = np.repeat(gain / lengths, lengths)
        of_word = np.bincount(turn.vector.origins, shares, minlength=len(turn.words))
        for position, word in enumerate(turn.words):
            if not self._lexicon.carries_signal(word):
                of_word[position] = 0.0
        return _phrases(text, turn.words, of_word)


def _phrases(text: str, words: Sequence[Word], of_word: npt.NDArray[Any]) -> tuple[str, ...]:
    """Runs of neighbouring words with weight, strongest first, each phrase once."""
    floor = 0.15 * float(of_word.max(initial=0.0))
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
    return tuple(dict.fromkeys(phrases))[:NUM_EVIDENCE]


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_odds(probability: npt.NDArray[Any] | float) -> npt.NDArray[Any]:
    """Bounded at about 7, where a probability is as good as certain."""
    bounded = np.clip(probability, 0.001, 0.999)
    return np.asarray(np.log(bounded / (1 - bounded)))


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(logit, -60, 60))))


def _load(directory: Path) -> Classifier:
    manifest = _read_manifest(directory / MANIFEST)
    weights = directory / WEIGHTS
    try:
        content = weights.read_bytes()  # once: what is checked is what is loaded
        found = hashlib.sha256(content).hexdigest()
        specialties = [str(name) for name in manifest["specialties"]]
        if found != manifest["files"][WEIGHTS]["sha256"]:
            raise _artefact_error(weights, f"its sha256 is {found}, not the manifest's")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            vocabulary = Vocabulary(arrays["keys"], arrays["idf"].astype(np.float32))
            heads = _heads(arrays, manifest["calibration"])
        _check_shapes(weights, len(specialties), vocabulary, heads)
        _check_manifest(directory / MANIFEST, specialties, manifest)
        return Classifier(
            specialties=specialties,
            version=str(manifest["version"]),
            thresholds=Thresholds(**manifest["thresholds"]),
            vocabulary=vocabulary,
            heads=heads,
            lexicon=Lexicon(
                _word_sets(manifest["function_words"]), _word_sets(manifest["generic"])
            ),
        )
    except FileNotFoundError:
        raise _artefact_error(weights, "it is missing") from None
    except (KeyError, TypeError, AttributeError, OSError, EOFError, BadZipFile) as error:
        raise _artefact_error(directory, f"it cannot be read ({error!r})") from None
    except ValueError as error:
        if isinstance(error, ArtefactError):
            raise
        raise _artefact_error(directory, f"it cannot be read ({error!r})") from None


def _heads(arrays: Any, calibration: Mapping[str, float]) -> Heads:
    return Heads(
        specialty=arrays["specialty"].astype(np.float32),
        specialty_bias=arrays["specialty_bias"].astype(np.float32),
        scope=arrays["scope"].astype(np.float32),
        french=arrays["french"].astype(np.float32),
        scope_bias=float(arrays["biases"][0]),
        french_bias=float(arrays["biases"][1]),
        temperature=float(calibration["temperature"]),
        scope_scale=float(calibration["scope_scale"]),
        scope_confidence=float(calibration["scope_confidence"]),
        scope_offset=float(calibration["scope_offset"]),
    )


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _artefact_error(file, "it is missing") from None
    except (OSError, ValueError) as error:
        raise _artefact_error(file, f"it is no JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        stated = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise _artefact_error(file, f"format_version is {stated!r}, not {FORMAT_VERSION}")
    return manifest


def _check_shapes(file: Path, num_specialties: int, vocabulary: Vocabulary, heads: Heads) -> None:
    num_features = len(vocabulary.keys)
    shapes = {
        "idf": (vocabulary.idf.shape, (num_features,)),
        "specialty": (heads.specialty.shape, (num_features, num_specialties)),
        "specialty_bias": (heads.specialty_bias.shape, (num_specialties,)),
        "scope": (heads.scope.shape, (num_features,)),
        "french": (heads.french.shape, (num_features,)),
    }
    wrong = [
        f"{name} {got}, expected {want}" for name, (got, want) in shapes.items() if got != want
    ]
    if wrong:
        raise _artefact_error(file, f"shapes do not fit the labels: {'; '.join(wrong)}")
    arrays = (vocabulary.idf, heads.specialty, heads.specialty_bias, heads.scope, heads.french)
    if not all(np.isfinite(array).all() for array in arrays):
        raise _artefact_error(file, "it holds NaN or infinity")
    if np.any(np.diff(vocabulary.keys.astype(np.int64)) <= 0):
        raise _artefact_error(file, "its keys do not ascend")


def _check_manifest(file: Path, specialties: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """The numbers and the label order that the weights' checksum does not cover.

    Training sorts the labels, so another order is a column under a wrong name.
    """
    calibration, thresholds = manifest["calibration"], manifest["thresholds"]
    numbers = {**calibration, **thresholds}
    wrong = [
        f"{name} is {value!r}, not a finite number"
        for name, value in numbers.items()
        if not isinstance(value, int | float) or not math.isfinite(value)
    ]
    if not wrong:
        if calibration["temperature"] <= 0:
            wrong.append(f"temperature is {calibration['temperature']}, not above 0")
        wrong += [
            f"{name} is {value}, not from 0 to 1"
            for name, value in thresholds.items()
            if not 0 <= value <= 1
        ]
    if list(specialties) != sorted(set(specialties)):
        wrong.append("specialties are not distinct and in alphabetical order")
    if wrong:
        raise _artefact_error(file, "; ".join(wrong))


def _word_sets(lists: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    return {code: frozenset(words) for code, words in lists.items()}


def _artefact_error(path: Path, what: str) -> ArtefactError:
    return ArtefactError(
        f"router artefact: {path}: {what}. Mend: restore it (`git checkout -- router/model`), or "
        "train it again (`python -m scripts.train_router --help`)"
    )
