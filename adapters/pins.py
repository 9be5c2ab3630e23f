"""How many places on a replica's device pinned adapters take, and when that is one too many."""

from adapters.changes import ChangeRefused
from adapters.live_catalog import LiveCatalog


def num_pinned(catalog: LiveCatalog, base_model: str) -> int:
    """Versions of pinned adapters that are in service; a trial counts beside the one in force."""
    return sum(len(a.served) for a in catalog.in_service(base_model) if a.pinned)


def check_pins(
    before: LiveCatalog, after: LiveCatalog, base_model: str, *, num_places: int
) -> None:
    """One place at least stays free for adapters that are not pinned.

    A change that takes no further place passes even where there are too many pins already, as
    after a restart with fewer places: it may be the one that mends it.

    Args:
        num_places: adapters on the device of one replica.

    Raises:
        ChangeRefused: a conflict; names the numbers.
    """
    wanted = num_pinned(after, base_model)
    if wanted >= num_places and wanted > num_pinned(before, base_model):
        raise ChangeRefused(
            "conflict",
            [
                f"{wanted} versions would be pinned, and a replica has {num_places} places "
                f"(engine.max_adapters), of which one stays free for the others: at most "
                f"{num_places - 1} can be: unpin an adapter, or raise engine.max_adapters"
            ],
        )
