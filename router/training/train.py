"""Train an artefact from examples and an encoder. Needs scikit-learn; serving never imports this.

The n-grams and the directions of the encoder's vector are learnt from the examples of `encoder`
(those the encoder has learnt from), the head from `head`, which neither has seen. `validation` is
stored with them and only scored.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from router.artefact import BUILT_IN, FORMAT_VERSION
from router.encoder import TextEncoder
from router.features import NgramModel
from router.head import Projection, read
from router.preparation.prepare import prepared_text
from router.text import words_of
from router.training.examples import OUT_OF_SCOPE, LabelledText, Recipe, example_weights
from router.training.feature_set import FeatureSet, restored, stored
from router.training.head import fit_head, recalls
from router.training.ngrams import train_ngrams
from router.training.projection import BATCH, fit_projection
from router.training.trained import Trained, head_entries, rounded, weight_arrays

SPECIALTIES_FILE = Path(__file__).resolve().parent.parent / "specialties.yaml"
Examples = Sequence[LabelledText]


def train(
    encoder_set: Examples,
    head_set: Examples,
    validation: Examples,
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
        ValueError: a label is not in specialties.yaml, or a set lacks what it needs.
    """
    lexicon = yaml.safe_load(SPECIALTIES_FILE.read_text(encoding="utf-8"))
    labels = sorted(entry["name"] for entry in lexicon["specialties"])
    sets = {"encoder": encoder_set, "head": head_set, "validation": validation}
    for name, examples in sets.items():
        check_labels(name, examples, labels)
    ngrams = train_ngrams(encoder_set, labels, recipe)
    projection = fit_projection(encoder_set, labels, encoder, recipe)
    features = stored(_features(head_set, validation, encoder, ngrams, projection, recipe), labels)
    kept = restored(features, labels)  # the head is fitted on what is stored
    fitted = fit_head(kept, labels, recipe)
    return Trained(
        weights=weight_arrays(ngrams, projection, fitted.head),
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
            "num_examples": {name: _counts(examples) for name, examples in sets.items()},
            "validation_recall": rounded(recalls(fitted.head, kept, labels)),
            **{name: _normal_lists(lexicon[name]) for name in ("function_words", "generic")},
        },
        encoder_dir=encoder_dir,
    )


def _features(
    head_set: Examples,
    validation: Examples,
    encoder: TextEncoder,
    ngrams: NgramModel,
    projection: Projection,
    recipe: Recipe,
) -> FeatureSet:
    examples = [*head_set, *validation]
    texts = [prepared_text(e.text) for e in examples]
    rows = [
        views.features
        for start in range(0, len(texts), BATCH)
        for views in read(texts[start : start + BATCH], encoder, ngrams, projection)
    ]
    weights = [example_weights(part, recipe) for part in (head_set, validation) if part]
    folds = [zlib.crc32((e.group or e.text).encode()) % recipe.num_folds for e in examples]
    return FeatureSet(
        features=np.stack(rows),
        labels=np.array([e.specialty for e in examples]),
        weights=np.concatenate(weights),
        folds=np.array(folds),
        is_validation=np.arange(len(examples)) >= len(head_set),
    )


def _counts(examples: Examples) -> dict[str, int]:
    return dict(sorted(Counter(e.specialty for e in examples).items()))


def check_labels(name: str, examples: Examples, labels: Sequence[str]) -> None:
    """Check that a set has the labels that it needs, and no other.

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


def _normal_lists(lists: Mapping[str, str]) -> dict[str, list[str]]:
    return {code: sorted({word.normal for word in words_of(text)}) for code, text in lists.items()}
