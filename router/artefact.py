"""Load the trained router from its folder: all of it and checked, or refused with the fix.

| file | content |
| --- | --- |
| manifest.json | version, labels, calibration, thresholds, provenance, checksums of the others |
| weights.npz | the n-grams, the projection and the head |
| encoder.onnx or encoder.onnx.gz, tokenizer.json.gz | the encoder, where it is the built-in one |
| features.npz | features of questions, without text, to fit the head again (add_specialty.py) |
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from router.added_labels import AddedLabels
from router.artefact_checks import manifest_problems, shape_problems
from router.encoder import (
    ENCODER,
    PACKED_TOKENIZER,
    TOKENIZER,
    EncoderError,
    OnnxEncoder,
    TextEncoder,
    read_encoder,
)
from router.features import NgramModel, Vocabulary
from router.head import Head, Projection
from router.policy import Thresholds

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights.npz"
FEATURES = "features.npz"
BUILT_IN = "built-in"
LABEL_THRESHOLDS = "label_thresholds"  # of the labels that were added later
CALIBRATION = ("temperature", "scope_scale", "scope_confidence", "scope_offset")


class ArtefactError(ValueError):
    """The router's artefact is missing, damaged or of another version; the text says the fix."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """The checked content of an artefact folder."""

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
            None takes the name in the manifest.
        threads: of the encoder.

    Raises:
        ArtefactError: names the file, what was found, and the fix.
    """
    manifest = read_manifest(directory / MANIFEST)
    try:
        return _assembled(directory, manifest, encoder, threads)
    except ArtefactError:
        raise
    except (LookupError, TypeError, AttributeError, OSError, ValueError) as error:
        raise artefact_error(directory, f"it cannot be read ({error!r})") from None


def _assembled(
    directory: Path, manifest: Mapping[str, Any], encoder: str | None, threads: int
) -> Artefact:
    specialties = tuple(str(name) for name in manifest["specialties"])
    known = tuple(str(name) for name in manifest["ngram_specialties"])
    arrays = {
        name: array if name == "keys" else array.astype(np.float32)  # kept in 16 bits
        for name, array in read_arrays(directory, manifest, WEIGHTS).items()
    }
    ngrams = _ngrams(arrays)
    head = _head(arrays, manifest["calibration"], _added(arrays, specialties, manifest))
    scale = float(manifest["ngram_scale"])
    projection = Projection(arrays["mean"], arrays["components"], scale)
    text_encoder = _encoder(directory, manifest, encoder, threads)
    if wrong := shape_problems(len(specialties), len(known), ngrams, projection, head):
        raise artefact_error(directory / WEIGHTS, "; ".join(wrong))
    if text_encoder.hidden != len(projection.mean):
        raise artefact_error(
            directory,
            f"its head expects vectors of {len(projection.mean)} numbers, and the encoder "
            f"{text_encoder.name} gives {text_encoder.hidden}",
        )
    if wrong := manifest_problems(specialties, manifest):
        raise artefact_error(directory / MANIFEST, "; ".join(wrong))
    return Artefact(
        version=str(manifest["version"]),
        specialties=specialties,
        thresholds=Thresholds(**manifest["thresholds"], by_label=label_thresholds(manifest)),
        ngrams=ngrams,
        projection=projection,
        head=head,
        encoder=text_encoder,
        function_words=_word_sets(manifest["function_words"]),
        generic=_word_sets(manifest["generic"]),
        manifest=manifest,
    )


def read_manifest(file: Path) -> dict[str, Any]:
    """Read the manifest.

    Raises:
        ArtefactError: the file is missing, not JSON, or of another format version.
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise artefact_error(file, "it is missing") from None
    except (OSError, ValueError) as error:
        raise artefact_error(file, f"it is not JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        stated = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise artefact_error(file, f"format_version is {stated!r}, not {FORMAT_VERSION}")
    return manifest


def checked_bytes(directory: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """Return a file's content after comparing it with the manifest's checksum.

    Raises:
        ArtefactError: the file is missing, or its content is another.
    """
    try:
        content = read_encoder(directory) if name == ENCODER else (directory / name).read_bytes()
    except EncoderError as error:
        raise artefact_error(directory, str(error)) from None
    except FileNotFoundError:
        raise artefact_error(directory / name, "it is missing") from None
    found = hashlib.sha256(content).hexdigest()
    if found != manifest["files"][name]["sha256"]:
        raise artefact_error(directory / name, f"its sha256 is {found}, not the manifest's")
    return content


def read_arrays(
    directory: Path, manifest: Mapping[str, Any], name: str
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an .npz file by name.

    Raises:
        ArtefactError: the file is missing, differs from its checksum, or holds NaN or infinity.
    """
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
        f"router artefact: {path}: {what}. Fix: restore it (`git checkout -- router/model`), or "
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
        packed = PACKED_TOKENIZER in manifest["files"]  # not in artefacts of before
        tokenizer = PACKED_TOKENIZER if packed else TOKENIZER
        checked_bytes(directory, manifest, tokenizer)
        content = checked_bytes(directory, manifest, ENCODER)
        digest = manifest["files"][ENCODER]["sha256"]
        try:
            named = f"{BUILT_IN}:{digest[:12]}"
            return OnnxEncoder(
                directory,
                named,
                threads=threads,
                tokenizer=directory / tokenizer,
                encoder=content,
            )
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
    scope_bias, french_bias = arrays["ngram_biases"].tolist()
    return NgramModel(
        vocabulary=Vocabulary(arrays["keys"], arrays["idf"]),
        specialty=arrays["ngram_specialty"],
        specialty_bias=arrays["ngram_specialty_bias"],
        scope=arrays["ngram_scope"],
        scope_bias=scope_bias,
        french=arrays["ngram_french"],
        french_bias=french_bias,
    )


def label_thresholds(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return the thresholds of the labels that were added later, by label."""
    return {str(name): float(value) for name, value in manifest.get(LABEL_THRESHOLDS, {}).items()}


def _added(
    arrays: Mapping[str, npt.NDArray[Any]], specialties: Sequence[str], manifest: Mapping[str, Any]
) -> AddedLabels | None:
    by_label = label_thresholds(manifest)
    if not by_label:
        return None
    return AddedLabels(
        columns=tuple(i for i, name in enumerate(specialties) if name in by_label),
        thresholds=tuple(by_label[name] for name in specialties if name in by_label),
        centre=arrays["added_centre"],
        spread=arrays["added_spread"],
    )


def _head(
    arrays: Mapping[str, npt.NDArray[Any]],
    calibration: Mapping[str, float],
    added: AddedLabels | None,
) -> Head:
    return Head(
        specialty=arrays["specialty"],
        specialty_bias=arrays["specialty_bias"],
        scope=arrays["scope"],
        scope_bias=float(arrays["scope_bias"][0]),
        added=added,
        **{name: float(calibration[name]) for name in CALIBRATION},
    )


def _word_sets(lists: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    return {code: frozenset(words) for code, words in lists.items()}
