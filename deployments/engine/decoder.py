"""What the engine asks of a decoder: two contracts, one for each way of generating.

Step contract (continuous batching; fast.py): rows join and leave between any two steps, each with
its own adapter. Group contract (reference.py): one adapter is set, a group runs to its end.
docs/decisions.md says why they are two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from deployments.engine.request import EngineError, Request
from deployments.engine.scheduler import SchedulerOutput


class AdapterHasNoEffect(EngineError):
    """The adapter loaded, but the logits are those of the base: it would silently do nothing."""

    code = "adapter_has_no_effect"


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """What a decoder is and can do, for /readyz and for the engine's limits."""

    name: str  # "fast" or "reference"
    reason: str  # why this decoder and this dtype were chosen
    device: str
    dtype: str
    num_positions: int | None  # prompt + answer, in tokens; None: not bounded by the model
    eos_ids: frozenset[int]
    adapters: tuple[str, ...]


class AsyncTokens(Protocol):
    """The tokens of a step that may still be running on the device."""

    def wait(self) -> Mapping[int, int]:
        """Row -> its new token. Blocks until the step is done; raises what the step raised."""


@runtime_checkable
class StepDecoder(Protocol):
    """Runs all rows one token further, each row with its own adapter.

    One thread calls it. A row's life: `set_adapter`, then steps that read its prompt and make its
    tokens, then `free`. The adapter that was set stays the row's to its end, whatever is loaded or
    evicted meanwhile.
    """

    @property
    def info(self) -> DecoderInfo: ...

    @property
    def capacities(self) -> Sequence[int]:
        """Positions of each row: what the scheduler may promise."""

    @property
    def can_split_prompts(self) -> bool:
        """Whether a prompt may be read over several steps."""

    @property
    def num_steps_ahead(self) -> int:
        """Steps that may be launched before the first one's tokens are waited for."""

    @property
    def num_prompts_together(self) -> int:
        """Short prompts that cost about as much as one to read."""

    def set_adapter(self, row: int, name: str | None) -> None:
        """`row` begins an answer with adapter `name`; None: the base model alone.

        Raises:
            EngineError: `name` is not resident.
        """

    def step(self, plan: SchedulerOutput) -> AsyncTokens:
        """Prefill the plan's chunks, decode its rows, pick the tokens of `plan.emits`."""

    def free(self, row: int) -> None:
        """The row's answer has ended; its memory may be given to another request at once."""

    def reset(self) -> None:
        """Free every row, after a step that raised."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text, without special tokens."""


class RowSink(Protocol):
    """Takes the tokens of a group as they come."""

    def push(self, row: int, token_id: int) -> None:
        """Row `row` (its index in the group) got its next token. Ignored once the row is done."""

    def is_done(self, row: int) -> bool:
        """True when the row has ended (end of sequence, length, stop string, cancelled)."""


class GroupDecoder(Protocol):
    """Runs one group of requests, all for one adapter, from prompt to end."""

    @property
    def info(self) -> DecoderInfo: ...

    def set_adapter(self, name: str | None) -> None:
        """Make `name` the adapter of the next group; None: the base model alone."""

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        """Generate for the whole group, pushing each token to `sink` as it is picked.

        Returns when every row is done. All requests share one adapter, and either all pick the
        largest logit or there is one. A row that is done in `sink` no longer counts, and the call
        returns at the latest one step after the last row is done.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text, without special tokens."""
