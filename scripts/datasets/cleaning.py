"""Repairs and removals before the split, each counted.

Who made the data, under which licence, and who published the page an answer comes from.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from scripts.datasets.record import Record, plain_words

# By the `source` field of a pair, up to the first slash or blank.
ATTRIBUTIONS = {
    "MedQuAD": "MedQuAD (CC BY 4.0): Ben Abacha and Demner-Fushman, BMC Bioinformatics 2019, "
    "20:511; text originally from NIH (GARD, GHR, NINDS, NIDDK, NHLBI, NCI, NIHSeniorHealth, "
    "MedlinePlus) and CDC",
    "HPO-fr": "Human Phenotype Ontology and its French translation (HPO licence: free with "
    "citation, content unaltered): Köhler et al., Nucleic Acids Research 2021",
    "HPO": "Human Phenotype Ontology (HPO licence: free with citation, content unaltered): "
    "Köhler et al., Nucleic Acids Research 2021",
    "ICD-10-CM": "ICD-10-CM (public domain): CDC/NCHS and CMS",
    "written": "questions written for this project (router/data), Apache-2.0",
    "glossary": "terms written for this project (router/data), Apache-2.0",
    "CasiMedicos": "CasiMedicos-arg (CC0 1.0): Agerri et al. 2023, Goenaga et al. 2024",
    "CLINC150": "CLINC150 (CC BY 3.0): Larson et al., EMNLP 2019",
}
# By what follows the slash in MedQuAD's `source`.
PUBLISHERS = {
    "GARD": "Genetic and Rare Diseases Information Center",
    "GHR": "Genetics Home Reference",
    "NINDS": "National Institute of Neurological Disorders and Stroke",
    "NIDDK": "National Institute of Diabetes and Digestive and Kidney Diseases",
    "NHLBI": "National Heart, Lung, and Blood Institute",
    "CancerGov": "National Cancer Institute",
    "NIHSeniorHealth": "NIH SeniorHealth",
    "MPlusHealthTopics": "MedlinePlus",  # the XML's own words; behind them our JSON lines'
    "ADAM": "MedlinePlus",
    "MedlinePlus-HealthTopics": "MedlinePlus",
    "MedlinePlus-ADAM(question only)": "MedlinePlus",
    "CDC": "Centers for Disease Control and Prevention",
}


def origin(source: str) -> str:
    """The data set that a `source` field names: "MedQuAD/GARD" -> "MedQuAD"."""
    return source.replace(" ", "/").split("/")[0]


def publisher(source: str, url: str) -> str:
    """Who published an answer: by its source, else the host of its page; "" when unknown."""
    named = PUBLISHERS.get(source.partition("/")[2])
    return named or (urlsplit(url).hostname or "").removeprefix("www.")


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÀ-Þ])")
NUM_BOILERPLATE_DISEASES = 5  # a sentence in the answers of this many diseases is boilerplate


@dataclass(frozen=True, slots=True)
class Cleaning:
    drop_notes: tuple[str, ...] = ()
    drop_boilerplate: bool = False


@dataclass(slots=True)
class Cleaned:
    records: list[Record]
    mojibake_repaired: int = 0
    exact_duplicates: int = 0  # same file, question and answer
    repeated_questions: int = 0  # same question in words, another answer or specialty
    boilerplate_cut: int = 0  # answers that lost a sentence
    dropped: Counter[str] = field(default_factory=Counter)  # by option: why -> how many


def clean(records: Iterable[Record], options: Cleaning) -> Cleaned:
    """Repair broken encodings, drop repeats (the first stays) and what the options ask for."""
    done = Cleaned([])
    for record in records:
        fixed = _repaired(record)
        done.mojibake_repaired += fixed != record
        done.records.append(fixed)
    _drop_notes(done, options.drop_notes)
    _drop_repeats(done)
    if options.drop_boilerplate:
        _cut_boilerplate(done)
    return done


def _repaired(record: Record) -> Record:
    """ftfy's repair of mojibake in question and answer; quotes and width are left as they are."""
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
    """Pairs are compared over all specialties, router questions within their file."""
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
    """Sentences that answers about NUM_BOILERPLATE_DISEASES diseases or more have in common."""
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


def with_sources(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Pairs whose answers end in `Source: <publisher>`, and how many have no known publisher."""
    done, unknown = [], 0
    for record in records:
        name = publisher(record.source, record.url) if record.is_pair else ""
        unknown += record.is_pair and not name
        done.append(
            dataclasses.replace(record, answer=f"{record.answer}\n\nSource: {name}")
            if name
            else record
        )
    return done, unknown
