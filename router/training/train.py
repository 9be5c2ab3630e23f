"""Examples and an encoder -> a trained artefact folder. Needs scikit-learn; serving never imports
this.

The n-grams and the directions of the encoder's vector are learnt from the examples of `encoder`
(those the encoder has learnt from), the head from `head`, which none of them has seen. `validation`
is stored beside them and only scored.
"""

import hashlib
import io
import json
import random
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
from sklearn.linear_model import LogisticRegression

from router.artefact import BUILT_IN, CALIBRATION, FEATURES, FORMAT_VERSION, MANIFEST, WEIGHTS
from router.encoder import ENCODER, TOKENIZER, TextEncoder
from router.features import NgramModel, words_of
from router.head import Head, Projection
from router.text import clean
from router.training.examples import OUT_OF_SCOPE, Example, Recipe, balanced, example_weights
from router.training.head import FeatureSet, FittedHead, fit_head, recalls, restored, stored
from router.training.ngrams import train_ngrams
from router.views import read

LOGIT_SCALE = 0.2  # of learnt logits beside components of variance 1 and less
BATCH = 2000  # texts in one call of the encoder: bounds the memory
SPECIALTIES_FILE = Path(__file__).resolve().parent.parent / "specialties.yaml"


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
    projection = fit_projection(encoder_set, labels, encoder, recipe)
    texts = [clean(e.text) for e in examples]
    rows = [
        reading.features
        for start in range(0, len(texts), BATCH)
        for reading in read(texts[start : start + BATCH], encoder, ngrams, projection)
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


def fit_projection(
    encoder_set: Sequence[Example], labels: Sequence[str], encoder: TextEncoder, recipe: Recipe
) -> Projection:
    """Directions of the pooled vector: principal components, the first with variance 1, then what
    linear models of specialty and scope find in the examples that the encoder learnt from."""
    sample = _sample(encoder_set, recipe)
    pooled = np.concatenate(
        [
            np.stack([e.pooled for e in encoder.encode([clean(x.text) for x in part])])
            for part in (sample[i : i + BATCH] for i in range(0, len(sample), BATCH))
        ]
    )
    mean = pooled.mean(axis=0)
    centred = pooled - mean
    _, sizes, components = np.linalg.svd(centred[:: max(1, len(centred) // 10_000)], False)
    count = min(recipe.num_components, len(components))
    signs = np.sign(components[np.arange(count), np.abs(components[:count]).argmax(axis=1)])
    spread = float(np.sqrt((centred @ components[0]).var()))
    directions = [(components[:count] * signs[:, None] / spread).T]
    inside = np.array([e.specialty != OUT_OF_SCOPE for e in sample])
    targets = np.array([e.specialty for e in sample])
    weights = example_weights(sample, recipe)
    scaled = centred / spread
    specialty = LogisticRegression(C=recipe.projection_c, max_iter=300, tol=1e-3).fit(
        scaled[inside], targets[inside], sample_weight=weights[inside]
    )
    scope = LogisticRegression(C=recipe.projection_c, max_iter=300, tol=1e-3).fit(
        scaled, inside, sample_weight=balanced(weights, inside)
    )
    for found in (specialty.coef_, scope.coef_):
        directions.append(LOGIT_SCALE * found.T / spread)
    columns = np.concatenate(directions, axis=1)
    return Projection(
        mean.astype(np.float32), columns.astype(np.float16).astype(np.float32), LOGIT_SCALE
    )


def _sample(examples: Sequence[Example], recipe: Recipe) -> list[Example]:
    """All questions and passages, and as many terms as fit into `max_projection_examples`."""
    chosen = [e for e in examples if e.kind != "term"][: recipe.max_projection_examples]
    terms = [e for e in examples if e.kind == "term"]
    count = min(len(terms), recipe.max_projection_examples - len(chosen))
    return [*chosen, *random.Random(recipe.seed).sample(terms, count)]


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
