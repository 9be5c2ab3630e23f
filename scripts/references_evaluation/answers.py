"""Measure answers that stand on passages: quoted, cited by the adapters or the base, and neither.

    python -m scripts.references_evaluation.answers --data shared/data --answers runs/cited.jsonl \\
        --out docs/grounded_report.json

Questions are the validation pairs of diseases with several pairs; their shelf is the default one
(--shelf) with the answers of all validation pairs, of which a question never gets its own. Answers
are made by the engine of the default base on the CPU, greedily, and kept in --answers: the same
call goes on where it stopped. Read the sentences that the check found supported with --show N. The
last line of stdout is one JSON object, without any text.
"""

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapters.catalog import load_catalog
from adapters.grounded_prompt import SourceText, with_passages
from adapters.prompting import Message
from deployments.engine.request import Request, SamplingParams
from references.default_shelf import default_path, open_shelf
from references.passage import Passage, ReferencesError
from references.shelf import Shelf
from scripts.arguments import BASE_MODEL, CommandParser, at_least
from scripts.datasets.pairs import load_pairs
from scripts.datasets.record import DataError, Record
from scripts.environment import command_line, environment
from scripts.lora.chosen_base import CATALOG_DIR
from scripts.references_evaluation.answer_measures import (
    Answered,
    bounds,
    measures,
    supported_sentences,
)

SYSTEMS = {"off": True, "cite": True, "cite_base": False}  # -> whether the adapter answers
NUM_PASSAGES, NUM_ROWS, LOOP_WORDS, MAX_TOKENS = 3, 16, 4, 256


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the adapter that it is for, and its passages."""

    pair: Record
    passages: tuple[Passage, ...]


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("references_evaluation.answers", __doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of <specialty>.jsonl files")
    add("--answers", type=Path, required=True, help="JSON lines, made or continued")
    add("--out", type=Path, help="the figures as JSON")
    add("--shelf", type=Path, help="a built default shelf; default: the one in the cache folder")
    add("--each", type=at_least(1), default=10, metavar="N", help="questions of a specialty")
    add("--skip", type=int, default=0, metavar="N", help="as many before them: questions to try on")
    add("--minutes", type=at_least(1), default=600, help="after which no answer is begun")
    add("--show", type=at_least(1), metavar="N", help="print N sentences found supported")
    return parser.run(argv, lambda: (DataError, ReferencesError, OSError), _run)


def _run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    args.each += args.skip
    with tempfile.TemporaryDirectory() as folder:
        asked = _without_first(args.skip, _questions(args, _specialties(), Path(folder)))
    missing = asyncio.run(_answer(asked, args.answers, 60 * args.minutes))
    answered = [row for row in _read(args.answers) if row.passages]
    figures = {name: measures([a for a in answered if a.system == name]) for name in SYSTEMS}
    report = environment() | {
        "command": command_line("references_evaluation.answers", argv),
        "questions": len(asked),
        "without_passages": sum(not one.passages for one in asked),
        "unanswered": missing,
        "systems": figures,
        "bounds": bounds([one for one in answered if one.system == "off"]),
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for text in supported_sentences(answered, args.show or 0):
        print(text)
    return report


def _without_first(count: int, asked: Iterable[Asked]) -> list[Asked]:
    """Leave out the first questions of each specialty."""
    seen: Counter[str] = Counter()
    kept = []
    for one in asked:
        seen[one.pair.file] += 1
        if seen[one.pair.file] > count:
            kept.append(one)
    return kept


def _specialties() -> list[str]:
    catalog = load_catalog(CATALOG_DIR)
    return [adapter.specialty for adapter in catalog.in_service(BASE_MODEL) if adapter.specialty]


def _questions(
    args: argparse.Namespace, specialties: Sequence[str], folder: Path
) -> Iterator[Asked]:
    """Yield the questions of all specialties, each with what the search finds for it."""
    pairs = {name: load_pairs(args.data, name).validation for name in specialties}
    shelf = _shelf(args.shelf or default_path(), folder, [p for of in pairs.values() for p in of])
    for name, of_specialty in pairs.items():
        counts = Counter(pair.focus for pair in of_specialty)
        chosen = [p for p in of_specialty if counts[p.focus] > 1] or list(of_specialty)
        random.Random(0).shuffle(chosen)
        for pair in chosen[: args.each]:
            hits = shelf.search(pair.question, specialty=name, language="en", limit=5)
            passages = [hit.passage for hit in hits if hit.passage.id != _id(pair)]
            yield Asked(replace(pair, file=name), tuple(passages[:NUM_PASSAGES]))


def _shelf(path: Path, folder: Path, pairs: Sequence[Record]) -> Shelf:
    copy = Path(shutil.copy(path, folder / "shelf.db"))
    shelf = open_shelf(copy)
    shelf.add(
        Passage(
            id=_id(pair),
            title=pair.focus or pair.question,
            text=pair.answer,
            language="en",
            source=pair.source,
            licence="CC BY 4.0",
            specialty=pair.specialty,
        )
        for pair in pairs
    )
    return shelf


def _id(pair: Record) -> str:
    return f"PAIR:{pair.id}"


def _read(path: Path) -> list[Answered]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [Answered.of(json.loads(line)) for line in file]


async def _answer(asked: Sequence[Asked], path: Path, seconds: float) -> int:
    """Append the answers that the file lacks; return how many are missing still."""
    from deployments.model.loading import first_sync, load_model, start_on_thread
    from deployments.settings import parse_settings

    done = {(row.system, row.id) for row in _read(path)}
    todo = [(one, name) for one in asked for name in SYSTEMS if (name, one.pair.id) not in done]
    if not todo:
        return 0
    settings = parse_settings({"engine": {"max_rows": NUM_ROWS}})
    model = start_on_thread(load_model, settings, "cpu")
    assert model.make_manager, "the default base takes adapters"
    manager = model.make_manager(run=model.engine.run_between_steps)
    first_sync(manager)
    free, end, left = asyncio.Semaphore(NUM_ROWS), time.monotonic() + seconds, 0

    async def one(asked: Asked, system: str) -> None:
        nonlocal left
        async with free:
            if time.monotonic() > end:
                left += 1
                return
            ids = model.encode(_turns(asked, system), answer_language=None)
            sampling = SamplingParams(MAX_TOKENS, loop_words=LOOP_WORDS)
            adapter, text = asked.pair.file if SYSTEMS[system] else None, ""
            async with manager.leases.leased(adapter or asked.pair.file, None) as name:
                request = Request(
                    f"{system} {asked.pair.id}", tuple(ids), adapter and name, sampling
                )
                async for event in model.engine.generate(request, stream=False):
                    text += event.text
            row = Answered(
                system,
                asked.pair.id,
                asked.pair.question,
                asked.pair.answer,
                asked.passages,
                text,
                event.num_tokens,
                str(event.finish_reason),
            )
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")

    await asyncio.gather(*(one(*each) for each in todo))
    model.engine.close()
    return left


def _turns(asked: Asked, system: str) -> tuple[Message, ...]:
    turns = (Message("user", asked.pair.question),)
    if system == "off":
        return turns
    return with_passages(turns, [SourceText(p.title, p.text) for p in asked.passages])


if __name__ == "__main__":
    raise SystemExit(main())
