"""Question and answer pairs from JSON lines, checked line by line.

One question, with or without an answer, on its way from a source to the prepared folder.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Words that tell one subtype of a disease from another, not one disease from another.
_SUBTYPE = re.compile(r"\d+[a-z]?|[ivx]+|[a-z]|types?|subtypes?|groups?|forms?|stages?")
# Words in so many names that they tell nothing; French ones are in the Human Phenotype Ontology.
_GENERIC = frozenset(
    "syndrome disease disorder familial hereditary autosomal dominant recessive linked congenital "
    "of the and in an due to with de du des la le les et en avec".split()
)


@dataclass(frozen=True, slots=True)
class Record:
    """A question of one source. `answer` is empty where the source has only questions.

    Attributes:
        file: stem of the file in the prepared folder; equals `specialty` for training pairs.
        split: "train", "validation", or "" when the source has no split.
        focus: the disease or topic, "" when unknown; `synonyms` and `cuis` (UMLS) name it too.
        where: file and line, for messages.
        extra: the source's other columns, kept as they are.
    """

    id: str
    question: str
    answer: str
    specialty: str
    file: str
    source: str
    lang: str
    split: str
    where: str
    focus: str = ""
    synonyms: tuple[str, ...] = ()
    cuis: tuple[str, ...] = ()
    qtype: str = ""
    url: str = ""
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_pair(self) -> bool:
        """Whether it trains an adapter; the rest are questions for the router."""
        return self.file == self.specialty

    def row(self) -> dict[str, Any]:
        """The line of the prepared file."""
        known = {"focus": self.focus, "qtype": self.qtype, "url": self.url, "note": self.note}
        return {
            "id": self.id,
            "input": self.question,
            "output": self.answer,
            "specialty": self.specialty,
            "source": self.source,
            "lang": self.lang,
            "split": self.split,
            **{key: value for key, value in known.items() if value},
            **self.extra,
        }


def plain_words(text: str) -> list[str]:
    """Lower-case words of letters and digits, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    stripped = "".join(c for c in decomposed if not unicodedata.combining(c))
    return re.findall(r"[a-z0-9]+", stripped.replace("'s ", " "))


def normal_name(name: str) -> str:
    """A disease's name without case, accents, order, plurals, brackets and subtype.

    "Ehlers-Danlos syndrome, type IV" and "Ehlers-Danlos" are the same; a name of such words alone
    keeps them all.
    """
    words = plain_words(re.sub(r"\([^)]*\)", " ", name)) or plain_words(name)
    kept = [w for w in words if not _SUBTYPE.fullmatch(w) and w not in _GENERIC]
    return " ".join(
        sorted({w[:-1] if len(w) > 3 and w.endswith("s") else w for w in kept or words})
    )


class DataError(ValueError):
    """The data cannot be used; the text names the file, the line and what is expected."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One example. What is unknown is an empty text."""

    id: str
    question: str
    answer: str
    source: str
    note: str
    focus: str = ""  # the disease or topic
    qtype: str = ""  # MedQuAD's type of question
    url: str = ""
    lang: str = ""  # ISO 639-1


@dataclass(frozen=True, slots=True)
class DataSet:
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    files: dict[str, str]  # file name -> sha256


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        DataError: a line is not a JSON object; names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path.name}, line {number}: {not_utf8(error)}") from None
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: not JSON ({error})") from None
            if not isinstance(item, dict):
                raise DataError(f"{path.name}, line {number}: a JSON object is expected")
            yield number, item


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text ({error.reason}): save it in that encoding"


def load_pairs(
    data: Path, specialty: str, *, keep: Callable[[Pair], bool] = lambda pair: True
) -> DataSet:
    """The pairs of one specialty, by split.

    Args:
        data: a `.jsonl` file, or a folder that has `<specialty>.jsonl`.
        keep: which training pairs to use; validation is never filtered.

    Raises:
        DataError: no such file (lists what there is), a malformed line, an empty question or
            answer, an unknown split, an id given twice, no training pair.
    """
    path = _file_of(data, specialty)
    splits: dict[str, list[Pair]] = {"train": [], "validation": []}
    first: dict[str, int] = {}  # id -> line
    for number, item in read_jsonl(path):
        if item.get("specialty", specialty) != specialty:
            continue
        pair = _pair(item, f"{path.name}, line {number}")
        split = item.get("split", "train")
        if split not in splits:
            raise DataError(
                f"{path.name}, line {number}: split '{split}'; expected train or validation"
            )
        if (before := first.setdefault(pair.id, number)) != number:
            raise DataError(
                f"{path.name}, line {number}: the id '{pair.id}' is also that of line {before}"
            )
        splits[split].append(pair)
    train = tuple(pair for pair in splits["train"] if keep(pair))
    if not train:
        raise DataError(f"{path}: no training pair for specialty '{specialty}'")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataSet(train, tuple(splits["validation"]), {path.name: digest})


def _file_of(data: Path, specialty: str) -> Path:
    if data.is_file():
        return data
    if not data.is_dir():
        raise DataError(f"--data {data}: no such file or folder")
    path = data / f"{specialty}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in data.glob("*.jsonl"))) or "no .jsonl file"
        raise DataError(f"--specialty {specialty}: {path} does not exist (there are: {there})")
    return path


def _pair(item: dict[str, Any], where: str) -> Pair:
    for key in ("input", "output"):
        if not isinstance(item.get(key), str):
            columns = ", ".join(sorted(item))
            raise DataError(
                f"{where}: '{key}' must be a text (columns found: {columns}); "
                "expected are input and output"
            )
        if not item[key].strip():
            raise DataError(f"{where}: '{key}' is empty")
    return Pair(
        id=str(item.get("id", where)),
        question=item["input"].strip(),
        answer=item["output"].strip(),
        **{
            key: str(item.get(key) or "")
            for key in ("source", "note", "focus", "qtype", "url", "lang")
        },
    )
