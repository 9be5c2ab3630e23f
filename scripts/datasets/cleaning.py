"""Repair and remove records before the split; count what was repaired and removed."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scripts.datasets.record import Record, plain_words

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÀ-Þ])")
NUM_BOILERPLATE_DISEASES = 5  # a sentence in the answers of this many diseases is boilerplate


@dataclass(slots=True)
class Cleaned:
    """What is left, and counts of what was repaired and removed."""

    records: list[Record]
    mojibake_repaired: int = 0
    exact_duplicates: int = 0  # same file, question and answer
    repeated_questions: int = 0  # same question in words, another answer or specialty
    boilerplate_cut: int = 0  # answers that lost a sentence
    dropped: Counter[str] = field(default_factory=Counter)  # by option: why -> how many


def clean(records: Iterable[Record], drop_notes: Sequence[str], drop_boilerplate: bool) -> Cleaned:
    """Repair broken encodings, drop repeats (the first stays), and what is asked for.

    Args:
        drop_notes: pairs with one of these notes are left out.
        drop_boilerplate: cut sentences that many answers share.
    """
    done = Cleaned([])
    for record in records:
        fixed = _repaired(record)
        done.mojibake_repaired += fixed != record
        done.records.append(fixed)
    _drop_notes(done, drop_notes)
    _drop_repeats(done)
    if drop_boilerplate:
        _cut_boilerplate(done)
    return done


def _repaired(record: Record) -> Record:
    """Repair mojibake in question and answer with ftfy; leave quotes and width as they are."""
    from ftfy import TextFixerConfig, fix_text

    config = TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, unescape_html=True, normalization=None
    )
    question, answer = fix_text(record.question, config), fix_text(record.answer, config)
    if (question, answer) == (record.question, record.answer):
        return record
    return dataclasses.replace(record, question=question, answer=answer)


def _drop_notes(done: Cleaned, notes: Sequence[str]) -> None:
    for note in notes:
        before = len(done.records)
        done.records = [r for r in done.records if not (r.is_pair and r.note == note)]
        done.dropped[f"note {note}"] = before - len(done.records)


def _drop_repeats(done: Cleaned) -> None:
    """Compare pairs over all specialties, and router questions within their file."""
    first: dict[tuple[str, str], Record] = {}
    kept = []
    for record in done.records:
        scope = "" if record.is_pair else record.file
        key = (scope, " ".join(plain_words(record.question)))
        if (known := first.setdefault(key, record)) is record:
            kept.append(record)
        elif known.answer == record.answer and known.specialty == record.specialty:
            done.exact_duplicates += 1
        else:
            done.repeated_questions += 1
    done.records = kept


def boilerplate(records: Sequence[Record]) -> set[str]:
    """Return the sentences in the answers about NUM_BOILERPLATE_DISEASES diseases or more."""
    diseases: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for sentence in _sentences(record.answer) if record.is_pair else ():
            diseases[sentence].add(record.focus or record.question)
    return {s for s, names in diseases.items() if len(names) >= NUM_BOILERPLATE_DISEASES}


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def _cut_boilerplate(done: Cleaned) -> None:
    repeated = boilerplate(done.records)
    kept = []
    for record in done.records:
        if not record.is_pair or repeated.isdisjoint(sentences := _sentences(record.answer)):
            kept.append(record)
            continue
        answer = " ".join(s for s in sentences if s not in repeated)
        done.boilerplate_cut += 1
        if answer:
            kept.append(dataclasses.replace(record, answer=answer))
        else:
            done.dropped["answer of boilerplate alone"] += 1
    done.records = kept
