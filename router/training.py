"""Questions with labels -> a trained artefact. Needs scikit-learn; serving never imports this.

The recipe: count hashed n-grams over the training questions, keep those that occur in enough of
them, and fit three linear heads by logistic regression: specialties (in-scope questions only), in
scope or not, French or English. Then calibrate on questions that were held out: a temperature for
the specialties, Platt scaling for the scope, and two thresholds by a stated cost.
"""

import hashlib
import io
import json
import random
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from router.classifier import (
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    log_odds,
    sigmoid,
    softmax,
)
from router.features import Vocabulary, char_features, vectorise, word_features, words_of

OUT_OF_SCOPE = "out_of_scope"
SPECIALTIES_FILE = Path(__file__).resolve().parent / "specialties.yaml"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Question:
    """A labelled question. `specialty` is a label or `out_of_scope`; `source` groups weights."""

    text: str
    specialty: str
    language: str
    source: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the trainer can be told. Weights multiply a source's say in the loss."""

    min_count: int = 2
    specialty_c: float = 20.0
    scope_c: float = 10.0
    french_c: float = 10.0
    wrong_cost: float = 1.0  # of naming the wrong specialist
    abstain_cost: float = 0.5  # of leaving an in-scope question to the base model
    refuse_cost: float = 2.0  # of calling a patient's question out of scope
    admit_cost: float = 1.0  # of treating another question as a patient's
    source_weights: tuple[tuple[str, float], ...] = (("written", 3.0),)  # specialty head
    scope_source_weights: tuple[tuple[str, float], ...] = (("written", 10.0),)  # and calibration
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """Arrays by name, and the manifest without the files' hashes."""

    arrays: Mapping[str, npt.NDArray[Any]]
    manifest: dict[str, Any]


def train(training: Sequence[Question], calibration: Sequence[Question], recipe: Recipe) -> Trained:
    """Fit and calibrate.

    Raises:
        ValueError: a label that specialties.yaml lacks, or a set without what it needs.
    """
    lexicon = yaml.safe_load(SPECIALTIES_FILE.read_text(encoding="utf-8"))
    labels = sorted(entry["name"] for entry in lexicon["specialties"])
    _check_labels(training, calibration, labels)
    shown = augment(training, recipe.seed)
    vocabulary = build_vocabulary([q.text for q in shown], recipe.min_count)
    features = matrix([q.text for q in shown], vocabulary)
    heads = _fit(shown, features, labels, recipe)
    held_out = matrix([q.text for q in calibration], vocabulary)
    fitted, thresholds, report = _calibrate(calibration, held_out, heads, labels, recipe)
    arrays = {
        "keys": vocabulary.keys,
        "idf": vocabulary.idf.astype(np.float16),
        **{name: heads[name].astype(np.float16) for name in ("specialty", "scope", "french")},
        "specialty_bias": heads["specialty_bias"].astype(np.float32),
        "biases": np.array([heads["scope_bias"], heads["french_bias"]], dtype=np.float32),
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "specialties": labels,
        "languages": ["en", "fr"],
        "calibration": fitted,
        "thresholds": thresholds,
        "recipe": asdict(recipe),
        "num_features": len(vocabulary.keys),
        "num_training": dict(sorted(Counter(q.specialty for q in training).items())),
        "num_calibration": len(calibration),
        "held_out": report,
        "function_words": _normal_lists(lexicon["function_words"]),
        "generic": _normal_lists(lexicon["generic"]),
    }
    return Trained(arrays, manifest)


def save(trained: Trained, directory: Path, *, date: str, provenance: Mapping[str, Any]) -> str:
    """Write the artefact; returns its version. The same arrays give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    content = _npz(trained.arrays)
    digest = hashlib.sha256(content).hexdigest()
    version = f"{date}+{digest[:8]}"
    (directory / WEIGHTS).write_bytes(content)
    manifest = {
        "version": version,
        **trained.manifest,
        "files": {WEIGHTS: {"sha256": digest, "bytes": len(content)}},
        **provenance,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return version


def build_vocabulary(texts: Sequence[str], min_count: int) -> Vocabulary:
    """Features that occur in at least `min_count` texts, with smoothed idf."""
    counts: Counter[int] = Counter()
    for text in texts:
        words = words_of(text)
        counts.update({key for key, *_ in word_features(words)})
        counts.update({key for key, *_ in char_features(words)})
    kept = sorted(key for key, count in counts.items() if count >= min_count)
    frequency = np.array([counts[key] for key in kept], dtype=np.float64)
    idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
    return Vocabulary(np.array(kept, dtype=np.uint32), idf.astype(np.float16).astype(np.float32))


def matrix(texts: Sequence[str], vocabulary: Vocabulary) -> csr_matrix:
    """(len(texts), F), the vectors that serving would see."""
    indices, values, starts = [], [], [0]
    for text in texts:
        vector = vectorise(words_of(text), vocabulary)
        indices.append(vector.rows)
        values.append(vector.values)
        starts.append(starts[-1] + len(vector.rows))
    shape = (len(texts), len(vocabulary.keys))
    return csr_matrix(
        (np.concatenate(values), np.concatenate(indices), np.array(starts)), shape=shape
    )


_COURTESIES = {
    "en": (
        ("Hello, ", ""),
        ("", " Thank you!"),
        ("Hi doctor, ", " Thanks in advance."),
        ("Good morning, could you tell me: ", ""),
    ),
    "fr": (
        ("Bonjour, ", ""),
        ("", " Merci !"),
        ("Bonjour docteur, ", " Merci d'avance."),
        ("Bonsoir, pouvez-vous me dire : ", ""),
    ),
}


def augment(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions, some again with courtesies around them, and some strangers joined.

    Courtesies must not speak for either side of the scope. Out-of-scope questions are short while
    clinical histories are long, so some are joined, or length alone would mean "in scope".
    """
    generator = random.Random(seed)
    more = []
    for question in questions:
        if generator.random() < 0.15 and question.language in _COURTESIES:
            before, after = generator.choice(_COURTESIES[question.language])
            more.append(_with_text(question, f"{before}{question.text}{after}"))
    for code in ("en", "fr"):
        strangers = [q for q in questions if q.specialty == OUT_OF_SCOPE and q.language == code]
        for _ in range(len(strangers) // 2):
            picked = generator.sample(strangers, k=min(len(strangers), generator.randint(2, 5)))
            more.append(_with_text(picked[0], " ".join(q.text for q in picked)))
    return [*questions, *more]


def _with_text(question: Question, text: str) -> Question:
    return Question(text, question.specialty, question.language, question.source)


def _check_labels(
    training: Sequence[Question], calibration: Sequence[Question], labels: Sequence[str]
) -> None:
    for name, questions in (("training", training), ("calibration", calibration)):
        found = {q.specialty for q in questions}
        unknown = sorted(found - {*labels, OUT_OF_SCOPE})
        if unknown:
            raise ValueError(
                f"{name} set: unknown label(s) {', '.join(unknown)}; "
                f"{SPECIALTIES_FILE.name} has {', '.join(labels)} (and {OUT_OF_SCOPE})"
            )
        if OUT_OF_SCOPE not in found:
            raise ValueError(f"{name} set: no {OUT_OF_SCOPE} question, so no scope can be learnt")
    missing = sorted(set(labels) - {q.specialty for q in training})
    if missing:
        raise ValueError(f"training set: no question for {', '.join(missing)}")


def _fit(
    questions: Sequence[Question], features: csr_matrix, labels: Sequence[str], recipe: Recipe
) -> dict[str, Any]:
    weights = _sample_weights(questions, recipe.source_weights)
    inside = np.array([q.specialty != OUT_OF_SCOPE for q in questions])
    targets = np.array([q.specialty for q in questions])
    specialty = _logistic(recipe.specialty_c).fit(
        features[inside], targets[inside], sample_weight=weights[inside]
    )
    assert list(specialty.classes_) == list(labels), (list(specialty.classes_), labels)
    scope_weights = _balanced(_sample_weights(questions, recipe.scope_source_weights), inside)
    scope = _logistic(recipe.scope_c).fit(features, inside, sample_weight=scope_weights)
    is_french = np.array([q.language == "fr" for q in questions])
    french = LogisticRegression(C=recipe.french_c, class_weight="balanced", max_iter=300).fit(
        features, is_french
    )
    return {
        "specialty": specialty.coef_.T,
        "specialty_bias": specialty.intercept_,
        "scope": scope.coef_[0],
        "scope_bias": float(scope.intercept_[0]),
        "french": french.coef_[0],
        "french_bias": float(french.intercept_[0]),
    }


def _balanced(weights: Array, inside: npt.NDArray[np.bool_]) -> Array:
    """Weights scaled so that both sides of the scope have the same sum: a prior of one half."""
    balanced = weights.copy()
    for side in (True, False):
        balanced[inside == side] *= len(inside) / (2 * weights[inside == side].sum())
    return balanced


def _logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=300, tol=1e-3)


def _sample_weights(
    questions: Sequence[Question], source_weights: tuple[tuple[str, float], ...]
) -> Array:
    """Source weight, times the square root of how rare the label is; mean 1."""
    by_source = dict(source_weights)
    counts = Counter(q.specialty for q in questions)
    median = float(np.median(list(counts.values())))
    weights = np.array(
        [by_source.get(q.source, 1.0) * (median / counts[q.specialty]) ** 0.5 for q in questions]
    )
    return np.asarray(weights / weights.mean())


def _calibrate(
    questions: Sequence[Question],
    features: csr_matrix,
    heads: Mapping[str, Any],
    labels: Sequence[str],
    recipe: Recipe,
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """(calibration, thresholds, figures on the held-out questions)."""
    inside = np.array([q.specialty != OUT_OF_SCOPE for q in questions])
    weights = _sample_weights(questions, recipe.scope_source_weights)
    logits = features @ heads["specialty"] + heads["specialty_bias"]
    truth = np.array(
        [labels.index(q.specialty) if i else -1 for q, i in zip(questions, inside, strict=True)]
    )
    temperature = fit_temperature(logits[inside], truth[inside], weights[inside])
    scope_weights = _balanced(weights, inside)
    scope_logits = features @ heads["scope"] + heads["scope_bias"]
    probabilities = softmax(logits / temperature)
    inputs = np.stack([scope_logits, log_odds(probabilities.max(axis=1))], axis=1)
    scale, confidence, offset = fit_platt(inputs, inside, scope_weights)
    scope = np.array([sigmoid(z) for z in inputs @ np.array([scale, confidence]) + offset])
    correct = probabilities.argmax(axis=1) == truth
    min_confidence = best_threshold(
        probabilities.max(axis=1)[inside],
        kept_cost=recipe.wrong_cost * ~correct[inside] * weights[inside],
        dropped_cost=recipe.abstain_cost * weights[inside],
    )
    min_in_scope = best_threshold(
        scope,
        kept_cost=recipe.admit_cost * ~inside * scope_weights,
        dropped_cost=recipe.refuse_cost * inside * scope_weights,
    )
    report = {
        "accuracy": round(float(np.average(correct[inside], weights=weights[inside])), 4),
        "in_scope_recall": round(float((scope[inside] >= min_in_scope).mean()), 4),
        "out_of_scope_recall": round(float((scope[~inside] < min_in_scope).mean()), 4),
    }
    calibration = {
        "temperature": temperature,
        "scope_scale": scale,
        "scope_confidence": confidence,
        "scope_offset": offset,
    }
    rounded = {name: round(value, 6) for name, value in calibration.items()}
    thresholds = {"min_confidence": min_confidence, "min_in_scope": min_in_scope}
    return rounded, thresholds, report


def fit_temperature(logits: Array, truth: npt.NDArray[Any], weights: Array) -> float:
    """The divisor of the logits with the lowest weighted log loss (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        picked = probabilities[np.arange(len(truth)), truth]
        return float(-(weights * np.log(np.maximum(picked, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_platt(
    inputs: Array, truth: npt.NDArray[np.bool_], weights: Array
) -> tuple[float, float, float]:
    """Platt scaling (1999) over two inputs, (n, 2): (weight, weight, offset) of the sigmoid."""

    def loss(parameters: Array) -> float:
        z = inputs @ parameters[:2] + parameters[2]
        signed = np.where(truth, -z, z)
        return float((weights * np.logaddexp(0, signed)).sum())

    found = minimize(loss, np.array([1.0, 0.0, 0.0]), method="Nelder-Mead").x
    return float(found[0]), float(found[1]), float(found[2])


def best_threshold(scores: Array, *, kept_cost: Array, dropped_cost: Array) -> float:
    """The threshold with the lowest total cost: `kept_cost` at or above, `dropped_cost` below.

    Rounded to two digits; all arrays (n,).
    """
    candidates = np.round(np.arange(0.05, 0.96, 0.01), 2)
    costs = [
        float(np.where(scores >= candidate, kept_cost, dropped_cost).sum())
        for candidate in candidates
    ]
    return float(candidates[int(np.argmin(costs))])


def _normal_lists(lists: Mapping[str, str]) -> dict[str, list[str]]:
    return {code: sorted({word.normal for word in words_of(text)}) for code, text in lists.items()}


def _npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A compressed .npz whose bytes depend on nothing but the arrays (numpy stamps the time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(
                content, np.ascontiguousarray(arrays[name]), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content.getvalue())
    return buffer.getvalue()
