"""From sources to the prepared folder: read, clean, split by disease, write."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from adapters.bases.models import sha256_of
from scripts.datasets.attributions import ATTRIBUTIONS, origin, with_sources
from scripts.datasets.checks import check
from scripts.datasets.cleaning import Cleaned, clean
from scripts.datasets.prepared_folder import check_out, write_folder
from scripts.datasets.record import DataError, Record
from scripts.datasets.source import Source, SourceReading, parse_source
from scripts.datasets.sources import OPTIONS as SOURCE_OPTIONS
from scripts.datasets.sources import read_source
from scripts.datasets.split import Split, SplitRule, split_by_disease
from scripts.datasets.with_passages import grounded
from scripts.lora.gate import GATE

OPTIONS = (
    *("min_validation", "max_validation_share", "validation_share"),
    *("drop_note", "drop_boilerplate", "with_sources", "with_passages", "seed"),
)
COUNTS = ("mojibake_repaired", "exact_duplicates", "repeated_questions", "boilerplate_cut")


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Prepare from sources to the folder; return the summary.

    Raises:
        DataError, OSError: nothing was written.
    """
    check_out(args.out, args.overwrite)
    rule = _rule(args)
    sources = [parse_source(text, SOURCE_OPTIONS) for text in args.source]
    records: list[Record] = []
    readings: list[SourceReading] = []
    for source in tqdm(sources, "reading"):
        found, reading = read_source(source)
        _check_licence(source, found)
        records += found
        readings.append(reading)
    _check_ids(records)
    if not any(record.is_pair for record in records):
        raise DataError(
            f"{len(records)} questions and no pair to train on: in a folder a file holds pairs "
            "when it is named after the specialty of its lines; a file given alone may mix them"
        )
    cleaned = clean(tqdm(records, "cleaning"), args.drop_note, args.drop_boilerplate)
    split = split_by_disease(cleaned.records, rule)
    done, unnamed = with_sources(split.records) if args.with_sources else (split.records, 0)
    done, without_passages = grounded(done, args.seed) if args.with_passages else (done, 0)
    manifest = _manifest(args, sources, readings, cleaned, split, done)
    manifest["without_publisher"] = unnamed
    manifest["without_passages"] = without_passages
    write_folder(args.out, done, manifest)
    _warn_of_small_validation(manifest["checks"])
    return {
        "out": args.out.name,
        "num_pairs": sum(r.is_pair for r in done),
        "num_router_questions": sum(not r.is_pair for r in done),
        "validation": {name: row["validation"] for name, row in manifest["checks"].items()},
        "moved_to_validation": split.moved,
        "manifest_sha256": sha256_of(args.out / "manifest.json"),
    }


def _rule(args: argparse.Namespace) -> SplitRule:
    if args.min_validation < 1:
        raise DataError(f"--min_validation {args.min_validation}: a number from 1 is expected")
    for name in ("max_validation_share", "validation_share"):
        if not 0 < (share := getattr(args, name)) < 1:
            raise DataError(f"--{name} {share}: a number between 0 and 1 is expected")
    return SplitRule(
        args.min_validation, args.max_validation_share, args.validation_share, args.seed
    )


def _check_licence(source: Source, records: Sequence[Record]) -> None:
    if source.options.get("licence"):
        return
    unknown = sorted({origin(r.source) for r in records} - ATTRIBUTIONS.keys())
    if unknown:
        raise DataError(
            f"--source {source.title()}: the licence of {', '.join(unknown)} is not known here: "
            "add ,licence=NAME to the source (its own words, or 'own' for your own data)"
        )


def _check_ids(records: Sequence[Record]) -> None:
    first: dict[str, Record] = {}
    for record in records:
        if (known := first.setdefault(record.id, record)) is not record:
            raise DataError(
                f"{record.where}: the id '{record.id}' is also that of {known.where}: ids are "
                "unique over all sources"
            )


def _warn_of_small_validation(checks: Mapping[str, Any]) -> None:
    """Say on stderr which specialties the gate will refuse for want of questions."""
    small = [
        f"{name} {row['validation']}" for name, row in checks.items() if row["validation"] < GATE
    ]
    if small:
        print(
            f"prepare_medical_dataset: fewer than the {GATE} validation pairs that "
            f"scripts.promote_adapter asks for: {', '.join(small)}; add pairs, about {3 * GATE} in "
            "all for each specialty",
            file=sys.stderr,
        )


def _manifest(
    args: argparse.Namespace,
    sources: Sequence[Source],
    readings: Sequence[SourceReading],
    cleaned: Cleaned,
    split: Split,
    records: Sequence[Record],
) -> dict[str, Any]:
    """Return the manifest without `files`, which `write_folder` adds."""
    names = sorted({origin(r.source) for r in records})
    return {
        "schema": 1,
        "sources": [
            {
                "source": source.title(),
                "options": dict(sorted(source.options.items())),
                "sha256": dict(sorted(reading.files.items())),
                "left_out": dict(sorted(reading.left_out.items())),
            }
            for source, reading in zip(sources, readings, strict=True)
        ],
        "attribution": {name: ATTRIBUTIONS.get(name, "licence as given") for name in names},
        "options": {name: getattr(args, name) for name in OPTIONS},
        "cleaning": {name: getattr(cleaned, name) for name in COUNTS}
        | {"dropped": dict(cleaned.dropped)},
        "split": {
            "diseases": split.num_groups,
            "moved_to_validation": split.moved,
            "reunited": split.reunited,
            "pairs_without_focus": sum(r.is_pair and not r.focus for r in records),
        },
        "checks": check(records),
    }
