"""Run the engine's requests group by group, for a decoder with one active adapter (PEFT).

`generate` takes one adapter and one set of sampling parameters for a whole batch. So a group is one
adapter and plain argmax, or a single request of any other kind. A group starts with the oldest
waiting request, whatever its adapter, so a flood on one adapter delays another adapter's request
by at most one group.
"""

from collections.abc import Callable, Sequence

from deployments.engine.decoder import GroupDecoder
from deployments.engine.loop import fail
from deployments.engine.output import RequestState
from deployments.engine.request import Request


class GroupLoop:
    """Implement EngineLoop (loop.py) for a group decoder.

    Args:
        on_batch: called with the number of rows of each group that starts, and with 0 at its end.
    """

    def __init__(
        self, decoder: GroupDecoder, max_rows: int, on_batch: Callable[[int], None]
    ) -> None:
        self.waiting: Sequence[RequestState] = ()
        self.running: Sequence[RequestState] = ()
        self.num_failures_in_a_row = 0
        self._decoder = decoder
        self._max_rows = max_rows
        self._on_batch = on_batch

    @property
    def has_work(self) -> bool:
        return any(not row.is_done for row in self.waiting)

    def step(self, arrivals: Sequence[RequestState]) -> None:
        for row in (*self.waiting, *arrivals):
            row.end_if_late()
        waiting = [row for row in (*self.waiting, *arrivals) if not row.is_done]
        chosen = next_group([row.request for row in waiting], self._max_rows)
        self.running = [waiting[position] for position in chosen]
        self.waiting = [row for row in waiting if row not in self.running]
        if self.running:
            self._run(self.running)
        self.running = ()

    def drop_cancelled(self) -> None:
        """Do nothing: no row is held between two groups."""

    def _run(self, group: Sequence[RequestState]) -> None:
        for row in group:
            row.begin()
        self._on_batch(len(group))
        try:
            self._decoder.set_adapter(group[0].request.adapter)
            self._decoder.generate([row.request for row in group], _GroupSink(group))
            unfinished = [row for row in group if not row.is_done]
            if unfinished:
                raise RuntimeError(f"the decoder left {len(unfinished)} of {len(group)} rows open")
            self.num_failures_in_a_row = 0
        except Exception as error:
            self.num_failures_in_a_row += 1
            fail(group, error)
        finally:
            self._on_batch(0)


class _GroupSink:
    """Implement RowSink (decoder.py) for the requests of one group."""

    def __init__(self, rows: Sequence[RequestState]) -> None:
        self._rows = rows

    def push(self, row: int, token_id: int) -> None:
        self._rows[row].push(token_id)

    def is_done(self, row: int) -> bool:
        return self._rows[row].is_done


def next_group(waiting: Sequence[Request], max_rows: int) -> list[int]:
    """Return the positions in `waiting` of the oldest request and those that may share its batch.

    Returns:
        ascending positions, between 1 and max_rows of them; empty only if `waiting`, which is in
        order of arrival, is empty.
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
