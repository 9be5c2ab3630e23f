"""One question, with or without an answer; lines of JSON; words and names in a normal form."""

import bz2
import contextlib
import gzip
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any

# Words that tell one subtype of a disease from another, not one disease from another.
_SUBTYPE = re.compile(r"\d+[a-z]?|[ivx]+|[a-z]|types?|subtypes?|groups?|forms?|stages?")
# Words of too many names to tell them apart; the French ones are from Human Phenotype Ontology.
_GENERIC = frozenset(
    "syndrome disease disorder familial hereditary autosomal dominant recessive linked congenital "
    "of the and in an due to with de du des la le les et en avec".split()
)
_MARKERS = {  # words that only one of the two languages has, often
    "en": frozenset("the is are what how and of does do for have with my can there".split()),
    "fr": frozenset("le la les est sont une des quels quelle comment pour je mon ma avec".split()),
}


@dataclass(frozen=True, slots=True)
class Record:
    """A question of one source. `answer` is empty where the source has only questions."""

    id: str
    question: str
    answer: str
    specialty: str
    file: str  # stem in the prepared folder; equals `specialty` for training pairs
    source: str
    where: str  # file and line, for messages
    lang: str = "en"
    split: str = ""  # "train", "validation", or "" when the source has no split
    focus: str = ""  # the disease or topic, "" when unknown
    synonyms: tuple[str, ...] = ()  # of the focus
    cuis: tuple[str, ...] = ()  # UMLS concepts of the focus
    qtype: str = ""
    url: str = ""
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)  # the source's other columns

    @property
    def is_pair(self) -> bool:
        """Tell pairs that train an adapter from questions for the router."""
        return self.file == self.specialty

    def row(self) -> dict[str, Any]:
        """Return the line of the prepared file."""
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
    """Return lower-case words of letters and digits, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    stripped = "".join(c for c in decomposed if not unicodedata.combining(c))
    return re.findall(r"[a-z0-9]+", stripped.replace("'s ", " "))


def language(text: str) -> str:
    """Return "en" or "fr" by function words; "und" (ISO 639-2, undetermined) when neither leads."""
    counts = Counter(plain_words(text))
    en, fr = (sum(counts[word] for word in _MARKERS[code]) for code in ("en", "fr"))
    return "und" if en == fr else ("en" if en > fr else "fr")


def normal_name(name: str) -> str:
    """Return a disease's name without case, accents, order, plurals, brackets and subtype.

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


@contextlib.contextmanager
def readable(what: str, refusal: type[Exception] = DataError) -> Iterator[None]:
    """Raise `refusal` where reading a file, or looking into its content, fails in the block.

    Args:
        what: begins the text, which goes on with the reason: "a.json: no report (KeyError: 'n')".
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise refusal(f"{what} ({type(error).__name__}: {error})") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of each line that is not blank. `.gz` and `.bz2` are unpacked.

    Raises:
        DataError: a line is not a JSON object; names the line.
        OSError: the file cannot be read, or is not packed as its name says.
    """
    with open_packed(path) as file:
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


def open_packed(path: Path) -> BufferedIOBase:
    """Open a file for reading; `.gz` and `.bz2` are unpacked.

    Raises:
        OSError: the file cannot be read; on reading, it is not packed as its name says.
    """
    if path.suffix == ".gz":
        return gzip.open(path)
    return bz2.open(path) if path.suffix == ".bz2" else path.open("rb")


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text ({error.reason}): save it in that encoding"


def text_of(item: Mapping[str, Any], name: str, where: str) -> str:
    """Return the column `name`. Raises DataError: missing, not a text, or empty."""
    value = item.get(name)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{name}' must be a text (columns found: {', '.join(sorted(item))}; "
            "expected are input and output)"
        )
    if not value.strip():
        raise DataError(f"{where}: '{name}' is empty")
    return value
