"""From sources to training files: one folder, split by disease, with a manifest and a report.

    python -m scripts.prepare_medical_dataset --source jsonl:DATA_FOLDER --out runs/data
    python -m scripts.prepare_medical_dataset --source medquad:MedQuAD \\
        --source abstracts:medical_tc_train.csv,licence="CC BY-SA 3.0" --out runs/data
    python -m scripts.prepare_medical_dataset --out runs/data \\
        --source table:faq.csv,question=q,answer=a,all=cardiology,licence=own

Kinds of --source KIND:PATH[,key=value...], repeatable:

    jsonl      a folder of <specialty>.jsonl files, or one file: lines with input, output, specialty
               and, where known, id, source, lang, split, focus, qtype, url, note. Other .jsonl
               files of a folder hold questions for the router: they are carried over, and follow
               the split.
    medquad    the folder of MedQuAD's XML files
    abstracts  the CSV of Medical Abstracts (condition_label, medical_abstract)
    table      any .csv, .tsv, .json or .jsonl; the options question, answer, specialty, id, focus,
               source, url, lang, split name its columns, all=SPECIALTY serves all rows
    hf         a dataset id of the Hugging Face hub; options as for table, and part=train

`licence=` says under which licence a source is; those that this project knows need none.

Written: <specialty>.jsonl (all columns), <specialty>/train.json and validation.json (input and
output alone), manifest.json, report.md. The same sources and options give the same bytes. The last
line of stdout is one JSON object.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.arguments import HelpFormatter
from scripts.datasets.cleaning import ATTRIBUTIONS, Cleaned, Cleaning, clean, origin, with_sources
from scripts.datasets.record import DataError, Record
from scripts.datasets.report import check, report_of
from scripts.datasets.sources import Reading, Source, parse_source, read_source
from scripts.datasets.split import Split, SplitRule, split_by_disease


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        report = prepare(args)
    except (DataError, OSError) as error:
        print(f"prepare_medical_dataset: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.prepare_medical_dataset",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    kind = "KIND:PATH[,key=value...]"
    add("--source", action="append", required=True, metavar=kind, help="see above; repeatable")
    add("--out", type=Path, required=True, help="folder to write; must not exist")
    add("--overwrite", action="store_true", help="replace --out when this script wrote it")
    add("--min_validation", type=int, default=30, help="unseen pairs of each specialty, at least")
    add("--max_validation_share", type=float, default=1 / 3, help="but not more than this part")
    add("--validation_share", type=float, default=0.1, help="where a source has no split")
    add("--drop_note", action="append", default=[], help="leave out pairs with this note")
    add("--drop_boilerplate", action="store_true", help="cut sentences that many answers share")
    add("--with_sources", action="store_true", help="end answers in 'Source: <publisher>'")
    add("--seed", type=int, default=0, help="of which diseases are held out")
    return parser


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Everything from sources to the folder; returns the summary.

    Raises:
        DataError, OSError: nothing was written.
    """
    _check_out(args.out, args.overwrite)
    rule = _rule(args)
    sources = [parse_source(text) for text in args.source]
    records: list[Record] = []
    readings: list[Reading] = []
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
    cleaned = clean(
        tqdm(records, "cleaning"), Cleaning(tuple(args.drop_note), args.drop_boilerplate)
    )
    split = split_by_disease(cleaned.records, rule)
    done, unnamed = with_sources(split.records) if args.with_sources else (split.records, 0)
    manifest = _manifest(args, sources, readings, cleaned, split, done)
    manifest["without_publisher"] = unnamed
    _write(args.out, done, manifest)
    return {
        "out": args.out.name,
        "num_pairs": sum(r.is_pair for r in done),
        "num_router_questions": sum(not r.is_pair for r in done),
        "validation": {name: row["validation"] for name, row in manifest["checks"].items()},
        "moved_to_validation": split.moved,
        "manifest_sha256": hashlib.sha256((args.out / "manifest.json").read_bytes()).hexdigest(),
    }


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"--out {out}: it exists; give another folder, or --overwrite")
    if any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise DataError(
            f"--out {out}: it has no manifest.json, so this script did not write it: give another "
            "folder"
        )


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


def _manifest(
    args: argparse.Namespace,
    sources: Sequence[Source],
    readings: Sequence[Reading],
    cleaned: Cleaned,
    split: Split,
    records: Sequence[Record],
) -> dict[str, Any]:
    """Without files: `_write` adds them."""
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
        "options": {
            key: getattr(args, key)
            for key in (
                *("min_validation", "max_validation_share", "validation_share"),
                *("drop_note", "drop_boilerplate", "with_sources", "seed"),
            )
        },
        "cleaning": {
            "mojibake_repaired": cleaned.mojibake_repaired,
            "exact_duplicates": cleaned.exact_duplicates,
            "repeated_questions": cleaned.repeated_questions,
            "boilerplate_cut": cleaned.boilerplate_cut,
            "dropped": dict(cleaned.dropped),
        },
        "split": {
            "diseases": split.num_groups,
            "moved_to_validation": split.moved,
            "reunited": split.reunited,
        },
        "checks": check(records),
    }


def _write(out: Path, records: Sequence[Record], manifest: dict[str, Any]) -> None:
    """Into a folder beside `out` first, so that a full disk leaves nothing half written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        fresh = Path(folder) / out.name
        fresh.mkdir()
        _write_records(fresh, records)
        manifest["files"] = {
            str(path.relative_to(fresh)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(fresh.rglob("*.json*"))
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=1)
        (fresh / "manifest.json").write_text(text + "\n", encoding="utf-8")
        (fresh / "report.md").write_text(report_of(manifest), encoding="utf-8")
        if out.exists():
            out.rename(Path(folder) / "replaced")
        shutil.move(fresh, out)


def _write_records(folder: Path, records: Sequence[Record]) -> None:
    for stem in sorted({record.file for record in records}):
        rows = [record for record in records if record.file == stem]
        lines = "".join(json.dumps(r.row(), ensure_ascii=False) + "\n" for r in rows)
        (folder / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
        if not rows[0].is_pair:
            continue
        (folder / stem).mkdir()
        for split in ("train", "validation"):
            pairs = [{"input": r.question, "output": r.answer} for r in rows if r.split == split]
            text = json.dumps(pairs, ensure_ascii=False, indent=1)
            (folder / stem / f"{split}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
