"""A damaged artefact is refused with the file's name and the mend, never half loaded."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.classifier import MANIFEST, WEIGHTS, ArtefactError, Classifier

MODEL = Path(__file__).resolve().parents[2] / "router" / "model"
Damage = Callable[[Path], None]


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A sound copy, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    Classifier.load(copy)
    return copy


def edit(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        change(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return damage


def replace_weights(content: bytes) -> Damage:
    """With a manifest that vouches for them, so that the checksum is not what refuses."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        edit(lambda m: m["files"].update({WEIGHTS: {"sha256": digest}}))(folder)

    return damage


def change_array(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        with np.load(folder / WEIGHTS, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        arrays[name] = change(arrays[name])
        np.savez(folder / WEIGHTS, **arrays)
        replace_weights((folder / WEIGHTS).read_bytes())(folder)

    return damage


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def truncate_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[:500], encoding="utf-8")


def with_nan(array: Any) -> Any:
    changed = array.copy()
    changed.flat[3] = np.nan
    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, r"weights\.npz: its sha256 is"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"weights\.npz: it is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), r"manifest\.json: it is missing"),
        (shutil.rmtree, r"manifest\.json: it is missing"),
        (truncate_manifest, r"manifest\.json: it is no JSON"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "format_version is None, not 1"),
        (edit(lambda m: m.update(format_version=2)), "format_version is 2, not 1"),
        (edit(lambda m: m["specialties"].pop()), r"weights\.npz: shapes do not fit the labels"),
        (edit(lambda m: m["specialties"].reverse()), "not distinct and in alphabetical order"),
        (edit(lambda m: m["specialties"].__setitem__(1, "cardiology")), "not distinct"),
        (edit(lambda m: m["thresholds"].update(min_confidence=7)), "is 7, not from 0 to 1"),
        (edit(lambda m: m["thresholds"].update(min_in_scope="x")), "'x', not a finite number"),
        (edit(lambda m: m["calibration"].update(temperature=0)), "temperature is 0, not above"),
        (edit(lambda m: m["calibration"].update(scope_scale=float("nan"))), "nan, not a finite"),
        (edit(lambda m: m.pop("thresholds")), "cannot be read"),
        (edit(lambda m: m.update(function_words=[])), "cannot be read"),
        (replace_weights(b""), "cannot be read"),
        (replace_weights(b"PK\x03\x04 no archive"), "cannot be read"),
        (replace_weights(b"no archive at all"), "cannot be read"),
        (change_array("specialty", with_nan), "NaN or infinity"),
        (change_array("scope", lambda array: array[:-1]), "shapes do not fit"),
        (change_array("keys", lambda array: array[::-1]), "keys do not ascend"),
    ],
)
def test_damage_is_refused(artefact: Path, damage: Damage, message: str) -> None:
    damage(artefact)
    with pytest.raises(ArtefactError, match=message) as caught:
        Classifier.load(artefact)
    assert str(artefact) in str(caught.value)
    assert "git checkout -- router/model" in str(caught.value)
    assert "scripts.train_router" in str(caught.value)
