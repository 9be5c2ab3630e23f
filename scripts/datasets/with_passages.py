"""Training pairs whose question comes with passages, as in service: RAFT (Zhang et al. 2024).

A passage is another pair's answer, or the pair's own. Of four examples in five, the right passages
(the pair's own answer, and one of the same disease) stand among others: what the reference shelf's
search finds for the question about other diseases, or what was drawn by lot. The answer is what the
passages say of it, with markers. In the fifth only the others are there, and the answer is that
there is no source.
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from adapters.grounded_prompt import MAX_PASSAGES_CHARS, SourceText, cut, with_passages
from adapters.prompting import Message
from references.passage import LANGUAGES, MAX_TEXT_CHARS, MAX_TITLE_CHARS, Passage
from references.quote import quote
from references.shelf import Shelf, build
from references.support import SupportCheck
from references.words import guess_language, sentences
from scripts.datasets.record import Record, normal_name

NO_SOURCE_SHARE = 0.2
NUM_PASSAGES = 3  # as `references.limit` of the service
_LOOKED_AT = 12  # of a search, for those about other diseases


def grounded(records: Sequence[Record], seed: int) -> tuple[list[Record], int]:
    """Return the records with passages in the pairs' questions, and how many pairs have none.

    Passages come from the pair's own split. A pair stays as it is where there is no other
    disease, or no sentence of its answer stands in what a prompt shows of the passages.
    """
    done: dict[str, Record] = {}
    for split in sorted({record.split for record in records}):
        pairs = [record for record in records if record.is_pair and record.split == split]
        with tempfile.TemporaryDirectory() as folder:
            done |= {record.id: record for record in _of_split(pairs, Path(folder), seed)}
    plain = sum(r.is_pair and done[r.id] is r for r in records)
    return [done.get(record.id, record) for record in records], plain


def _of_split(pairs: Sequence[Record], folder: Path, seed: int) -> Iterator[Record]:
    by_id = {f"pair-{number}": pair for number, pair in enumerate(pairs)}
    passages = {id_: _passage(id_, pair) for id_, pair in by_id.items()}
    same: dict[str, list[str]] = {}
    for id_, pair in by_id.items():
        same.setdefault(_disease(pair), []).append(id_)
    shelf = build(folder / "shelf.db", passages.values())
    for id_, pair in tqdm(by_id.items(), "passages"):
        chance = random.Random(f"{seed} {pair.id}")
        found = (p for p in _found(shelf, pair) if _disease(by_id[p.id]) != _disease(pair))
        drawn = chance.sample(list(by_id), min(len(by_id), 2 * NUM_PASSAGES))
        drawn = [other for other in drawn if _disease(by_id[other]) != _disease(pair)]
        others = list(dict.fromkeys([*found, *(passages[other] for other in drawn)]))
        if not others:
            yield pair
            continue
        beside = [other for other in same[_disease(pair)] if other != id_]
        right = [passages[other] for other in (id_, *chance.sample(beside, min(1, len(beside))))]
        chosen = [] if chance.random() < NO_SOURCE_SHARE else right[: NUM_PASSAGES - 1]
        chosen += others[: NUM_PASSAGES - len(chosen)]
        chance.shuffle(chosen)
        own = chosen.index(passages[id_]) if passages[id_] in chosen else None
        yield _example(pair, chosen, own)


def _found(shelf: Shelf, pair: Record) -> list[Passage]:
    language = pair.lang if pair.lang in LANGUAGES else None
    hits = shelf.hits(pair.question, language=language, limit=_LOOKED_AT)
    return [hit.passage for hit in hits]


def _example(pair: Record, passages: Sequence[Passage], own: int | None) -> Record:
    """Return the pair with passages; `own` is the place of its own answer among them."""
    asked = Message("user", pair.question)
    texts = [SourceText(passage.title, passage.text) for passage in passages]
    (turn,) = with_passages((asked,), texts)
    answer = quote((), "fr" if pair.lang == "fr" else "en")
    if own is not None:
        share = MAX_PASSAGES_CHARS // len(passages)  # what the prompt shows of each, at least
        shown = [replace(p, text=cut(p.text, max(0, share - len(p.title) - 2))) for p in passages]
        answer = _supported(pair.answer, shown, own + 1)
    if not answer:
        return pair
    extra = {**pair.extra, "asked": pair.question, "passages": [p.title for p in passages]}
    return replace(pair, question=turn.content, answer=answer, extra=extra)


def _supported(answer: str, passages: Sequence[Passage], own: int) -> str:
    """Return the sentences of an answer that the passages support, with their markers."""
    check, language, kept = SupportCheck(passages), guess_language(answer), []
    for start, end in sentences(answer):
        sentence = answer[start:end]
        found = check.of(f"{sentence} [{own}]", language)
        if found and found[0] is not None:
            kept.append(f"{sentence} [{found[0]}]")
    return " ".join(kept)


def _disease(pair: Record) -> str:
    return normal_name(pair.focus or pair.question)


def _passage(id_: str, pair: Record) -> Passage:
    return Passage(
        id=id_,
        title=cut(pair.focus or pair.question, MAX_TITLE_CHARS - 2),
        text=cut(pair.answer, MAX_TEXT_CHARS - 2),
        language=pair.lang if pair.lang in LANGUAGES else "en",
        source=pair.source or pair.file,
        licence="as the source",
        specialty=pair.specialty,
    )
