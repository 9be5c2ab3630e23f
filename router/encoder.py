"""Encode texts as token states, and the weight of each token in the pooled vector.

The shipped encoder is a four-layer student of multilingual-e5-small with 4-bit weights, run by ONNX
Runtime on the CPU (docs/router.md). Any Hugging Face encoder can be used instead
(transformers_encoder.py). Shapes: T tokens of one text, H hidden.
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

ENCODER = "encoder.onnx"
PACKED_ENCODER = "encoder.onnx.gz"
TOKENIZER = "tokenizer.json"
PACKED_TOKENIZER = "tokenizer.json.gz"
WINDOW = 254  # tokens of one window, without its start and end
MAX_WINDOWS = 2  # of one text: a longer one is read in windows spread evenly over it
BATCH_TOKENS = 4096  # padded, in one run: bounds the memory
BOS, PAD, EOS = 0, 1, 2
Floats = npt.NDArray[np.float32]
Spans = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded text.

    Attributes:
        states: (T, H), of all its windows, in order.
        weights: (T,), not negative, sum 1.
        spans: (T, 2), start and end of the characters that each token covers; equal for a token
            without characters (a window's start and end).
    """

    states: Floats
    weights: Floats
    spans: Spans

    @property
    def pooled(self) -> Floats:
        return np.asarray(self.weights @ self.states)


class EncoderError(ValueError):
    """A file of the encoder cannot be read; the text names it."""


class TextEncoder(Protocol):
    """An encoder of the classifier. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Return the encoder's name; a head belongs to the one that it was fitted on."""

    @property
    def hidden(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[Encoded]: ...


def encoder_file(folder: Path) -> Path:
    """Return the folder's encoder: packed in the shipped artefact, plain in one of a training."""
    return _packed_or_plain(folder, ENCODER)


def read_encoder(folder: Path) -> bytes:
    """Return the folder's encoder in ONNX's format.

    Raises:
        EncoderError: it is missing, or packed and cannot be unpacked.
    """
    path = encoder_file(folder)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise EncoderError(f"{path.name}: it is missing") from None
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise EncoderError(f"{path.name}: it cannot be unpacked ({error})") from None


def tokenizer_file(folder: Path) -> Path:
    """Return the folder's tokenizer: packed in artefacts, plain in folders of a training."""
    return _packed_or_plain(folder, TOKENIZER)


def _packed_or_plain(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def read_tokenizer(path: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a file, packed or plain.

    Raises:
        EncoderError: It is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        content = path.read_bytes()
        return Tokenizer.from_buffer(gzip.decompress(content) if path.suffix == ".gz" else content)
    except Exception as error:  # tokenizers raises no narrower type
        raise EncoderError(f"{path.name}: it is not a tokenizer ({error})") from None


class OnnxEncoder:
    """The built-in encoder.

    Args:
        folder: holds encoder.onnx and tokenizer.json, either also with `.gz`.
        name: as the artefact's manifest has it.
        threads: of one run; replicas share the machine's cores, so one is the default.
        tokenizer: its file; None: the one in `folder`.
        encoder: its content; None: what lies in `folder`.

    Raises:
        EncoderError: a file is not a tokenizer or not an encoder.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        threads: int = 1,
        tokenizer: Path | None = None,
        encoder: bytes | None = None,
    ) -> None:
        import onnxruntime

        self.name = name
        self._tokenizer = read_tokenizer(tokenizer or tokenizer_file(folder))
        content = read_encoder(folder) if encoder is None else encoder
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            self.hidden = int(self._session.get_outputs()[0].shape[2])
        except Exception as error:  # ONNX Runtime's errors have no narrower type either
            raise EncoderError(f"{ENCODER}: it is not an encoder ({error})") from None

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts of any length; short ones run together, padded to the longest of a batch."""
        windows = [
            (position, ids, spans)
            for position, encoding in enumerate(self._tokenizer.encode_batch(list(texts)))
            for ids, spans in _windows(encoding.ids, encoding.offsets)
        ]
        order = sorted(range(len(windows)), key=lambda i: len(windows[i][1]))
        states: list[Floats] = [np.empty(0, np.float32)] * len(windows)
        scores: list[Floats] = [np.empty(0, np.float32)] * len(windows)
        for picked in _batches(order, [len(ids) for _, ids, _ in windows]):
            self._run([windows[i][1] for i in picked], picked, states, scores)
        of_text: list[list[int]] = [[] for _ in texts]
        for number, (position, _, _) in enumerate(windows):
            of_text[position].append(number)
        return [
            Encoded(
                np.concatenate([states[n] for n in numbers]),
                softmax(np.concatenate([scores[n] for n in numbers])),
                np.concatenate([windows[n][2] for n in numbers]),
            )
            for numbers in of_text
        ]

    def _run(
        self,
        rows: Sequence[Sequence[int]],
        picked: Sequence[int],
        states: list[Floats],
        scores: list[Floats],
    ) -> None:
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        ids = np.full((len(rows), int(lengths.max())), PAD, dtype=np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        found, weights = self._session.run(None, {"ids": ids, "lengths": lengths})
        for at, number in enumerate(picked):
            states[number] = found[at, : lengths[at]]
            scores[number] = weights[at, : lengths[at]]


def _windows(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> list[tuple[list[int], Spans]]:
    """Cut a text into windows of WINDOW tokens; keep MAX_WINDOWS, evenly spread, of a long one."""
    starts = list(range(0, len(ids), WINDOW)) or [0]
    if len(starts) > MAX_WINDOWS:
        spread = np.linspace(0, len(starts) - 1, MAX_WINDOWS).round().astype(int)
        starts = [starts[i] for i in spread]
    found = []
    for start in starts:
        spans = [(0, 0), *offsets[start : start + WINDOW], (0, 0)]
        found.append(([BOS, *ids[start : start + WINDOW], EOS], np.array(spans, dtype=np.int64)))
    return found


def _batches(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Group positions, which ascend in length, into batches of at most BATCH_TOKENS."""
    batches: list[list[int]] = []
    for number in order:
        if batches and (len(batches[-1]) + 1) * lengths[number] <= BATCH_TOKENS:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def softmax(scores: Floats) -> Floats:
    """Return the softmax over the last axis, in float32."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
