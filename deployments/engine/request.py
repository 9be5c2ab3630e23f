"""Define what goes into the engine, what comes out of it, and its errors. No torch.

EngineError                     `error_classes()` lists the tree
+-- RequestRefused              before queuing; has a code, a param and a message for the client
|   +-- EmptyPrompt             there is nothing to answer
|   +-- PromptTooLong           the prompt is longer than the server accepts
|   +-- OutputTooLong           the prompt and the answer cannot fit
|   +-- QueueFull               no capacity; carries retry_after_s
|   +-- UnknownAdapter          not loaded on this replica
+-- DecoderFailed               the decoder raised while this request was in its batch
+-- EngineStopped               the loop has died or is shutting down; replace the replica
+-- AdapterNotSupported         the adapter has features that the decoder cannot serve
+-- AdapterHasNoEffect          the adapter loads, and its logits are those of the base
+-- LoraPoolError               the adapter does not fit, is not resident, or finds no free slot
+-- FastDecoderImpossible       `decoder: fast` was asked for, and this model cannot have it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Hold an EngineError as plain data, which can be sent to another process."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None


class EngineError(Exception):
    """Carry a stable `code` and a text for the client. Base of all that the engine raises."""

    code = "engine_error"
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def info(self) -> ErrorInfo:
        return ErrorInfo(self.code, str(self), self.param, self.retry_after_s)


def error_classes() -> tuple[type[EngineError], ...]:
    """Return EngineError and all its subclasses that are imported, for a table of their codes."""
    found: list[type[EngineError]] = [EngineError]
    for error in found:  # grows while it is walked
        found += [sub for sub in error.__subclasses__() if sub not in found]
    return tuple(found)


class RequestRefused(EngineError):
    """Refuse a request before it is queued; nothing was generated."""

    code = "refused"


class EmptyPrompt(RequestRefused):
    code = "empty_prompt"
    param = "question"

    def __init__(self) -> None:
        super().__init__("the prompt has no tokens: ask a question")


class PromptTooLong(RequestRefused):
    code = "prompt_too_long"
    param = "question"

    def __init__(self, num_prompt_tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt is {num_prompt_tokens} tokens long; this server accepts at most {limit}: "
            "shorten the question or drop the oldest turns"
        )


class OutputTooLong(RequestRefused):
    code = "output_too_long"
    param = "max_tokens"

    def __init__(self, num_prompt_tokens: int, max_tokens: int, num_positions: int) -> None:
        super().__init__(
            f"the prompt ({num_prompt_tokens} tokens) and max_tokens ({max_tokens}) exceed the "
            f"{num_positions} positions of one answer: ask for at most "
            f"{max(0, num_positions - num_prompt_tokens)} tokens"
        )


class QueueFull(RequestRefused):
    code = "queue_full"
    retry_after_s = 2

    def __init__(self, num_waiting: int, limit: int) -> None:
        super().__init__(f"{num_waiting} requests are waiting (limit {limit}): try again later")


class UnknownAdapter(RequestRefused):
    code = "unknown_adapter"
    param = "model"

    def __init__(self, adapter: str, known: frozenset[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"adapter '{adapter}' is not loaded on this replica (loaded: {listed})")


_FEATURE_HINT = "serve it with `decoder: reference`, or train it as plain LoRA on linear layers"


class DecoderFailed(EngineError):
    code = "decoder_failed"


class EngineStopped(EngineError):
    code = "engine_stopped"
    retry_after_s = 5


class AdapterNotSupported(EngineError):
    """Name all features of an adapter that the decoder cannot serve."""

    code = "adapter_not_supported"

    def __init__(
        self,
        directory: Path,
        problems: Sequence[str],
        hint: str = _FEATURE_HINT,
    ) -> None:
        self.problems = list(problems)
        super().__init__(f"adapter {directory}: {'; '.join(problems)}: {hint}")


class AdapterHasNoEffect(EngineError):
    """Report an adapter whose logits are those of the base, or are not finite."""

    code = "adapter_has_no_effect"


class LoraPoolError(EngineError):
    """Report an adapter that the pool cannot hold, or does not hold."""

    code = "adapter_bank_refused"


class FastDecoderImpossible(EngineError):
    """Report that `decoder: fast` is set and cannot serve this model or an adapter."""

    code = "fast_decoder_impossible"


class FinishReason(StrEnum):
    """Say why an answer ended. The first two are OpenAI's."""

    STOP = "stop"  # end-of-sequence token, or a stop string
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the client left
    TIMEOUT = "timeout"  # the request's deadline passed
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Say how tokens are picked. temperature 0 is greedy: top_k, top_p and seed have no effect.

    `top_k` 0 and `repetition_penalty` 1 mean off. No end-of-sequence token is picked before
    `min_tokens` tokens. Without a `seed`, a sampled answer differs from run to run.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: at least 1")
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
        if "" in self.stop:
            raise ValueError("stop holds an empty string: it would end every answer at once")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def is_argmax(self) -> bool:
        """Return whether the next token is the one with the largest unchanged logit."""
        return self.is_greedy and self.repetition_penalty == 1 and self.min_tokens == 0


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for one answer. `adapter` None is the base model alone.

    `deadline_s`: seconds after acceptance at which the answer ends as `timeout`; None: never.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    adapter: str | None
    sampling: SamplingParams
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Count seconds since the engine accepted the request; None: not reached."""

    queue_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Carry a piece of an answer. Only the last event of a request has a `finish_reason`.

    `text` is the newly decoded text. It may be empty: an unfinished character, or a possible start
    of a stop string, is held back. `num_tokens` counts all the tokens so far.
    """

    request_id: str
    text: str
    num_tokens: int
    num_prompt_tokens: int
    timings: Timings
    finish_reason: FinishReason | None = None
    error: ErrorInfo | None = None


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
