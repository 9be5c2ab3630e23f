"""A damaged artefact is refused with the file's name and the fix, never half loaded."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artefact import (
    FEATURES,
    MANIFEST,
    WEIGHTS,
    ArtefactError,
    load_artefact,
    read_arrays,
    read_manifest,
)
from router.encoder import ENCODER, PACKED_ENCODER, PACKED_TOKENIZER

Damage = Callable[[Path], None]


def edit(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        change(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return damage


def replace(name: str, content: bytes) -> Damage:
    """With a manifest that vouches for it, so that the checksum is not what refuses."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        edit(lambda m: m["files"].update({name: {"sha256": digest}}))(folder)

    return damage


def change_array(name: str, change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        with np.load(folder / WEIGHTS, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        arrays[name] = change(arrays[name])
        np.savez(folder / WEIGHTS, **arrays)
        replace(WEIGHTS, (folder / WEIGHTS).read_bytes())(folder)

    return damage


def flip_a_byte(name: str) -> Damage:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def truncate_manifest(folder: Path) -> None:
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text[:500], encoding="utf-8")


def list_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]", encoding="utf-8")


def other_width(folder: Path) -> None:
    """An encoder of another hidden size than the head was fitted on."""
    from scripts.router.encoder_export import export
    from scripts.router.encoder_model import Encoder

    export(Encoder(120, 2, hidden=128, num_heads=2, num_layers=1).eval(), folder / ENCODER)
    replace(ENCODER, (folder / ENCODER).read_bytes())(folder)


def with_nan(array: Any) -> Any:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


def drop_last(array: Any) -> Any:
    return array[:-1]


def pack_and(damage: Callable[[bytes], bytes]) -> Damage:
    def packed(folder: Path) -> None:
        content = (folder / ENCODER).read_bytes()
        (folder / ENCODER).unlink()
        (folder / PACKED_ENCODER).write_bytes(damage(gzip.compress(content)))

    return packed


DAMAGES: dict[str, tuple[Damage, str]] = {
    **{f"{name} flipped": (flip_a_byte(name), "its sha256 is") for name in (WEIGHTS, ENCODER)},
    "tokenizer flipped": (flip_a_byte(PACKED_TOKENIZER), r"tokenizer\.json\.gz: its sha256 is"),
    "no weights": (remove(WEIGHTS), r"weights\.npz: it is missing"),
    "no encoder": (remove(ENCODER), r"encoder\.onnx: it is missing"),
    "packed, half": (pack_and(lambda c: c[:-9]), r"encoder\.onnx\.gz: it cannot be unpacked"),
    "packed, no archive": (pack_and(lambda c: b"no"), r"encoder\.onnx\.gz: it cannot be unpacked"),
    "packed, another": (pack_and(lambda c: gzip.compress(b"other")), "its sha256 is"),
    "no tokenizer": (remove(PACKED_TOKENIZER), r"tokenizer\.json\.gz: it is missing"),
    "no manifest": (remove(MANIFEST), r"manifest\.json: it is missing"),
    "no folder": (shutil.rmtree, r"manifest\.json: it is missing"),
    "half a manifest": (truncate_manifest, r"manifest\.json: it is not JSON"),
    "a list": (list_manifest, "format_version is None"),
    "old format": (edit(lambda m: m.update(format_version=1)), "format_version is 1, not 2"),
    "a label less": (edit(lambda m: m["specialties"].pop()), r"weights\.npz: shapes do not fit"),
    "an n-gram label less": (edit(lambda m: m["ngram_specialties"].pop()), "shapes do not fit"),
    "order": (edit(lambda m: m["specialties"].reverse()), "in alphabetical order"),
    "twice": (edit(lambda m: m["specialties"].__setitem__(1, "cardiology")), "not distinct"),
    "threshold 7": (edit(lambda m: m["thresholds"].update(min_confidence=7)), "is 7, not from 0"),
    "threshold x": (edit(lambda m: m["thresholds"].update(min_in_scope="x")), "'x', not a finite"),
    "margin": (edit(lambda m: m["thresholds"].update(min_margin=-1)), "min_margin is -1, not"),
    "temperature": (edit(lambda m: m["calibration"].update(temperature=0)), "is 0, not above"),
    "scale": (edit(lambda m: m["calibration"].update(scope_scale=float("nan"))), "nan, not a fin"),
    "ngram_scale": (edit(lambda m: m.update(ngram_scale=float("inf"))), "ngram_scale is inf, not"),
    "no thresholds": (edit(lambda m: m.pop("thresholds")), "cannot be read"),
    "no version": (edit(lambda m: m.pop("version")), "cannot be read"),
    "no files": (edit(lambda m: m.pop("files")), "cannot be read"),
    "no encoder's name": (edit(lambda m: m.pop("encoder")), "cannot be read"),
    "words": (edit(lambda m: m.update(function_words=[])), "cannot be read"),
    "empty weights": (replace(WEIGHTS, b""), r"weights\.npz: it cannot be read"),
    "half an archive": (replace(WEIGHTS, b"PK\x03\x04 no"), r"weights\.npz: it cannot be read"),
    "no archive": (replace(WEIGHTS, b"no archive at all"), r"weights\.npz: it cannot be read"),
    "no network": (replace(ENCODER, b"no network"), r"encoder\.onnx: it is not an encoder"),
    "empty network": (replace(ENCODER, b""), r"encoder\.onnx: it is not an encoder"),
    "no JSON": (replace(PACKED_TOKENIZER, b"\xff"), r"tokenizer\.json\.gz: it is not a tokenizer"),
    "empty JSON": (replace(PACKED_TOKENIZER, b"{}"), r"tokenizer\.json\.gz: it is not a tokenizer"),
    "hidden size": (other_width, r"expects vectors of 64 numbers, and the encoder \S+ gives 128"),
    **{
        f"NaN in {name}": (change_array(name, with_nan), r"weights\.npz: it holds NaN")
        for name in ("specialty", "scope", "mean", "components", "ngram_biases", "scope_bias")
    },
    **{
        f"{name} too short": (change_array(name, drop_last), "shapes do not fit")
        for name in ("scope", "specialty_bias", "idf", "ngram_specialty", "ngram_french")
    },
    "a bias less": (change_array("ngram_biases", drop_last), "cannot be read"),
    "keys": (change_array("keys", lambda array: array[::-1]), "keys do not ascend"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused(router_copy: Path, damage: Damage, message: str) -> None:
    damage(router_copy)
    with pytest.raises(ArtefactError, match=message) as caught:
        load_artefact(router_copy)
    assert str(router_copy) in str(caught.value)
    assert "git checkout -- router/model" in str(caught.value)
    assert "scripts.train_router" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte(FEATURES), "its sha256 is"),
        (remove(FEATURES), "it is missing"),
        (replace(FEATURES, b"no archive at all"), "it cannot be read"),
        (replace(FEATURES, b""), "it cannot be read"),
    ],
)
def test_damaged_features_serve_on_and_are_refused_where_they_are_read(
    router_copy: Path, damage: Damage, message: str
) -> None:
    damage(router_copy)
    load_artefact(router_copy)
    with pytest.raises(ArtefactError, match=rf"features\.npz: {message}.*Fix: "):
        read_arrays(router_copy, read_manifest(router_copy / MANIFEST), FEATURES)


def test_another_encoder_for_a_built_in_one_is_refused(tiny_router_dir: Path) -> None:
    with pytest.raises(ArtefactError, match="leave router.encoder out, or name") as caught:
        load_artefact(tiny_router_dir, encoder="ORG/NAME")
    assert "scripts.train_router --encoder ORG/NAME" in str(caught.value)


def test_another_encoder_than_the_named_one_is_refused(router_copy: Path) -> None:
    edit(lambda m: m.update(encoder={"name": "ORG/NAME"}))(router_copy)
    with pytest.raises(ArtefactError, match="'ORG/NAME', and router.encoder is 'ORG/OTHER'"):
        load_artefact(router_copy, encoder="ORG/OTHER")


def test_the_encoder_carries_its_digest(tiny_router_dir: Path) -> None:
    """Another encoder under the same name is another space."""
    digest = hashlib.sha256((tiny_router_dir / ENCODER).read_bytes()).hexdigest()
    assert load_artefact(tiny_router_dir).encoder.name == f"built-in:{digest[:12]}"
