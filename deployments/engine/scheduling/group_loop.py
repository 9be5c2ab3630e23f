"""Run the engine's requests group by group, for a decoder with one active adapter (PEFT).

`generate` takes one adapter and one set of sampling parameters for a whole batch. So a group is one
adapter and plain argmax, or a single request of any other kind. A group starts with the oldest
waiting request, whatever its adapter, so a flood on one adapter delays another adapter's request
by at most one group.
"""

from collections.abc import Sequence

from deployments.engine.decoder import GroupDecoder
from deployments.engine.errors import StructureFailed
from deployments.engine.request import FinishReason, Request
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling.loop import fail


class GroupLoop:
    """Implement EngineLoop (loop.py) for a group decoder.

    Args:
        outbox: takes what the groups make.
    """

    def __init__(self, decoder: GroupDecoder, max_rows: int, outbox: Outbox) -> None:
        self._waiting: Sequence[EngineRow] = ()
        self.num_failures_in_a_row = 0
        self._decoder = decoder
        self._max_rows = max_rows
        self._outbox = outbox

    @property
    def has_work(self) -> bool:
        return any(not row.is_done for row in self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def step(self, arrivals: Sequence[EngineRow]) -> None:
        for row in (*self._waiting, *arrivals):
            row.end_if_late()
        waiting = [row for row in (*self._waiting, *arrivals) if not row.is_done]
        chosen = next_group([row.request for row in waiting], self._max_rows)
        group = [waiting[position] for position in chosen]
        self._waiting = [row for row in waiting if row not in group]
        if group:
            self._run(group)

    def pause(self) -> None:
        """Do nothing: no row is held between two groups."""

    def _run(self, group: Sequence[EngineRow]) -> None:
        for row in group:
            row.begin()
        self._outbox.flush()
        try:
            self._decoder.set_adapter(group[0].request.adapter)
            self._decoder.generate([row.request for row in group], _GroupSink(group, self._outbox))
            unfinished = [row for row in group if not row.is_done]
            if unfinished:
                raise RuntimeError(f"the decoder left {len(unfinished)} of {len(group)} rows open")
            self.num_failures_in_a_row = 0
        except StructureFailed as error:
            group[0].finish(FinishReason.ERROR, error)  # it was alone
        except Exception as error:
            self.num_failures_in_a_row += 1
            fail(group, error)


class _GroupSink:
    """Implement RowSink (decoder.py) for the requests of one group."""

    def __init__(self, rows: Sequence[EngineRow], outbox: Outbox) -> None:
        self._rows = rows
        self._outbox = outbox

    def push(self, row: int, token_id: int) -> None:
        self._rows[row].push(token_id)
        self._outbox.flush()

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
