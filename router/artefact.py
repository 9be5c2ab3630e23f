"""The trained router on disk: a folder, read whole and checked, or refused with the mend.

| file | content |
| --- | --- |
| manifest.json | version, labels, calibration, thresholds, provenance, checksums of the others |
| weights.npz | the n-grams, the projection and the head (no pickle) |
| encoder.onnx, tokenizer.json | the encoder, where it is the built-in one |
| features.npz | text-free features of questions, to fit the head anew (scripts/add_specialty.py) |
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from router.encoder import ENCODER, TOKENIZER, EncoderError, OnnxEncoder, TextEncoder
from router.features import NgramModel, Vocabulary
from router.head import Head, Projection
from router.policy import Thresholds

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights.npz"
FEATURES = "features.npz"
BUILT_IN = "built-in"
CALIBRATION = ("temperature", "scope_scale", "scope_confidence", "scope_offset")


class ArtefactError(ValueError):
    """The router's artefact is missing, damaged or of another version; says how to mend it."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """Everything that an artefact folder holds, checked."""

    version: str
    specialties: tuple[str, ...]
    thresholds: Thresholds
    ngrams: NgramModel
    projection: Projection
    head: Head
    encoder: TextEncoder
    function_words: dict[str, frozenset[str]]
    generic: dict[str, frozenset[str]]
    manifest: Mapping[str, Any]


def load_artefact(directory: Path, *, encoder: str | None = None, threads: int = 1) -> Artefact:
    """Read and check an artefact folder.

    Args:
        encoder: where to find an encoder that is not built in (a folder or a Hugging Face id);
            None: the name in the manifest.
        threads: of the encoder.

    Raises:
        ArtefactError: naming the file, what was found, and the mend.
    """
    manifest = read_manifest(directory / MANIFEST)
    try:
        specialties = tuple(str(name) for name in manifest["specialties"])
        known = tuple(str(name) for name in manifest["ngram_specialties"])
        arrays = read_arrays(directory, manifest, WEIGHTS)
        ngrams = _ngrams(arrays)
        projection = Projection(
            arrays["mean"].astype(np.float32),
            arrays["components"].astype(np.float32),
            float(manifest["ngram_scale"]),
        )
        head = _head(arrays, manifest["calibration"])
        text_encoder = _encoder(directory, manifest, encoder, threads)
        _check_shapes(directory / WEIGHTS, len(specialties), len(known), ngrams, projection, head)
        _check_encoder(directory, text_encoder, projection)
        _check_manifest(directory / MANIFEST, specialties, manifest)
        return Artefact(
            version=str(manifest["version"]),
            specialties=specialties,
            thresholds=Thresholds(**manifest["thresholds"]),
            ngrams=ngrams,
            projection=projection,
            head=head,
            encoder=text_encoder,
            function_words=_word_sets(manifest["function_words"]),
            generic=_word_sets(manifest["generic"]),
            manifest=manifest,
        )
    except (LookupError, TypeError, AttributeError, OSError) as error:
        raise artefact_error(directory, f"it cannot be read ({error!r})") from None
    except ValueError as error:
        if isinstance(error, ArtefactError):
            raise
        raise artefact_error(directory, f"it cannot be read ({error!r})") from None


def read_manifest(file: Path) -> dict[str, Any]:
    """
    Raises:
        ArtefactError: missing, no JSON, or another format.
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise artefact_error(file, "it is missing") from None
    except (OSError, ValueError) as error:
        raise artefact_error(file, f"it is no JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        stated = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise artefact_error(file, f"format_version is {stated!r}, not {FORMAT_VERSION}")
    return manifest


def checked_bytes(directory: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """A file's content, which has the manifest's checksum: what is checked is what is loaded.

    Raises:
        ArtefactError: missing or another content.
    """
    try:
        content = (directory / name).read_bytes()
    except FileNotFoundError:
        raise artefact_error(directory / name, "it is missing") from None
    found = hashlib.sha256(content).hexdigest()
    if found != manifest["files"][name]["sha256"]:
        raise artefact_error(directory / name, f"its sha256 is {found}, not the manifest's")
    return content


def read_arrays(
    directory: Path, manifest: Mapping[str, Any], name: str
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file, checked like `checked_bytes`."""
    content = checked_bytes(directory, manifest, name)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise artefact_error(directory / name, f"it cannot be read ({error!r})") from None
    if not all(np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"):
        raise artefact_error(directory / name, "it holds NaN or infinity")
    return arrays


def artefact_error(path: Path, what: str) -> ArtefactError:
    return ArtefactError(
        f"router artefact: {path}: {what}. Mend: restore it (`git checkout -- router/model`), or "
        "train it again (`python -m scripts.train_router --help`)"
    )


def _encoder(
    directory: Path, manifest: Mapping[str, Any], given: str | None, threads: int
) -> TextEncoder:
    name = str(manifest["encoder"]["name"])
    if name == BUILT_IN:
        if given is not None:
            raise artefact_error(
                directory,
                f"its head was fitted on its own encoder, and router.encoder is {given!r}: leave "
                "router.encoder out, or name an artefact that was trained on that encoder "
                f"(`python -m scripts.train_router --encoder {given} --out FOLDER`, then "
                "router.artefact: FOLDER)",
            )
        for file in (ENCODER, TOKENIZER):
            checked_bytes(directory, manifest, file)
        digest = manifest["files"][ENCODER]["sha256"]
        try:
            return OnnxEncoder(directory, f"{BUILT_IN}:{digest[:12]}", threads=threads)
        except EncoderError as error:
            raise artefact_error(directory, str(error)) from None
    from router.transformers_encoder import TransformersEncoder

    where = given or name
    if given is not None and given != name and Path(given).name != name.split("/")[-1]:
        raise artefact_error(
            directory,
            f"its head was fitted on the encoder {name!r}, and router.encoder is {given!r}",
        )
    return TransformersEncoder(where, threads=threads)


def _ngrams(arrays: Mapping[str, npt.NDArray[Any]]) -> NgramModel:
    return NgramModel(
        vocabulary=Vocabulary(arrays["keys"], arrays["idf"].astype(np.float32)),
        specialty=arrays["ngram_specialty"].astype(np.float32),
        specialty_bias=arrays["ngram_specialty_bias"].astype(np.float32),
        scope=arrays["ngram_scope"].astype(np.float32),
        scope_bias=float(arrays["ngram_biases"][0]),
        french=arrays["ngram_french"].astype(np.float32),
        french_bias=float(arrays["ngram_biases"][1]),
    )


def _head(arrays: Mapping[str, npt.NDArray[Any]], calibration: Mapping[str, float]) -> Head:
    return Head(
        specialty=arrays["specialty"].astype(np.float32),
        specialty_bias=arrays["specialty_bias"].astype(np.float32),
        scope=arrays["scope"].astype(np.float32),
        scope_bias=float(arrays["scope_bias"][0]),
        **{name: float(calibration[name]) for name in CALIBRATION},
    )


def _check_shapes(
    file: Path,
    num_labels: int,
    num_known: int,
    ngrams: NgramModel,
    projection: Projection,
    head: Head,
) -> None:
    num_ngrams = len(ngrams.vocabulary.keys)
    width = projection.components.shape[-1] + num_known + 1
    shapes = {
        "idf": (ngrams.vocabulary.idf, (num_ngrams,)),
        "ngram_specialty": (ngrams.specialty, (num_ngrams, num_known)),
        "ngram_specialty_bias": (ngrams.specialty_bias, (num_known,)),
        "ngram_scope": (ngrams.scope, (num_ngrams,)),
        "ngram_french": (ngrams.french, (num_ngrams,)),
        "components": (projection.components, (len(projection.mean), width - num_known - 1)),
        "specialty": (head.specialty, (width, num_labels)),
        "specialty_bias": (head.specialty_bias, (num_labels,)),
        "scope": (head.scope, (width,)),
    }
    wrong = [
        f"{name} {array.shape}, expected {want}"
        for name, (array, want) in shapes.items()
        if array.shape != want
    ]
    if wrong:
        raise artefact_error(file, f"shapes do not fit the labels: {'; '.join(wrong)}")
    if np.any(np.diff(ngrams.vocabulary.keys.astype(np.int64)) <= 0):
        raise artefact_error(file, "its keys do not ascend")


def _check_encoder(directory: Path, encoder: TextEncoder, projection: Projection) -> None:
    if encoder.hidden != len(projection.mean):
        raise artefact_error(
            directory,
            f"its head expects vectors of {len(projection.mean)} numbers, and the encoder "
            f"{encoder.name} gives {encoder.hidden}",
        )


def _check_manifest(file: Path, specialties: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """The numbers and the label order that the weights' checksum does not cover.

    Training sorts the labels, so another order is a column under a wrong name.
    """
    calibration, thresholds = manifest["calibration"], manifest["thresholds"]
    numbers = {**calibration, **thresholds, "ngram_scale": manifest["ngram_scale"]}
    wrong = [
        f"{name} is {value!r}, not a finite number"
        for name, value in numbers.items()
        if not isinstance(value, int | float) or not math.isfinite(value)
    ]
    if not wrong:
        if calibration["temperature"] <= 0:
            wrong.append(f"temperature is {calibration['temperature']}, not above 0")
        wrong += [
            f"{name} is {value}, not from 0 to 1"
            for name, value in thresholds.items()
            if not 0 <= value <= 1
        ]
    if list(specialties) != sorted(set(specialties)):
        wrong.append("specialties are not distinct and in alphabetical order")
    if wrong:
        raise artefact_error(file, "; ".join(wrong))


def _word_sets(lists: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    return {code: frozenset(words) for code, words in lists.items()}
