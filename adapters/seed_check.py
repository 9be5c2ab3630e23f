"""Every adapter of the seed that serves a base, checked before any is served."""

from collections.abc import Sequence

from adapters.store import AdapterStore, DamagedAdapter
from adapters.validation import check_adapter
from adapters.versions import RegisteredAdapter


class AdapterError(ValueError):
    """One or more adapters were refused; the text lists every problem of every one."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(
            f"{len(problems)} {noun} with the adapters of the catalogue:\n{lines}\n"
            "Fix the files, or set `state: disabled` on the adapter in catalog.yaml."
        )


def check_seed(store: AdapterStore, base_model: str) -> tuple[RegisteredAdapter, ...]:
    """Return the seed's adapters in service on this base, after checking the files of each.

    Raises:
        AdapterError: lists every problem of every adapter.
        StorageError: files cannot be read.
    """
    adapters = store.seed.in_service(base_model)
    problems = [
        f"adapter '{adapter.name}': {problem}"
        for adapter in adapters
        for problem in _problems_of(store, adapter)
    ]
    if problems:
        raise AdapterError(problems)
    return adapters


def _problems_of(store: AdapterStore, adapter: RegisteredAdapter) -> list[str]:
    try:
        folder = store.folder(adapter.stable)
    except DamagedAdapter as error:
        return [str(error)]
    return check_adapter(folder, adapter.base_model, rank=adapter.stable.rank)
