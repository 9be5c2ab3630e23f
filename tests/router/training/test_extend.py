"""A specialty is added from its questions alone, and no old one pays for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from router.artefact import FEATURES, MANIFEST, WEIGHTS, ArtefactError, read_arrays, read_manifest
from router.classifier import Classifier
from router.policy import Reason, decide
from router.training.added import CANDIDATES
from router.training.extend import (
    MAX_LOSS,
    MIN_QUESTIONS,
    MIN_RECALL,
    Extension,
    extend,
    read_questions,
)
from router.training.feature_set import restored
from router.training.trained import save
from tests.router.added_questions import added_questions
from tests.router.small_questions import LABELS, OUT_OF_SCOPE, small_questions

TEETH = added_questions("dentistry")


@pytest.fixture(scope="module")
def extension(tiny_router_dir: Path) -> Extension:
    return extend(tiny_router_dir, "dentistry", TEETH[::2])


@pytest.fixture(scope="module")
def extended(extension: Extension, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    save(extension.trained, folder, date="2026-01-03", provenance={})
    return folder


def specialties(artefact: Path, questions: list[str]) -> list[str | None]:
    classifier = Classifier.load(artefact)
    return [
        decide(
            classified,
            thresholds=classifier.thresholds,
            adapters={label: label for label in classifier.specialties},
            base_languages=("en", "fr"),
        ).specialty
        for classified in classifier.classify([[q] for q in questions])
    ]


def test_the_new_label_is_routed_to(tiny_router_dir: Path, extended: Path) -> None:
    unseen = TEETH[1::2]
    assert "dentistry" not in specialties(tiny_router_dir, unseen)
    found = specialties(extended, unseen)
    assert found.count("dentistry") / len(found) > 0.9


def test_the_old_labels_lose_nothing(
    extension: Extension, tiny_router_dir: Path, extended: Path
) -> None:
    before, after = extension.old_before.recalls, extension.old_after.recalls
    assert set(before) == set(after) == set(LABELS)
    assert extension.losses == {}
    for label in LABELS:
        assert after[label] >= before[label] - MAX_LOSS
    inside = [q for q in small_questions(3) if q.specialty != OUT_OF_SCOPE]
    texts = [q.text for q in inside]
    for artefact in (tiny_router_dir, extended):
        hits = np.equal(specialties(artefact, texts), [q.specialty for q in inside])
        assert hits.mean() > 0.95


def test_what_is_no_question_for_a_clinic_stays_out(extended: Path) -> None:
    outside = [q.text for q in small_questions(3) if q.specialty == OUT_OF_SCOPE]
    found = specialties(extended, outside)
    assert found.count(None) / len(found) > 0.9


def test_only_the_head_changes(tiny_router_dir: Path, extended: Path) -> None:
    before, after = read_manifest(tiny_router_dir / MANIFEST), read_manifest(extended / MANIFEST)
    old = read_arrays(tiny_router_dir, before, WEIGHTS)
    new = read_arrays(extended, after, WEIGHTS)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"specialty", "specialty_bias"}
    assert set(new) - set(old) == {"added_centre", "added_spread"}
    column = after["specialties"].index("dentistry")
    for name in changed:
        assert np.array_equal(np.delete(new[name], column, axis=-1), old[name]), "others are kept"
    for name in ("calibration", "thresholds", "cross_validated"):
        assert after[name] == before[name]
    assert set(after["label_thresholds"]) == {"dentistry"}
    for name in ("encoder.onnx", "tokenizer.json.gz"):
        assert (tiny_router_dir / name).read_bytes() == (extended / name).read_bytes()
    assert after["ngram_specialties"] == before["ngram_specialties"]
    assert after["recipe"] == before["recipe"]
    assert after["added"] == {"dentistry": 30}
    assert after["validation_recall"]["dentistry"] > 0.7


def test_the_artefact_holds_none_of_the_words(extended: Path) -> None:
    """The encoder's files are those of before; the others hold numbers, and a manifest."""
    text = (extended / MANIFEST).read_text(encoding="utf-8")
    assert not [word for word in ("molar", "gencive", "plombage", "braces") if word in text]
    for name in (WEIGHTS, FEATURES):
        arrays = read_arrays(extended, read_manifest(extended / MANIFEST), name)
        assert {array.dtype.kind for array in arrays.values()} <= set("fiub")


@pytest.mark.slow
def test_in_two_steps(extended: Path, tmp_path: Path) -> None:
    """What was added first may get more questions, and a second label may follow."""
    again = extend(extended, "dentistry", TEETH[1::2])
    assert again.losses == {}
    save(again.trained, tmp_path, date="2026-01-04", provenance={})
    second = extend(tmp_path, "otology", added_questions("otology"))
    assert second.losses == {}
    assert set(second.old_before.recalls) == {*LABELS, "dentistry"}
    assert second.recall > 0.6
    assert second.trained.manifest["added"] == {"dentistry": 30, "otology": 60}
    assert second.trained.manifest["specialties"] == sorted((*LABELS, "dentistry", "otology"))


def test_in_one_step_or_two_a_new_label_weighs_as_much_as_a_median_one(
    extended: Path, tiny_router_dir: Path
) -> None:
    def weights(extension: Extension) -> dict[str, float]:
        examples = restored(extension.trained.features, extension.trained.manifest["specialties"])
        used = examples.pick(~examples.is_validation)
        return {str(n): float(used.weights[used.labels == n].sum()) for n in set(used.labels)}

    for extension in (
        extend(tiny_router_dir, "dentistry", TEETH),
        extend(extended, "dentistry", TEETH[1::2]),
    ):
        found = weights(extension)
        new = found.pop("dentistry")
        assert new == pytest.approx(float(np.median(list(found.values()))), rel=0.02)


def test_stealing_an_old_specialtys_words_shows_as_a_loss(tiny_router_dir: Path) -> None:
    questions = [q for seed in range(4, 12) for q in small_questions(seed)]
    stolen = [q.text for q in questions if q.specialty == "nephrology_urology"]
    extension = extend(tiny_router_dir, "plumbing", stolen)
    assert set(extension.losses) == {"nephrology_urology"}
    assert extension.losses["nephrology_urology"] > MAX_LOSS
    assert extension.recall >= MIN_RECALL
    assert extension.threshold > CANDIDATES[0], "no threshold is harmless: the least harm, not most"


def test_each_question_is_scored_without_its_fold(tiny_router_dir: Path) -> None:
    """Whatever their hashes, there are ten folds of equal size, and none is only validation."""
    extension = extend(tiny_router_dir, "dentistry", TEETH[:MIN_QUESTIONS])
    labels = extension.trained.manifest["specialties"]
    examples = restored(extension.trained.features, labels)
    ours = examples.labels == "dentistry"
    assert not examples.is_validation[ours].any()
    assert np.bincount(examples.folds[ours]).tolist() == [3] * 10


def test_a_question_that_the_new_label_does_not_claim_is_scored_as_before(
    tiny_router_dir: Path, extended: Path
) -> None:
    before, after = Classifier.load(tiny_router_dir), Classifier.load(extended)
    texts = [[q.text] for q in small_questions(3)]
    pairs = list(zip(before.classify(texts), after.classify(texts), strict=True))
    kept = [(b.last, a.last) for b, a in pairs if a.last.probabilities["dentistry"] == 0.0]
    assert len(kept) > 0.95 * len(texts)
    for was, now in kept:
        assert now.in_scope == pytest.approx(was.in_scope, abs=1e-4)
        for label in LABELS:
            assert now.probabilities[label] == pytest.approx(was.probabilities[label], abs=1e-4)


def test_questions_of_all_specialties_are_not_one(tiny_router_dir: Path) -> None:
    """The label gets few of them without harm, and more are asked for."""
    mixed = [q.text for q in small_questions(7) if q.specialty != OUT_OF_SCOPE][::6]
    extension = extend(tiny_router_dir, "anything", mixed)
    assert extension.recall < MIN_RECALL
    assert extension.num_needed > 0


@pytest.mark.parametrize(
    ("label", "questions", "message"),
    [
        ("dentistry", TEETH[:29], "label 'dentistry': 29 different questions; at least 30"),
        ("dentistry", TEETH[:29] * 2 + ["", "  "], "29 different questions"),
        ("dentistry", [], "0 different questions"),
        ("cardiology", TEETH, r"label 'cardiology': .* has it already: .*train_router"),
        ("out_of_scope", TEETH, "label 'out_of_scope': it stands for"),
    ],
)
def test_refusals(tiny_router_dir: Path, label: str, questions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extend(tiny_router_dir, label, questions)


def test_an_artefact_without_features_is_refused(router_copy: Path) -> None:
    manifest = json.loads((router_copy / MANIFEST).read_text(encoding="utf-8"))
    del manifest["files"][FEATURES]
    (router_copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"features\.npz: .*no specialty can be added"):
        extend(router_copy, "dentistry", TEETH)


def test_questions_are_read_from_lines_and_from_json_lines(tmp_path: Path) -> None:
    lines = tmp_path / "a.txt"
    lines.write_text("\ufeffmal de dent\n\n  gencive  \n", encoding="utf-8")
    assert read_questions(lines) == ["mal de dent", "  gencive  "]
    rows = tmp_path / "b.jsonl"
    rows.write_text('{"input": "mal de dent", "lang": "fr"}\n\n{"input": "gum"}\n')
    assert read_questions(rows) == ["mal de dent", "gum"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", "a.csv: expected a .txt file"),
        ("a.txt", b"g\xeancive", "a.txt: not UTF-8"),
        ("a.jsonl", b'{"input": "g\xea"}', "a.jsonl: not UTF-8"),
        ("a.jsonl", b'{"input": "x"}\n{', "a.jsonl, line 2: no JSON object with 'input'"),
        ("a.jsonl", b'["x"]', "a.jsonl, line 1: no JSON object with 'input'"),
        ("a.jsonl", b'{"text": "x"}', "a.jsonl, line 1: no JSON object with 'input'"),
        ("a.jsonl", b'{"input": 7}', "a.jsonl, line 1: 'input' must be a text"),
        ("a.jsonl", b'{"input": " "}', "a.jsonl, line 1: 'input' must be a text"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / name)


@pytest.mark.slow
def test_no_data_is_needed(tiny_router_dir: Path, tmp_path: Path) -> None:
    """The artefact alone, copied elsewhere: no other file is read."""
    alone = tmp_path / "alone"
    shutil.copytree(tiny_router_dir, alone)
    found = extend(alone, "dentistry", TEETH)
    again = extend(tiny_router_dir, "dentistry", TEETH)
    assert np.array_equal(found.trained.features["codes"], again.trained.features["codes"])
    assert found.old_after.recalls == again.old_after.recalls
    assert found.recall == again.recall


def test_a_follow_up_has_no_specialty_of_its_own(extended: Path) -> None:
    classifier = Classifier.load(extended)
    [classified] = classifier.classify([["tell me about tooth gums please", "and the treatment?"]])
    found = decide(
        classified,
        thresholds=classifier.thresholds,
        adapters={},
        base_languages=("en",),
    )
    assert (found.specialty, found.reason) == ("dentistry", Reason.NO_ADAPTER)
