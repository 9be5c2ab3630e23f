"""Fit the model of urgent wording (router/urgency/wording.py) on the written questions.

    python -m scripts.train_red_flags

Reads the sets of router/data/red_flags.yaml.bz2, the questions of written_urgency.jsonl.bz2, those
that red_flags_templates.yaml.bz2 makes, and, as not urgent with a small weight, the questions that
were written for the router, but those that look urgent. Writes router/urgency/wording.safetensors
and prints, set by set, what models that had not seen a question say of it (ten folds). The last
line of stdout is one JSON object, without any text.
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from router.training.ngrams import sparse
from router.urgency.red_flags import RedFlags, load_red_flags
from router.urgency.wording import NUM_BUCKETS, WEIGHTS, features, pieces
from scripts.arguments import CommandParser
from scripts.datasets.record import read_jsonl
from scripts.datasets.yaml_file import read_yaml
from scripts.evaluate_red_flags import DATA, QUESTIONS, Case, cases, figures, table

WRITTEN = DATA / "written_urgency.jsonl.bz2"
TEMPLATES = DATA / "red_flags_templates.yaml.bz2"
ROUTER_QUESTIONS = (
    "written_train.jsonl.bz2",
    "written_train_patients.jsonl.bz2",
    "written_train_scope.jsonl.bz2",
    "written_train_clinical.jsonl.bz2",
)
TEXTS_OF_A_TEMPLATE = 25
TEMPLATE_WEIGHT = 0.3
ROUTER_WEIGHT = 0.03
LIKELY_URGENT = 0.03  # of the router's questions, left out
INVERSE_PENALTY = 10.0  # scikit-learn's C
FOLDS = 10
SEED = 0
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Background:
    """Texts that every fold trains on: features, whether urgent, weights."""

    features: csr_matrix
    urgent: Flags
    weights: npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("train_red_flags", __doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the model file")
    return parser.run(argv, tuple, _train)


def _train(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    rules = load_red_flags(with_wording=False)
    sets = list(cases(QUESTIONS))
    questions = [*sets, *written(WRITTEN)]
    matrix = _matrix(_first_pieces(rules, questions))
    urgent = np.array([case.is_urgent for case in questions])
    background = _background(rules, matrix, urgent)
    odds = np.empty(len(questions))
    for fold in np.array_split(np.random.default_rng(SEED).permutation(len(questions)), FOLDS):
        kept = np.setdiff1d(np.arange(len(questions)), fold)
        odds[fold] = _with(background, matrix[kept], urgent[kept]).decision_function(matrix[fold])
    verdicts = {
        case: signs.is_sure or at >= signs.urgent_from
        for case, at, signs in zip(
            questions, odds.tolist(), (rules.by_signs(case.text) for case in questions), strict=True
        )
    }
    for line in table(verdicts):
        print(line)
    _save(_with(background, matrix, urgent), args.out)
    return figures(verdicts)


def written(path: Path) -> Iterator[Case]:
    """Yield the questions that are only trained on, and that no set has."""
    for _, row in read_jsonl(path):
        yield Case("training", row["urgent"], row["lang"], False, row["input"])


def from_templates(path: Path) -> Iterator[Case]:
    """Yield questions made of the templates' slots; the same file always gives the same ones."""
    chooser = random.Random(SEED)
    for language, content in read_yaml(path).items():
        slots = {name: words.split("|") for name, words in content["slots"].items()}
        for label in ("urgent", "not_urgent"):
            for template in content[label]:
                made = {_filled(template, slots, chooser) for _ in range(TEXTS_OF_A_TEMPLATE)}
                for text in sorted(made):
                    yield Case("templates", label == "urgent", language, False, text)


def _filled(template: str, slots: dict[str, list[str]], chooser: random.Random) -> str:
    text = re.sub(r"\{(\w+)\}", lambda slot: chooser.choice(slots[slot[1]]), template)
    return " ".join(text.split()).replace(" ,", ",")


def _background(rules: RedFlags, labelled: csr_matrix, urgent: Flags) -> _Background:
    """Return the templates' questions and the router's, which are taken for not urgent.

    Those of the router's pieces that a first model finds most urgent are left out.
    """
    made = list(from_templates(TEMPLATES))
    texts = [row["input"] for name in ROUTER_QUESTIONS for _, row in read_jsonl(DATA / name)]
    of_made = _matrix(_first_pieces(rules, made))
    of_router = _matrix([piece for text in texts for piece in pieces(rules.read(text))])

    def background(calm: csr_matrix) -> _Background:
        marks = [case.is_urgent for case in made] + [False] * calm.shape[0]
        weights = [TEMPLATE_WEIGHT] * len(made) + [ROUTER_WEIGHT] * calm.shape[0]
        return _Background(vstack([of_made, calm]), np.array(marks), np.array(weights))

    odds = _with(background(of_router), labelled, urgent).decision_function(of_router)
    return background(of_router[odds < np.quantile(odds, 1 - LIKELY_URGENT)])


def _first_pieces(rules: RedFlags, questions: Sequence[Case]) -> list[list[str]]:
    return [next(pieces(rules.read(case.text))) for case in questions]


def _matrix(listed: Sequence[list[str]]) -> csr_matrix:
    """Return the features of pieces, (pieces, NUM_BUCKETS)."""
    return sparse([features(piece) for piece in listed], NUM_BUCKETS)


def _with(background: _Background, matrix: csr_matrix, urgent: Flags) -> LogisticRegression:
    model = LogisticRegression(C=INVERSE_PENALTY, solver="liblinear", random_state=SEED)
    return model.fit(
        vstack([matrix, background.features]),
        np.concatenate([urgent, background.urgent]),
        np.concatenate([np.ones(len(urgent)), background.weights]),
    )


def _save(model: LogisticRegression, path: Path) -> None:
    weights = model.coef_[0]
    scale = np.abs(weights).max() / 127
    save_file(
        {
            "weights": np.round(weights / scale).astype(np.int8),
            "scale": np.array([scale], dtype=np.float32),
            "bias": model.intercept_.astype(np.float32),
        },
        path,
    )


if __name__ == "__main__":
    raise SystemExit(main())
