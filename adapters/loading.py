"""Every active adapter of a catalogue, checked before any is served."""

from collections.abc import Sequence

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
