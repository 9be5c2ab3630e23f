"""What the readers of files share: UTF-8 or an error, and a passage from named fields."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from references.passage import LISTS, Passage, ReferencesError

FIELDS = frozenset(field.name for field in fields(Passage))
ALLOWED = FIELDS - {"id", "text", "kind", "prominence"}  # in a file's front matter


def utf8(path: Path) -> str:
    """Return a file's text.

    Raises:
        ReferencesError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReferencesError(
            f"{path}: not UTF-8 at byte {error.start}: convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise ReferencesError(f"{path}: it cannot be read ({error.strerror})") from None


def passage_from(values: Mapping[str, Any], place: str) -> Passage:
    """Return a passage of named fields; a list may be a text with `;` between its items.

    Raises:
        ReferencesError: a field has a value of another kind; `place` says where.
    """
    found: dict[str, Any] = {"source": "", "licence": "", "language": "en", "title": "", "id": ""}
    for name, value in values.items():
        if value is None or value == "":
            continue
        if name in LISTS:
            items = value.split(";") if isinstance(value, str) else value
            if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
                raise ReferencesError(f"{place}: {name} {value!r}: a list of texts is expected")
            found[name] = tuple(item.strip() for item in items if item.strip())
        elif name == "prominence":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ReferencesError(f"{place}: prominence {value!r}: a number is expected")
            found[name] = float(value)
        elif isinstance(value, str | int) and not isinstance(value, bool):
            found[name] = str(value)
        else:
            raise ReferencesError(f"{place}: {name} {value!r}: a text is expected")
    found.setdefault("text", "")
    return Passage(**found)
