"""Examples and an encoder -> a trained artefact folder. Needs scikit-learn; serving never imports
this.

The n-grams learn from the examples of `encoder` (those the encoder has learnt from), the head from
`head`, which neither has seen. `validation` is stored beside them and only scored.
"""

import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from router.artefact import BUILT_IN, CALIBRATION, FEATURES, FORMAT_VERSION, MANIFEST, WEIGHTS
from router.encoder import ENCODER, TOKENIZER, TextEncoder
from router.examples import OUT_OF_SCOPE, Example, Recipe, example_weights
from router.features import words_of
from router.head import Head, Projection
from router.head_training import FeatureSet, FittedHead, fit_head, recalls, restored, stored
from router.ngram_training import train_ngrams
from router.ngrams import NgramModel
from router.text import clean

NGRAM_SCALE = 0.2  # of the n-gram logits beside components of variance 1 and less
SPECIALTIES_FILE = Path(__file__).resolve().parent / "specialties.yaml"


@dataclass(frozen=True, slots=True)
class Trained:
    """An artefact in memory: arrays by file and name, the manifest without checksums, and the
    encoder's folder (None: not built in)."""

    weights: Mapping[str, npt.NDArray[Any]]
    features: Mapping[str, npt.NDArray[Any]]
    manifest: dict[str, Any]
    encoder_dir: Path | None


def train(
    encoder_set: Sequence[Example],
    head_set: Sequence[Example],
    validation: Sequence[Example],
    *,
    encoder: TextEncoder,
    encoder_dir: Path | None,
    recipe: Recipe,
) -> Trained:
    """Fit n-grams and head, and calibrate.

    Args:
        encoder_dir: folder with encoder.onnx and tokenizer.json, to be part of the artefact; None
            for an encoder that is named instead.

    Raises:
        ValueError: a label that specialties.yaml lacks, or a set without what it needs.
    """
    lexicon = yaml.safe_load(SPECIALTIES_FILE.read_text(encoding="utf-8"))
    labels = sorted(entry["name"] for entry in lexicon["specialties"])
    sets = {"encoder": encoder_set, "head": head_set, "validation": validation}
    for name, examples in sets.items():
        check_labels(name, examples, labels)
    ngrams = train_ngrams(encoder_set, labels, recipe)
    examples = [*head_set, *validation]
    pooled = np.stack([e.pooled for e in encoder.encode([clean(e.text) for e in examples])])
    projection = fit_projection(pooled[: len(head_set)], recipe)
    rows = [
        projection.features(vector, ngrams.score(words_of(clean(example.text))))
        for vector, example in zip(pooled, examples, strict=True)
    ]
    weights = [example_weights(part, recipe) for part in (head_set, validation) if part]
    folds = [zlib.crc32((e.group or e.text).encode()) % recipe.num_folds for e in examples]
    given = FeatureSet(
        features=np.stack(rows),
        labels=np.array([e.specialty for e in examples]),
        weights=np.concatenate(weights),
        folds=np.array(folds),
        is_validation=np.arange(len(examples)) >= len(head_set),
    )
    features = stored(given, labels)
    kept = restored(features, labels)  # the head is fitted on what is stored
    fitted = fit_head(kept, labels, recipe)
    return Trained(
        weights={
            **ngram_arrays(ngrams),
            **_projection_arrays(projection),
            **head_arrays(fitted.head),
        },
        features=features,
        manifest={
            "format_version": FORMAT_VERSION,
            "specialties": labels,
            "ngram_specialties": labels,
            "languages": ["en", "fr"],
            "encoder": {"name": BUILT_IN if encoder_dir else encoder.name},
            "ngram_scale": round(projection.ngram_scale, 6),
            **head_entries(fitted),
            "recipe": asdict(recipe),
            "num_features": len(ngrams.vocabulary.keys),
            "num_examples": {
                name: dict(sorted(Counter(e.specialty for e in part).items()))
                for name, part in sets.items()
            },
            "validation_recall": _rounded(recalls(fitted.head, kept, labels)),
            "function_words": _normal_lists(lexicon["function_words"]),
            "generic": _normal_lists(lexicon["generic"]),
        },
        encoder_dir=encoder_dir,
    )


def check_labels(name: str, examples: Sequence[Example], labels: Sequence[str]) -> None:
    """
    Raises:
        ValueError: names the set and what is wrong with its labels.
    """
    found = {e.specialty for e in examples}
    unknown = sorted(found - {*labels, OUT_OF_SCOPE})
    if unknown:
        raise ValueError(
            f"{name} set: unknown label(s) {', '.join(unknown)}; {SPECIALTIES_FILE.name} has "
            f"{', '.join(labels)} (and {OUT_OF_SCOPE})"
        )
    if name == "validation":
        return
    if OUT_OF_SCOPE not in found:
        raise ValueError(f"{name} set: no {OUT_OF_SCOPE} question, so no scope can be learnt")
    if missing := sorted(set(labels) - found):
        raise ValueError(f"{name} set: no question for {', '.join(missing)}")


def fit_projection(pooled: npt.NDArray[np.float32], recipe: Recipe) -> Projection:
    """Principal components of the pooled vectors (N, H), the first with variance 1."""
    mean = pooled.mean(axis=0)
    _, sizes, components = np.linalg.svd(pooled - mean, full_matrices=False)
    count = min(recipe.num_components, len(components))
    signs = np.sign(components[np.arange(count), np.abs(components[:count]).argmax(axis=1)])
    scale = np.sqrt(len(pooled)) / sizes[0]
    directions = (components[:count] * signs[:, None] * scale).T
    return Projection(
        mean.astype(np.float32), directions.astype(np.float16).astype(np.float32), NGRAM_SCALE
    )


def save(trained: Trained, directory: Path, *, date: str, provenance: Mapping[str, Any]) -> str:
    """Write the artefact; returns its version. The same arrays give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {WEIGHTS: npz(trained.weights), FEATURES: npz(trained.features)}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    if trained.encoder_dir is not None:
        for name in (ENCODER, TOKENIZER):
            if (trained.encoder_dir / name).resolve() != (directory / name).resolve():
                shutil.copyfile(trained.encoder_dir / name, directory / name)
            contents[name] = (directory / name).read_bytes()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = {**trained.manifest, **provenance}
    manifest["files"] = {
        name: {"sha256": digests[name], "bytes": len(contents[name])} for name in sorted(contents)
    }
    named = json.dumps({"files": digests, "head": trained.manifest["calibration"]}, sort_keys=True)
    version = f"{date}+{hashlib.sha256(named.encode()).hexdigest()[:8]}"
    text = json.dumps({"version": version, **manifest}, indent=1, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return version


def ngram_arrays(ngrams: NgramModel) -> dict[str, npt.NDArray[Any]]:
    return {
        "keys": ngrams.vocabulary.keys,
        "idf": ngrams.vocabulary.idf.astype(np.float16),
        "ngram_specialty": ngrams.specialty.astype(np.float16),
        "ngram_specialty_bias": ngrams.specialty_bias,
        "ngram_scope": ngrams.scope.astype(np.float16),
        "ngram_french": ngrams.french.astype(np.float16),
        "ngram_biases": np.array([ngrams.scope_bias, ngrams.french_bias], dtype=np.float32),
    }


def _projection_arrays(projection: Projection) -> dict[str, npt.NDArray[Any]]:
    return {"mean": projection.mean, "components": projection.components.astype(np.float16)}


def head_arrays(head: Head) -> dict[str, npt.NDArray[Any]]:
    return {
        "specialty": head.specialty,
        "specialty_bias": head.specialty_bias,
        "scope": head.scope,
        "scope_bias": np.array([head.scope_bias], dtype=np.float32),
    }


def head_entries(fitted: FittedHead) -> dict[str, Any]:
    """What the manifest says of a head."""
    return {
        "calibration": {name: getattr(fitted.head, name) for name in CALIBRATION},
        "thresholds": fitted.thresholds,
        "cross_validated": fitted.report,
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _normal_lists(lists: Mapping[str, str]) -> dict[str, list[str]]:
    return {code: sorted({word.normal for word in words_of(text)}) for code, text in lists.items()}


def npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
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
