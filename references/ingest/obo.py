"""Read an ontology's OBO file: terms with definition, synonyms, references and parents."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from references.passage import ReferencesError

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(.*)')
_ESCAPED = re.compile(r"\\(.)")
_REFERENCE = re.compile(r"(?:PMID|DOI|ISBN(?:-13|-10)?|MIM|OMIM|MONDO|ORPHA|Orphanet):[^\s,\]]+")


@dataclass(frozen=True, slots=True)
class Term:
    """One term.

    Attributes:
        synonyms: exact and other ones, in the file's order.
        exact: the exact ones.
        layperson: those of the synonyms that the file marks as a layperson's.
        references: what definition and synonyms cite, such as PMID:32412211.
    """

    id: str
    name: str
    definition: str
    comment: str
    synonyms: tuple[str, ...]
    exact: tuple[str, ...]
    layperson: tuple[str, ...]
    references: tuple[str, ...]
    parents: tuple[str, ...]


def read_obo(path: Path) -> tuple[str, dict[str, Term]]:
    """Return the file's data version, and its terms by id, without obsolete ones.

    Raises:
        ReferencesError: the file cannot be read, is not UTF-8 or holds no term.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReferencesError(f"{path}: not UTF-8 at byte {error.start}: convert it") from None
    except OSError as error:
        raise ReferencesError(f"{path}: it cannot be read ({error.strerror})") from None
    head, *blocks = text.split("\n[Term]\n")
    version = re.search(r"^data-version: (.+)$", head, re.MULTILINE)
    terms = {term.id: term for term in map(_term, blocks) if term is not None}
    if not terms:
        raise ReferencesError(f"{path}: it has no [Term]: is it an OBO file?")
    return (version[1].rpartition("/")[2] if version else "unknown"), terms


def _term(block: str) -> Term | None:
    found: dict[str, list[str]] = {}
    for key, value in _lines(block):
        found.setdefault(key, []).append(value)
    if "is_obsolete" in found or not found.get("id") or not found.get("name"):
        return None
    definition, cited = _quoted(found.get("def", [""])[0])
    synonyms = [_quoted(value) for value in found.get("synonym", [])]
    references = _REFERENCE.findall(" ".join([cited, *(rest for _, rest in synonyms)]))
    return Term(
        id=found["id"][0],
        name=found["name"][0],
        definition=definition,
        comment=_unescaped(found.get("comment", [""])[0]),
        synonyms=tuple(dict.fromkeys(text for text, _ in synonyms if text)),
        exact=tuple(text for text, rest in synonyms if rest.startswith("EXACT")),
        layperson=tuple(text for text, rest in synonyms if " layperson " in rest),
        references=tuple(dict.fromkeys(references)),
        parents=tuple(value.split(" ")[0] for value in found.get("is_a", [])),
    )


def _lines(block: str) -> Iterator[tuple[str, str]]:
    for line in block.partition("\n[")[0].split("\n"):
        key, colon, value = line.partition(": ")
        if colon:
            yield key, value.strip()


def _quoted(value: str) -> tuple[str, str]:
    match = _QUOTED.match(value)
    return (_unescaped(match[1]), match[2]) if match else ("", "")


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], value).strip()


def ancestors(terms: dict[str, Term]) -> dict[str, frozenset[str]]:
    """Return, by term, the term itself and everything above it."""
    found: dict[str, frozenset[str]] = {}

    def above(id_: str) -> frozenset[str]:
        if id_ not in found:
            parents = [p for p in terms[id_].parents if p in terms]
            found[id_] = frozenset({id_}).union(*(above(p) for p in parents))
        return found[id_]

    for id_ in terms:
        above(id_)
    return found
