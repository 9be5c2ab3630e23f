"""What the engine asks of a decoder. The reference decoder is in reference.py.

This is the group contract: one adapter is set, a group runs to its end. The step contract of
continuous batching (prefill, decode, set_adapter(row, name), free(row)) comes with the fast
decoders; docs/decisions.md says why they are two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deployments.engine.request import Request


class RowSink(Protocol):
    """Takes the tokens of a group as they come."""

    def push(self, row: int, token_id: int) -> None:
        """Row `row` (its index in the group) got its next token. Ignored once the row is done."""

    def is_done(self, row: int) -> bool:
        """True when the row has ended (end of sequence, length, stop string, cancelled)."""


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """What a decoder is and can do, for /readyz and for the engine's limits."""

    name: str  # "reference"
    reason: str  # why this decoder and this dtype were chosen
    device: str
    dtype: str
    num_positions: int | None  # prompt + answer, in tokens; None: not bounded by the model
    eos_ids: frozenset[int]
    adapters: tuple[str, ...]


class GroupDecoder(Protocol):
    """Runs one group of requests, all for one adapter, from prompt to end."""

    @property
    def info(self) -> DecoderInfo: ...

    def set_adapter(self, name: str | None) -> None:
        """Make `name` the adapter of the next group; None: the base model alone."""

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        """Generate for the whole group, pushing each token to `sink` as it is picked.

        Returns when every row is done. All requests share one adapter, and either all are greedy
        or there is one. A row that is done in `sink` no longer counts, and the call returns at
        the latest one step after the last row is done.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Token ids -> text, without special tokens."""
