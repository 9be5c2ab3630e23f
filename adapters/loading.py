"""Hands every active adapter of the catalogue to something that can hold it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from adapters.catalog import AdapterEntry, Catalog
from adapters.validation import check_adapter


class AdapterError(ValueError):
    """One or more adapters were refused; the text lists every problem of every one."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(
            f"{len(problems)} {noun} with the adapters of the catalogue:\n{lines}\n"
            "Mend the files, or set `state: disabled` on the adapter in catalog.yaml."
        )


class AdapterTarget(Protocol):
    """A decoder, or a bank, that makes adapters resident."""

    def load_adapter(self, name: str, directory: Path) -> None: ...


def check_catalogued(
    catalog: Catalog, base_model: str, *, tensors: bool = True
) -> tuple[AdapterEntry, ...]:
    """The active adapters of this base, after checking the files of each.

    `tensors=False` leaves the weights' content to the checksum, and needs no torch.

    Raises:
        AdapterError: listing every problem of every adapter.
    """
    entries = catalog.adapters_for(base_model)
    problems = [
        f"adapter '{entry.name}': {problem}"
        for entry in entries
        for problem in check_adapter(catalog.folder(entry), entry, tensors=tensors)
    ]
    if problems:
        raise AdapterError(problems)
    return entries


def load_catalogued(
    catalog: Catalog, base_model: str, target: AdapterTarget
) -> tuple[AdapterEntry, ...]:
    """Check all adapters of this base, then hand each to `target`; returns what was loaded.

    Raises:
        AdapterError: a check failed (nothing was loaded), or `target` refused one.
    """
    entries = check_catalogued(catalog, base_model)
    for entry in entries:
        directory = catalog.folder(entry)
        try:
            target.load_adapter(entry.name, directory)
        except Exception as error:
            raise AdapterError([f"adapter '{entry.name}' ({directory}): {error}"]) from error
    return entries
