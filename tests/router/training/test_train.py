"""From a small bilingual set to a working router: routes, bytes, refusals."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artefact import (
    FEATURES,
    MANIFEST,
    WEIGHTS,
    load_artefact,
    read_arrays,
    read_manifest,
)
from router.classifier import Classifier
from router.encoder import OnnxEncoder
from router.policy import Reason, decide
from router.preparation.prepare import prepared_text
from router.training.examples import OUT_OF_SCOPE, LabelledText, Recipe
from router.training.feature_set import restored
from router.training.train import train
from router.training.trained import Trained, save
from tests.router.small_questions import LABELS, small_questions
from tests.tiny_encoder import tiny_trained

pytestmark = pytest.mark.slow


def test_a_small_bilingual_set_trains_a_router_that_routes(tiny_router_dir: Path) -> None:
    classifier = Classifier.load(tiny_router_dir)
    assert classifier.version.startswith("2026-01-02+")
    assert classifier.specialties == LABELS
    held_out = small_questions(2)
    inside = [q for q in held_out if q.specialty != OUT_OF_SCOPE]
    routes = [
        decide(
            classified,
            thresholds=classifier.thresholds,
            adapters={label: label for label in LABELS},
            base_languages=("en", "fr"),
        )
        for classified in classifier.classify([[q.text] for q in held_out])
    ]
    by_question = dict(zip(held_out, routes, strict=True))
    assert np.mean([by_question[q].specialty == q.specialty for q in inside]) > 0.9
    strangers = [r for q, r in by_question.items() if q.specialty == OUT_OF_SCOPE]
    assert np.mean([r.reason is Reason.OUT_OF_SCOPE for r in strangers]) > 0.8
    assert np.mean([r.language == q.language for q, r in by_question.items()]) > 0.9


def test_the_same_seed_gives_the_same_bytes_and_other_data_others(
    tiny_encoder_dir: Path, tiny_router_dir: Path, tmp_path: Path
) -> None:
    trained = {
        "same": tiny_trained(tiny_encoder_dir),
        "other": tiny_trained(tiny_encoder_dir, head_set=small_questions(5)),
    }
    folders = {name: tmp_path / name for name in trained}
    versions = {
        name: save(trained[name], folder, date="2026-01-02", provenance={"command": "none"})
        for name, folder in folders.items()
    }
    first = read_manifest(tiny_router_dir / MANIFEST)["version"]
    assert versions["same"] == first
    assert versions["other"] != first
    for file in tiny_router_dir.iterdir():
        content = file.read_bytes()
        assert content == (folders["same"] / file.name).read_bytes(), file.name
        is_encoder = file.name in ("encoder.onnx", "tokenizer.json.gz")
        assert (content == (folders["other"] / file.name).read_bytes()) == is_encoder, file.name


def test_saving_in_place_keeps_the_encoder(router_copy: Path) -> None:
    before = (router_copy / "encoder.onnx").read_bytes()
    trained = tiny_trained(router_copy)
    save(trained, router_copy, date="2026-01-02", provenance={"command": "none"})
    assert (router_copy / "encoder.onnx").read_bytes() == before
    Classifier.load(router_copy)


def test_a_packed_encoder_stays_packed_and_is_the_same(router_copy: Path, tmp_path: Path) -> None:
    before = Classifier.load(router_copy)
    content = (router_copy / "encoder.onnx").read_bytes()
    (router_copy / "encoder.onnx").unlink()
    (router_copy / "encoder.onnx.gz").write_bytes(gzip.compress(content))
    assert Classifier.load(router_copy).version == before.version
    tmp_path.joinpath("encoder.onnx").write_bytes(b"of a training before")
    version = save(tiny_trained(router_copy), tmp_path, date="2026-01-02", provenance={})
    assert not (tmp_path / "encoder.onnx").exists()
    assert Classifier.load(tmp_path).version == version


def test_the_artefact_holds_no_question_text(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    """Of head and validation it holds numbers, of the encoder's examples less than that."""
    words = ("zyzzyva", "quokka", "xylophone")
    marker = LabelledText(" ".join(words), "neurology", "en", "written", group="quokka")
    trained = tiny_trained(
        tiny_encoder_dir,
        encoder_set=[*small_questions(0), marker, marker, marker],
        head_set=[*small_questions(1), marker],
    )
    save(trained, tmp_path, date="d", provenance={})
    manifest = read_manifest(tmp_path / MANIFEST)
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert not [word for word in words if word.encode() in content], file.name
    for name in (WEIGHTS, FEATURES):  # compressed: what is inside
        arrays = read_arrays(tmp_path, manifest, name)
        assert {array.dtype.kind for array in arrays.values()} <= set("fiub")
        raw = b"".join(array.tobytes() for array in arrays.values())
        assert not [word for word in words if word.encode() in raw]


def test_features_are_those_that_serving_computes(tiny_router_dir: Path) -> None:
    """So that a specialty that is added later meets the same space."""
    manifest = read_manifest(tiny_router_dir / MANIFEST)
    arrays = read_arrays(tiny_router_dir, manifest, FEATURES)
    kept = restored(arrays, LABELS)
    head_set, validation = small_questions(1), small_questions(2)
    texts = [q.text for q in (*head_set, *validation)]
    served = Classifier.load(tiny_router_dir).features(texts)
    assert np.allclose(kept.features, served, atol=float(arrays["scales"].max()))
    assert kept.labels.tolist() == [q.specialty for q in (*head_set, *validation)]
    assert kept.is_validation.tolist() == [False] * len(head_set) + [True] * len(validation)


def test_examples_of_a_group_share_a_fold(tiny_router_dir: Path, tiny_encoder_dir: Path) -> None:
    questions = small_questions(1)
    grouped = [dataclasses.replace(q, group=f"{i % 40}") for i, q in enumerate(questions)]
    trained = tiny_trained(tiny_encoder_dir, head_set=grouped)
    folds = trained.features["folds"][: len(grouped)]
    assert len(set(folds.tolist())) == 5
    for group in range(40):
        assert len(set(folds[group::40].tolist())) == 1


def test_the_manifest_counts_the_examples(tiny_router_dir: Path) -> None:
    manifest = read_manifest(tiny_router_dir / MANIFEST)
    assert set(manifest["num_examples"]) == {"encoder", "head", "validation"}
    assert manifest["num_examples"]["head"]["cardiology"] == 24
    assert manifest["num_examples"]["head"][OUT_OF_SCOPE] == 80
    assert set(manifest["validation_recall"]) == set(LABELS)
    assert set(manifest["files"]) == {"encoder.onnx", "features.npz", "tokenizer.json.gz", WEIGHTS}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (tiny_router_dir / name).stat().st_size


def test_features_begin_with_principal_components_the_first_of_variance_one(
    tiny_router_dir: Path,
) -> None:
    artefact = load_artefact(tiny_router_dir)
    texts = [prepared_text(q.text) for seed in (0, 1) for q in small_questions(seed)]
    pooled = np.stack([found.pooled for found in artefact.encoder.encode(texts)])
    scores = (pooled - artefact.projection.mean) @ artefact.projection.components[:, :8]
    spreads = scores.std(axis=0)
    assert spreads[0] == pytest.approx(1, rel=0.1)
    assert (np.diff(spreads) < 0.02).all()  # they fall
    off_diagonal = np.corrcoef(scores.T) - np.eye(8)
    assert np.abs(off_diagonal).max() < 0.25


def attempt(encoder_dir: Path, **changed: Any) -> Trained:
    sets = {
        "encoder_set": small_questions(0),
        "head_set": small_questions(1),
        "validation": small_questions(2),
    }
    sets |= changed
    return train(
        **sets,
        encoder=OnnxEncoder(encoder_dir, "built-in"),
        encoder_dir=encoder_dir,
        recipe=Recipe(num_components=16),
    )


def test_unknown_and_missing_labels_are_named(tiny_encoder_dir: Path) -> None:
    questions = small_questions(0)
    astrology = LabelledText("my stars", "astrology", "en", "x")
    for name in ("encoder", "head", "validation"):
        message = rf"{name} set: unknown label\(s\) astrology;.*cardiology.*out_of_scope"
        given = name if name == "validation" else f"{name}_set"
        with pytest.raises(ValueError, match=message):
            attempt(tiny_encoder_dir, **{given: [*questions, astrology]})
    without = [q for q in questions if q.specialty != "oncology"]
    inside = [q for q in questions if q.specialty != OUT_OF_SCOPE]
    for name in ("encoder", "head"):
        with pytest.raises(ValueError, match=f"{name} set: no question for oncology"):
            attempt(tiny_encoder_dir, **{f"{name}_set": without})
        with pytest.raises(ValueError, match=f"{name} set: no out_of_scope question"):
            attempt(tiny_encoder_dir, **{f"{name}_set": inside})


def test_validation_may_lack_labels_or_be_empty(tiny_encoder_dir: Path) -> None:
    without = [q for q in small_questions(2) if q.specialty == "oncology"]
    assert set(attempt(tiny_encoder_dir, validation=without).manifest["validation_recall"]) == {
        "oncology"
    }
    assert attempt(tiny_encoder_dir, validation=[]).manifest["validation_recall"] == {}
