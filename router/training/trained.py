"""A trained artefact in memory, and how it is written to its folder."""

import gzip
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.artefact import CALIBRATION, FEATURES, MANIFEST, WEIGHTS
from router.encoder import (
    ENCODER,
    PACKED_ENCODER,
    PACKED_TOKENIZER,
    TOKENIZER,
    encoder_file,
    read_encoder,
    tokenizer_file,
)
from router.features import NgramModel
from router.head import Head, Projection
from router.training.head import FittedHead


@dataclass(frozen=True, slots=True)
class Trained:
    """An artefact in memory.

    Attributes:
        weights, features: the arrays of the two .npz files by name.
        manifest: without version and checksums.
        encoder_dir: folder of the built-in encoder; None for an encoder that is named instead.
    """

    weights: Mapping[str, npt.NDArray[Any]]
    features: Mapping[str, npt.NDArray[Any]]
    manifest: dict[str, Any]
    encoder_dir: Path | None


def save(trained: Trained, directory: Path, *, date: str, provenance: Mapping[str, Any]) -> str:
    """Write the artefact; returns its version. The same arrays give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = {WEIGHTS: npz(trained.weights), FEATURES: npz(trained.features)}
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    if trained.encoder_dir is not None:
        if trained.encoder_dir.resolve() != directory.resolve():
            for name in (ENCODER, PACKED_ENCODER):
                (directory / name).unlink(missing_ok=True)  # of a training before
            found = encoder_file(trained.encoder_dir)
            shutil.copyfile(found, directory / found.name)
        contents[ENCODER] = read_encoder(directory)  # the manifest tells of it unpacked
        tokenizer = tokenizer_file(trained.encoder_dir)
        content = tokenizer.read_bytes()
        if tokenizer.name != PACKED_TOKENIZER:
            content = gzip.compress(content, mtime=0)
        (directory / TOKENIZER).unlink(missing_ok=True)
        (directory / PACKED_TOKENIZER).write_bytes(content)
        contents[PACKED_TOKENIZER] = content
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


def weight_arrays(
    ngrams: NgramModel, projection: Projection, head: Head
) -> dict[str, npt.NDArray[Any]]:
    """Return all arrays of weights.npz."""
    return {
        "keys": ngrams.vocabulary.keys,
        "idf": ngrams.vocabulary.idf.astype(np.float16),
        "ngram_specialty": ngrams.specialty.astype(np.float16),
        "ngram_specialty_bias": ngrams.specialty_bias,
        "ngram_scope": ngrams.scope.astype(np.float16),
        "ngram_french": ngrams.french.astype(np.float16),
        "ngram_biases": np.array([ngrams.scope_bias, ngrams.french_bias], dtype=np.float32),
        "mean": projection.mean,
        "components": projection.components.astype(np.float16),
        **head_arrays(head),
    }


def head_arrays(head: Head) -> dict[str, npt.NDArray[Any]]:
    added = {}
    if head.added is not None:
        added = {"added_centre": head.added.centre, "added_spread": head.added.spread}
    return {
        **added,
        "specialty": head.specialty,
        "specialty_bias": head.specialty_bias,
        "scope": head.scope,
        "scope_bias": np.array([head.scope_bias], dtype=np.float32),
    }


def rounded(recalls: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in recalls.items()}


def head_entries(fitted: FittedHead) -> dict[str, Any]:
    """Return the entries of the manifest that a head decides."""
    return {
        "calibration": {name: getattr(fitted.head, name) for name in CALIBRATION},
        "thresholds": fitted.thresholds,
        "cross_validated": fitted.report,
    }


def npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return a compressed .npz whose bytes depend on the arrays alone (numpy adds the time)."""
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
