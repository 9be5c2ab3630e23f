"""Hold what the scheduler knows of a request, and what it decides for one step. Plain data."""

from dataclasses import dataclass

from deployments.engine.request import Request


@dataclass(slots=True, eq=False)
class SequenceState:
    """Hold the progress of one request. Only the scheduler writes to it.

    `row` stays after the sequence has given the row back: its tokens come under that number.
    """

    request: Request
    deadline: float | None  # on the clock of `schedule`
    row: int | None = None
    holds_row: bool = False
    num_prefilled: int = 0  # prompt tokens scheduled so far
    num_scheduled: int = 0  # answer tokens scheduled so far
    is_finished: bool = False

    @property
    def num_positions(self) -> int:
        """Return the positions that the whole answer may need."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.request.prompt_ids)

    @property
    def is_fully_scheduled(self) -> bool:
        """Return whether every token that it may have is scheduled."""
        return self.is_prefilled and self.num_scheduled == self.request.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Name the prompt tokens [start, stop) of a row that one step reads. Half-open."""

    row: int
    request: Request
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """Describe one step. `emits` get one token each, in this order: last chunks, then `decode`."""

    expired: tuple[SequenceState, ...]  # their deadline passed; their rows are free already
    released: tuple[int, ...]  # rows of the expired, and of those whose last token is scheduled
    admitted: tuple[SequenceState, ...]
    prefill: tuple[PrefillChunk, ...]
    decode: tuple[int, ...]  # rows
    emits: tuple[SequenceState, ...]

    @property
    def is_empty(self) -> bool:
        return not self.prefill and not self.decode
