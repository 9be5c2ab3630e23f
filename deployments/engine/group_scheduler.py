"""Which waiting requests decode together next. Pure Python: no tensors, no threads, no clock.

The reference decoder has one active adapter at a time (`set_adapter`), and `generate` takes one
set of sampling parameters for a whole batch. So a group is: one adapter and plain argmax, or a
single request of any other kind. Groups start with the oldest waiting request, whatever its
adapter, so a flood on one adapter delays another adapter's request by at most one group.
"""

from collections.abc import Sequence

from deployments.engine.request import Request


def next_group(waiting: Sequence[Request], max_rows: int) -> list[int]:
    """Positions in `waiting` of the oldest request and of those that may share its batch.

    Args:
        waiting: requests in order of arrival; not changed.
        max_rows: rows of one batch, at least 1.

    Returns:
        ascending positions, between 1 and max_rows of them; empty only when `waiting` is.
    """
    if not waiting:
        return []
    oldest = waiting[0]
    if not oldest.sampling.is_argmax:
        return [0]
    group = [
        position
        for position, request in enumerate(waiting)
        if request.adapter == oldest.adapter and request.sampling.is_argmax
    ]
    return group[:max_rows]
