"""Fit the projection of the encoder's pooled vector to features. Needs scikit-learn."""

import random
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from router.encoder import TextEncoder
from router.head import Projection
from router.preparation.prepare import prepared_text
from router.training.examples import (
    OUT_OF_SCOPE,
    LabelledText,
    Recipe,
    balanced,
    example_weights,
)

LOGIT_SCALE = 0.2  # of learnt logits, next to components of variance 1 and less
BATCH = 2000  # texts in one call of the encoder: bounds the memory


def fit_projection(
    encoder_set: Sequence[LabelledText], labels: Sequence[str], encoder: TextEncoder, recipe: Recipe
) -> Projection:
    """Fit directions of the encoder's pooled vector.

    They are principal components, scaled so that the first has variance 1, then what linear models
    of specialty and scope find in the examples that the encoder has learnt from.
    """
    sample = _sample(encoder_set, recipe)
    pooled = np.concatenate(
        [
            np.stack([e.pooled for e in encoder.encode([prepared_text(x.text) for x in part])])
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


def _sample(examples: Sequence[LabelledText], recipe: Recipe) -> list[LabelledText]:
    """Return all questions and passages, and as many terms as `max_projection_examples` allows.

    Of more questions and passages than that, as many are drawn.
    """
    generator, limit = random.Random(recipe.seed), recipe.max_projection_examples
    chosen = [e for e in examples if e.kind != "term"]
    if len(chosen) >= limit:
        return generator.sample(chosen, limit)
    terms = [e for e in examples if e.kind == "term"]
    return [*chosen, *generator.sample(terms, min(len(terms), limit - len(chosen)))]
