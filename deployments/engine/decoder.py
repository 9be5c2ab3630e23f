"""Define what the engine asks of a decoder and of its loop, for each of two ways of generating.

Step contract (continuous batching; model_runner.py): rows join and leave between any two steps,
each with its own adapter. Group contract (peft_decoder.py): one adapter is set, a group runs to its
end. docs/decisions.md says why there are two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from deployments.engine.errors import EngineError
from deployments.engine.request import Request, SchedulerOutput, TokenScore
from deployments.engine.row import EngineRow

if TYPE_CHECKING:
    from deployments.engine.structured.grammar import GrammarCompiler


@dataclass(frozen=True, slots=True)
class DecoderInfo:
    """Describe a decoder, for /readyz and for the engine's limits.

    adapters: the resident ones; the same object until one is loaded or evicted.
    """

    name: str  # "fast" or "reference"
    reason: str  # why this decoder and this dtype were chosen
    device: str
    dtype: str
    num_positions: int | None  # prompt + answer, in tokens; None: not bounded by the model
    eos_ids: frozenset[int]
    adapters: frozenset[str]
    hidden_ids: frozenset[int] = frozenset()  # special tokens, which are no text
    weights: str = ""  # how the base model's are kept, and why
    batch_invariant: bool = False  # whether logits depend on nothing that is computed beside them
    batch_invariant_reason: str = ""
    threads: int | None = None  # of the processor that a step may use; None: on a GPU
    kv_cache_dtype: str = ""  # of keys and values; empty: the decoder plans none
    rows: Mapping[str, Any] = field(default_factory=dict)  # asked for and given, and why
    refuses: Mapping[str, str] = field(default_factory=dict)  # what it cannot do, by field, and why
    side_positions: int | None = None  # of a prompt and of an answer, each; None: not bounded
    forces_end: bool = False  # the last token that an answer may have ends it, whatever it was
    num_token_ids: int | None = None  # that the base model has an embedding of; None: not known

    def room_after(self, num_prompt_tokens: int) -> int | None:
        """Return how many tokens an answer may have behind a prompt; None: not bounded."""
        sides = [self.side_positions]
        if self.num_positions is not None:
            sides.append(self.num_positions - num_prompt_tokens)
        return min((side for side in sides if side is not None), default=None)

    def longest_prompt(self, limit: int) -> int:
        """Return the longest prompt that fits, at most `limit`."""
        sides = (limit, self.num_positions, self.side_positions)
        return min(side for side in sides if side is not None)


class AsyncTokens(Protocol):
    """Hold the tokens of a step that may still be running on the device."""

    @property
    def scores(self) -> Mapping[int, Sequence[TokenScore]]:
        """Return row -> the scores of its token, of the rows that ask, once `wait` has returned;
        with `echo` those of its prompt come before the first."""

    @property
    def failures(self) -> Mapping[int, EngineError]:
        """Return the rows that cannot go on, and why: their tokens mean nothing."""

    def wait(self) -> Mapping[int, int]:
        """Wait for the step and return row -> its new token; raises what the step raised."""


@runtime_checkable
class StepDecoder(Protocol):
    """Take all rows one token further, each row with its own adapter.

    One thread calls it. A row's life: `set_adapter`, then steps that read its prompt and make its
    tokens, then `free`. A row keeps the adapter that was set to its end, even if that adapter is
    replaced or evicted meanwhile.
    """

    capacities: tuple[int, ...]  # positions of each row: what the scheduler may promise
    can_split_prompts: bool  # whether a prompt may be read over several steps
    num_steps_ahead: int  # launched before the first one's tokens are waited for
    num_prompts_together: int  # short prompts that cost about as much to read as one

    @property
    def info(self) -> DecoderInfo: ...

    @property
    def grammars(self) -> "GrammarCompiler":
        """Return what compiles the grammars of this model's answers; any thread may use it."""

    def set_adapter(self, row: int, name: str | None) -> None:
        """Begin an answer in `row` with adapter `name`; None is the base model alone.

        Raises:
            EngineError: `name` is not resident.
        """

    def step(self, scheduled: SchedulerOutput) -> AsyncTokens:
        """Prefill the chunks, decode the rows, pick the tokens of `scheduled.emits`."""

    def free(self, row: int) -> None:
        """End the row's answer; another request may get its row at once."""

    def reset(self) -> None:
        """Free every row, after a step that raised."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for (detokenizer.py)."""


@runtime_checkable
class PrefixDecoder(Protocol):
    """Let a row begin behind tokens that a row has read before: for some step decoders."""

    can_reuse_prefixes: bool
    can_reuse_answers: bool  # whether what a step wrote is as good as what was read

    def generation(self, adapter: str | None) -> int:
        """Return a number for the weights that `adapter` has now, which no others have or had."""

    def reuse_prefix(self, row: int, source: int, num_tokens: int) -> None:
        """Begin `row`, after its `set_adapter`, with the first positions of row `source`, which
        may be itself. Its prompt is read from `num_tokens` on."""


@runtime_checkable
class DraftDecoder(Protocol):
    """Try several tokens of a row in one step, and wait for it: for some step decoders."""

    can_try_drafts: bool
    drafted_rows: int  # with more than that in a step, guesses do not pay
    draft_tokens: int  # of all rows together, newest and guessed, that one step takes

    def step_drafts(self, lines: Mapping[int, Sequence[int]]) -> Mapping[int, list[int]]:
        """Decode rows by one token, and by as many more as were guessed rightly.

        Args:
            lines: row -> its newest token, and those that may follow it.

        Returns row -> its new tokens, at least one: the same as from steps without guesses.
        """


class RowSink(Protocol):
    """Take the tokens of a group as they come."""

    def push(self, row: int, token_id: int) -> None:
        """Take the next token of `row`, its index in the group. Ignored once the row is done."""

    def is_done(self, row: int) -> bool:
        """Return whether the row has ended: end of sequence, length, stop string, cancelled."""


class GroupDecoder(Protocol):
    """Run one group of requests, all with one adapter, from prompt to end."""

    @property
    def info(self) -> DecoderInfo: ...

    @property
    def grammars(self) -> "GrammarCompiler": ...

    def set_adapter(self, name: str | None) -> None:
        """Make `name` the adapter of the next group; None is the base model alone."""

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        """Generate for the whole group, pushing each token to `sink` as it is picked.

        Returns when every row is done. All requests share one adapter, and either all pick the
        largest logit or there is only one. Returns at the latest one step after the last row is
        done in `sink`.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for (detokenizer.py)."""


class EngineLoop(Protocol):
    """Take requests in, and run one step or one group at a time."""

    num_failures_in_a_row: int

    @property
    def has_work(self) -> bool: ...

    @property
    def num_waiting(self) -> int:
        """Return the requests that have no row yet, among those that it has taken in."""

    def pause(self) -> None:
        """Give back the rows of requests that were cancelled: tasks come before the next step."""

    def step(self, arrivals: Sequence[EngineRow]) -> None:
        """Take the arrivals in, and run one step or one group.

        If the decoder raises, what it was running ends with an error; the others are served.
        """
