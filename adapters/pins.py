"""How many device slots pinned adapters take, and when that is one too many."""

from adapters.catalog import Catalog
from adapters.changes import ChangeRefused


def num_pinned(catalog: Catalog, base_model: str) -> int:
    """Count the serving versions of pinned adapters: two for an adapter with a canary."""
    return sum(len(a.served) for a in catalog.in_service(base_model) if a.pinned)


def check_pins(before: Catalog, after: Catalog, base_model: str, *, num_slots: int) -> None:
    """Keep at least one slot free for adapters that are not pinned.

    A change that pins nothing more passes even when too many are pinned already, as after a
    restart with fewer slots: it may be the one that fixes it.

    Args:
        num_slots: adapters on the device of one replica.

    Raises:
        ChangeRefused: a conflict; names the numbers.
    """
    wanted = num_pinned(after, base_model)
    if wanted >= num_slots and wanted > num_pinned(before, base_model):
        raise ChangeRefused(
            "conflict",
            [
                f"{wanted} versions would be pinned, and a replica has {num_slots} slots "
                f"(engine.max_adapters), of which one stays free for the others: at most "
                f"{num_slots - 1} can be: unpin an adapter, or raise engine.max_adapters"
            ],
        )
