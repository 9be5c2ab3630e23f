"""Make the router's training set from public sources and our own questions.

    python -m scripts.prepare_router_dataset --out runs/router_data \\
        --source prepared:runs/data --source written:router/data/written_train.jsonl.bz2 \\
        --source hpo:hp.obo --source hpo_diseases:phenotype.hpoa,terms=hp.obo \\
        --source icd10cm:icd10cm-tabular.xml

The kinds of source are listed in scripts/router/sources.py. Each entry goes to one split:

    encoder     trains the encoder and the n-grams
    head        fits and calibrates the head on top: questions that the encoder has not seen
    validation  the source's own validation split, never trained on

No disease, sign or text of a set of questions is in two splits. Terminologies train without regard
to what the questions are about: a router should know the names in public lists. With
`--unseen_names` they lose every name that a head or validation question is about, which measures
how the router handles names that it never saw. `--hold_out SOURCE` (repeatable) moves a whole
source to the split `held_out`. Written: questions.jsonl and manifest.json (counts, hashes,
licences); the same sources give the same bytes. The last line of stdout is one JSON object.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from router.training.examples import OUT_OF_SCOPE
from scripts.arguments import CommandParser
from scripts.datasets.attributions import ATTRIBUTIONS, origin
from scripts.datasets.record import DataError
from scripts.datasets.source import parse_source
from scripts.router.augmentation import neutral_letters
from scripts.router.dataset import MANIFEST, QUESTIONS, Entry, question, to_row
from scripts.router.sources import OPTIONS, read_source_entries

NUM_NEUTRAL = 200  # letters for each language
HEAD_PERCENT = 15  # of the groups that may train
WRITTEN_HEAD_PERCENT = 20  # of our own questions, which look most like patients'


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, lambda: (DataError, OSError), _prepare)


def _prepare(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    return prepare(args.source, args.out, args.hold_out, unseen_names=args.unseen_names)


def _parser() -> CommandParser:
    parser = CommandParser("prepare_router_dataset", __doc__)
    add = parser.add_argument
    kind = "KIND:PATH[,key=value...]"
    add("--source", action="append", required=True, metavar=kind, help="repeatable; see above")
    add("--out", type=Path, required=True, help="folder to write")
    add("--unseen_names", action="store_true", help="drop terms that head and validation name")
    add("--hold_out", action="append", default=[], metavar="SOURCE", help="e.g. MedQuAD/NIDDK")
    return parser


def prepare(
    sources: Sequence[str], out: Path, hold_out: Sequence[str] = (), *, unseen_names: bool = False
) -> dict[str, Any]:
    """Read, split and write the entries; raise DataError for a bad source or unknown --hold_out."""
    parsed = [parse_source(text, OPTIONS) for text in sources]
    entries = [entry for source in tqdm(parsed, "reading") for entry in read_source_entries(source)]
    known = {entry.source for entry in entries}
    if unknown := sorted(set(hold_out) - known):
        raise DataError(
            f"--hold_out {', '.join(unknown)}: no such source; there are {', '.join(sorted(known))}"
        )
    if any(source.kind == "written" for source in parsed):
        entries += neutral_entries()
    split = split_entries(_first_of_each(entries), frozenset(hold_out), unseen_names=unseen_names)
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(to_row(e), ensure_ascii=False) + "\n" for e in split)
    (out / QUESTIONS).write_text(lines, encoding="utf-8")
    names = sorted({origin(e.source) for e in split})
    manifest = {
        "schema": 1,
        "sources": [source.title() for source in parsed],
        "hold_out": sorted(hold_out),
        "unseen_names": unseen_names,
        "attribution": {n: ATTRIBUTIONS.get(n, "licence as given") for n in names},
        "counts": _counts(split),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1)
    (out / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return {"out": out.name, "num_entries": len(split), "splits": manifest["counts"]}


def neutral_entries() -> list[Entry]:
    """Return letters of padding sentences without a question, as out of scope."""
    return [
        question(
            f"neutral-{lang}-{number}", text, OUT_OF_SCOPE, lang, "written", f"text {text.lower()}"
        )
        for lang in ("en", "fr")
        for number, text in enumerate(neutral_letters(lang, NUM_NEUTRAL, seed=0))
    ]


def _first_of_each(entries: Iterable[Entry]) -> list[Entry]:
    """Return one entry for each text; a text with two labels is left out."""
    first: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        first.setdefault((" ".join(entry.text.lower().split()), entry.specialty), entry)
    labels = Counter(text for text, _ in first)
    return [entry for (text, _), entry in first.items() if labels[text] == 1]


def split_entries(
    entries: Sequence[Entry], hold_out: frozenset[str], *, unseen_names: bool
) -> list[Entry]:
    """Give each entry its split; with `unseen_names`, drop the names that questions are about."""
    groups = {e.group for e in entries if e.split == "validation"}
    placed = [dataclasses.replace(e, split=_split_of(e, groups, hold_out)) for e in entries]
    if not unseen_names:
        return placed
    unseen = [e for e in placed if e.split in ("head", "validation")]
    names = {name for e in unseen for name in e.names} - {""}
    unseen_groups = {e.group for e in unseen}
    return [
        done
        for given, done in zip(entries, placed, strict=True)
        if not is_terminology(given)
        or (given.group not in unseen_groups and names.isdisjoint(given.names))
    ]


def is_terminology(entry: Entry) -> bool:
    """Return whether the entry is of a list of names, which has no split."""
    return not entry.split


def _split_of(entry: Entry, validation: set[str], hold_out: frozenset[str]) -> str:
    if entry.source in hold_out:
        return "held_out"
    if is_terminology(entry):
        return "encoder"
    if entry.split == "head":
        return "head"
    if entry.split == "validation" or entry.group in validation:
        return "validation"
    is_ours = entry.source == "written"
    percent = WRITTEN_HEAD_PERCENT if is_ours or entry.specialty == OUT_OF_SCOPE else HEAD_PERCENT
    return "head" if zlib.crc32(entry.group.encode()) % 100 < percent else "encoder"


def _counts(entries: Sequence[Entry]) -> dict[str, Any]:
    counted = Counter((e.split, e.source) for e in entries)
    splits = sorted({split for split, _ in counted})
    return {
        split: {s: n for (part, s), n in sorted(counted.items()) if part == split}
        for split in splits
    }


if __name__ == "__main__":
    raise SystemExit(main())
