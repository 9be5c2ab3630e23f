"""Write router/words.txt.gz: the words of the texts that train the router, for its spelling.

    python -m scripts.router.list_words

Read are those of our own texts that the shipped router was trained with, as its manifest names them
(no set that it is measured on, and no text that only a later router may learn from), and the word
lists of router/*.yaml. A word is written as it is most often, the most frequent first; one that is
followed by "known" or "everyday" is known, but nothing is corrected to it, since it points to no
specialty; an everyday one is in texts of all kinds. The last line of stdout is one JSON object.
"""

import argparse
import gzip
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from router.artefact import MANIFEST, ArtefactError, artefact_error, read_manifest
from router.lexicon import by_language, lexicon
from router.preparation.spelling import sound
from router.text import clean, words_of
from router.training.examples import OUT_OF_SCOPE
from router.words import EVERYDAY, KNOWN
from scripts.arguments import CommandParser
from scripts.datasets.record import DataError, read_jsonl
from scripts.datasets.source import parse_source
from scripts.router.sources import OPTIONS

ROUTER_DIR = Path(__file__).resolve().parents[2] / "router"
OWN_KINDS = ("written", "glossary")  # of sources: texts in router/data
MIN_LETTERS = 4
MIN_TEXTS = 2  # a clinical word is in so many
MAX_SLIP, MIN_FREQUENT = 1, 8  # texts of a slip, and of the word that was meant
MIN_INSIDE = 0.8  # share of a clinical word's texts that are in scope
MIN_OF_ONE = 0.4  # and share of its commonest specialty
MIN_OUTSIDE = 0.34  # share of an everyday word's texts that are out of scope
MIN_SPREAD, MAX_OF_ONE = 8, 0.25  # or it is in so many texts, with no more of one label


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("list_router_words", __doc__)
    parser.add_argument("--data", type=Path, default=ROUTER_DIR / "data", help="our own texts")
    model = ROUTER_DIR / "model"
    parser.add_argument("--model", type=Path, default=model, help="artefact of the trained router")
    out = ROUTER_DIR / "words.txt.gz"
    parser.add_argument("--out", type=Path, default=out, help="file to write")
    return parser.run(argv, lambda: (OSError, ArtefactError, DataError), _run)


def _run(args: argparse.Namespace, _: Sequence[str]) -> dict[str, Any]:
    files = training_files(args.model)
    texts = [*_texts(args.data, files), *((text, OUT_OF_SCOPE) for text in _everyday())]
    lines = word_lines(texts, [*_listed()])
    text = "".join(f"{line}\n" for line in lines)
    args.out.write_bytes(gzip.compress(text.encode(), mtime=0))
    return {"out": args.out.name, "num_words": len(lines)}


def word_lines(texts: Sequence[tuple[str, str]], listed: Sequence[str]) -> list[str]:
    """Return the lines of words.txt.gz. A rare word that sounds like a frequent one is a slip.

    Args:
        texts: training texts, each with its specialty.
        listed: texts of word lists; all their words are words to correct to.
    """
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for text, specialty in texts:
        for normal, written in _words(text).items():
            labels[normal][specialty] += 1
            forms[normal][written] += 1
    told = {normal: written for text in listed for normal, written in _words(text).items()}
    for normal, written in told.items():
        forms[normal][written] += 1
    sounds = {sound(normal) for normal in labels if labels[normal].total() >= MIN_FREQUENT}
    slips = {
        normal
        for normal in forms
        if normal not in told
        and OUT_OF_SCOPE not in labels[normal]
        and labels[normal].total() <= MAX_SLIP
        and sound(normal) in sounds
    }
    ranked = sorted(forms.keys() - slips, key=lambda normal: (-labels[normal].total(), normal))
    return [
        max(sorted(forms[normal]), key=lambda form: forms[normal][form])
        + ("" if normal in told or is_clinical(labels[normal]) else f" {mark(labels[normal])}")
        for normal in ranked
    ]


def is_clinical(labels: Mapping[str, int]) -> bool:
    """Return whether a word that occurs in texts of these labels points to few specialties."""
    inside = {name: count for name, count in labels.items() if name != OUT_OF_SCOPE}
    total = sum(labels.values())
    return (
        total >= MIN_TEXTS
        and sum(inside.values()) >= MIN_INSIDE * total
        and max(inside.values()) >= MIN_OF_ONE * total
    )


def mark(labels: Mapping[str, int]) -> str:
    """Return how a word that is not clinical is marked: EVERYDAY where it points to no clinic."""
    total, top = sum(labels.values()), max(labels.values())
    is_outside = labels.get(OUT_OF_SCOPE, 0) >= MIN_OUTSIDE * total
    is_spread = total >= MIN_SPREAD and top < MAX_OF_ONE * total
    return EVERYDAY if is_outside or is_spread else KNOWN


def _words(text: str) -> dict[str, str]:
    """Return the words of a text that are long enough: normal form -> in lower case."""
    cleaned = clean(text)
    return {
        word.normal: cleaned[word.start : word.end].lower()
        for word in words_of(cleaned)
        if len(word.normal) >= MIN_LETTERS and word.normal.isalpha()
    }


def training_files(model: Path) -> list[str]:
    """Return the names of our own files that an artefact was trained with, sorted.

    Raises:
        ArtefactError: the manifest cannot be read, or names none.
    """
    manifest = read_manifest(model / MANIFEST)
    sources = [parse_source(text, OPTIONS) for text in manifest.get("data", {}).get("sources", ())]
    found = sorted(source.folder.name for source in sources if source.kind in OWN_KINDS)
    if not found:
        raise artefact_error(
            model / MANIFEST, f"its data.sources name no texts of {' or '.join(OWN_KINDS)}"
        )
    return found


def _texts(folder: Path, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the texts of files, each as it was named or compressed since, and their labels."""
    for name in files:
        packed = folder / f"{name}.bz2"
        for _, row in read_jsonl(packed if packed.is_file() else folder / name):
            yield row["input"], row["specialty"]


def _listed() -> Iterator[str]:
    """Yield what the word lists have; beginnings of words are left out."""
    conversation = lexicon("conversation")
    for name in ("answers", "places", "complaints", "circumstances", "treatments"):
        for text in by_language(conversation[name]):
            yield " ".join(word for word in text.split() if not word.endswith("*"))
    yield from (entry["long"] for entry in lexicon("preparation/abbreviations") if entry["to"])


def _everyday() -> Iterator[str]:
    yield from lexicon("preparation/spelling")["everyday"].values()


if __name__ == "__main__":
    raise SystemExit(main())
