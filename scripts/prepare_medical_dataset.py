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
               the split. A .json file with one list of such objects is read too. Alpaca's, Dolly's
               and other usual columns (question and answer, prompt and completion), and chat
               messages or ShareGPT's conversations of one question and answer count as input and
               output. all=SPECIALTY serves lines without a specialty
    medquad    the folder of MedQuAD's XML files
    abstracts  the CSV of Medical Abstracts (condition_label, medical_abstract), or another table of
               abstracts: title= and abstract= name its columns. keyword=WORD keeps the abstracts
               with that word (`*`: any letters) for the specialty that knows it, or for
               all=SPECIALTY; keywords=COLUMN takes the specialty from the keywords in a column
    table      any .csv, .tsv, .json or .jsonl; the options question, answer, specialty, id, focus,
               source, url, lang, split name its columns, all=SPECIALTY serves all rows
    hf         a dataset id of the Hugging Face hub; options as for table, and part=train

`licence=` says under which licence a source is; those that this project knows need none. Say in
`focus` which disease a pair is about: without it two names of one disease may be in both splits.
Where `lang` is missing, en or fr is told from the text (und when neither leads).

--with_passages puts passages before each question as service does, the right ones among others,
and makes the answer cite them ([1]) or, in a fifth of the pairs, say that there is no source. A
pair's passages are answers of its own split. `asked` keeps the question alone.

Written: <specialty>.jsonl (all columns), <specialty>/train.json and validation.json (input and
output alone), manifest.json, report.md. The same sources and options give the same bytes. The last
line of stdout is one JSON object.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: this folder would hide packages of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.arguments import CommandParser
from scripts.datasets.record import DataError


def main(argv: Sequence[str] | None = None) -> int:
    return _parser().run(argv, lambda: (DataError, OSError), _prepare)


def _prepare(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    from scripts.datasets.prepare import prepare

    return prepare(args)


def _parser() -> CommandParser:
    parser = CommandParser("prepare_medical_dataset", __doc__)
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
    add("--with_passages", action="store_true", help="questions come with numbered passages")
    add("--seed", type=int, default=0, help="of which diseases are held out")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
