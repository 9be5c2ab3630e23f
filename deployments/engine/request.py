"""Define what goes into the engine, what is scheduled of it, and what comes out. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Hold an EngineError as plain data, which can be sent to another process."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None


class FinishReason(StrEnum):
    """Say why an answer ended. The first two are OpenAI's."""

    STOP = "stop"  # end-of-sequence token, or a stop string
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the client left
    LOOP = "loop"  # it was about to say the same words a third time
    TIMEOUT = "timeout"  # the request's deadline passed
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Say how tokens are picked. temperature 0 is greedy: top_k, top_p and seed have no effect.

    `top_k` 0 and `repetition_penalty` 1 mean off. No end-of-sequence token is picked before
    `min_tokens` tokens. Without a `seed`, a sampled answer differs from run to run. No sequence of
    `no_repeat_ngram_size` tokens comes twice, the prompt's included, and an answer ends before it
    says the same `loop_words` words a third time, unless `min_tokens` is set; 0 means off for both.
    `logprobs`: each token comes with its log-probability, and with so many of the most likely
    tokens in its place; None for none. With `echo`, the prompt's text and tokens come before the
    answer's, and `max_tokens` may be 0. `grammar`: what the answer keeps to
    (structured/grammar.py).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    loop_words: int = 0
    logprobs: int | None = None
    echo: bool = False
    grammar: str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < (0 if self.echo else 1):
            raise ValueError(f"max_tokens is {self.max_tokens}: at least 1, or 0 with echo")
        if self.grammar is not None and (self.min_tokens or self.stop or self.echo):
            raise ValueError("a grammar says where the answer ends: no min_tokens, stop, echo")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs is {self.logprobs}: at least 0")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}: at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: at least 0 (off)")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}: above 0")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}: from 0 to max_tokens ({self.max_tokens})"
            )
        for name in ("no_repeat_ngram_size", "loop_words"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 0 (off)")
        if "" in self.stop:
            raise ValueError("stop holds an empty string: it would end every answer at once")

    @property
    def num_steps(self) -> int:
        """Return how many tokens are picked at most: one, unseen, where none is asked for."""
        return max(1, self.max_tokens)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalty(self) -> bool:
        """Return whether what was said changes the scores of what comes next."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    @property
    def is_argmax(self) -> bool:
        """Return whether the next token is the one with the largest unchanged logit."""
        is_plain = self.min_tokens == 0 and self.grammar is None
        return self.is_greedy and not self.has_penalty and is_plain


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for one answer. `adapter` None is the base model alone.

    `deadline_s`: seconds after acceptance at which the answer ends as `timeout`; None: never.
    `is_logged`: the engine writes a record when it begins and when it ends. `tenant`: whose it is;
    only requests of one tenant share what was read of their prompts.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    adapter: str | None
    sampling: SamplingParams
    deadline_s: float | None = None
    is_logged: bool = False
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class ForcedTokens:
    """Name the tokens of an answer that are not the model's choice.

    first: the language of a translation, for one. last: the one in the last place that an answer
    may have.
    """

    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Count seconds since the engine accepted the request; None: not reached."""

    queue_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None


class TokenScore(NamedTuple):
    """A token's natural log-probability as the model gives it, before temperature and penalties.

    logprob: None for a prompt's first token.
    top: the most likely tokens in its place, and their log-probabilities; the likeliest first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Drafts(NamedTuple):
    """Count tokens that were guessed, and those of them that were the answer's next ones."""

    num_guessed: int
    num_accepted: int

    def plus(self, other: "Drafts") -> "Drafts":
        return Drafts(self.num_guessed + other.num_guessed, self.num_accepted + other.num_accepted)


NO_DRAFTS = Drafts(0, 0)


class ScoredToken(NamedTuple):
    """A TokenScore with texts.

    text: `bytes:\\xe2\\x80` where the bytes are no whole characters.
    offset: characters of the text before the token's own.
    top: the text, bytes and log-probability of each.
    is_text: false for a special token, which has a name and no text.
    """

    text: str
    data: bytes
    offset: int
    logprob: float | None
    top: tuple[tuple[str, bytes, float], ...]
    is_text: bool


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Carry a piece of an answer. Only the last event of a request has a `finish_reason`.

    `text` is the newly decoded text. It may be empty: an unfinished character, or a possible start
    of a stop string, is held back. `num_tokens` counts all the tokens so far. `scores`: of the
    tokens of `text`, where they were asked for. `num_cached_tokens`: prompt tokens that were not
    read again, since a row held them; it and `drafts` count nothing before the last event.
    """

    request_id: str
    text: str
    num_tokens: int
    num_prompt_tokens: int
    timings: Timings
    finish_reason: FinishReason | None = None
    error: ErrorInfo | None = None
    scores: tuple[ScoredToken, ...] = ()
    num_cached_tokens: int = 0
    drafts: Drafts = NO_DRAFTS


def failed_event(request_id: str, error: ErrorInfo) -> TokenEvent:
    """Return the only event of a request for which nothing was generated."""
    return TokenEvent(
        request_id=request_id,
        text="",
        num_tokens=0,
        num_prompt_tokens=0,
        timings=Timings(),
        finish_reason=FinishReason.ERROR,
        error=error,
    )


class StartedRow(NamedTuple):
    """Say that the first step of a request is about to run."""

    number: int
    num_cached_tokens: int  # of its prompt, which are not read again


class EndedRow(NamedTuple):
    """Say how the engine ended a request."""

    number: int
    reason: FinishReason
    num_tokens: int  # all that it made, an end-of-sequence token included
    error: ErrorInfo | None


@dataclass(slots=True)
class StepOutput:
    """Hold what one step made, for all requests together, by their numbers.

    `numbers` and `tokens` go together: the request and its next token. An end-of-sequence token is
    not among them, but in `scores`, by number, where they were asked for. `drafts` are those of the
    answers for which something was guessed, by number.
    """

    started: list[StartedRow] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended: list[EndedRow] = field(default_factory=list)
    scores: dict[int, list[TokenScore]] = field(default_factory=dict)
    drafts: dict[int, Drafts] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.started or self.numbers or self.ended)


class Prefix(NamedTuple):
    """Name a row and how many of its first tokens a prompt begins with."""

    row: int
    num_tokens: int


@dataclass(slots=True, eq=False)
class SequenceState:
    """Hold the progress of one request. Only the scheduler writes to it, but for `answer`.

    `row` stays after the sequence has given the row back: its tokens come under that number.
    `prefix`: what it did not have to read. `answer`: its tokens that have reached the host.
    """

    request: Request
    deadline: float | None  # on the clock of `schedule`
    row: int | None = None
    holds_row: bool = False
    num_prefilled: int = 0  # prompt tokens scheduled so far
    num_scheduled: int = 0  # answer tokens scheduled so far
    is_finished: bool = False
    prefix: Prefix | None = None
    answer: list[int] = field(default_factory=list)

    @property
    def num_positions(self) -> int:
        """Return the positions that the whole answer may need."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens

    @property
    def num_unread(self) -> int:
        """Return the prompt tokens that are not scheduled yet."""
        return len(self.request.prompt_ids) - self.num_prefilled

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.request.prompt_ids)

    @property
    def is_fully_scheduled(self) -> bool:
        """Return whether every token that it may have is scheduled."""
        limit = self.request.sampling.max_tokens or 1  # num_steps, without a call for each row
        return self.is_prefilled and self.num_scheduled == limit


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

    @property
    def token_ids(self) -> Sequence[int]:
        return self.request.prompt_ids[self.start : self.stop]


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
