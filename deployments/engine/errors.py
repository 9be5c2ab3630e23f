"""The engine's errors, as a tree.

EngineError                     `error_classes()` lists the tree
+-- RequestRefused              before queuing; has a code, a param and a message for the client
|   +-- EmptyPrompt             there is nothing to answer
|   +-- BadPromptToken          a token id that this model does not have
|   +-- PromptTooLong           the prompt is longer than the server accepts
|   +-- OutputTooLong           the prompt and the answer cannot fit
|   +-- TooManyScores           a prompt's log-probabilities are more than one answer may hold
|   +-- NotForThisModel         a field asks for what this model or decoder cannot do
|   +-- InvalidGrammar          no answer can keep to the structure that is asked for
|   +-- QueueFull               no capacity; carries retry_after_s
|   +-- UnknownAdapter          not loaded on this replica
+-- StructureFailed             a structure became too complex while its answer was written
+-- DecoderFailed               the decoder raised while this request was in its batch
+-- EngineStopped               the loop has died or is shutting down; replace the replica
+-- AdapterNotSupported         the adapter has features that the decoder cannot serve
+-- AdapterHasNoEffect          the adapter loads, and its logits are those of the base
+-- LoraPoolError               the adapter does not fit, is not resident, or finds no free slot
+-- FastDecoderImpossible       `decoder: fast` was asked for, and this model cannot have it
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deployments.engine.request import ErrorInfo, SamplingParams

_FEATURE_HINT = "serve it with `decoder: reference`, or train it as plain LoRA on linear layers"


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


class BadPromptToken(RequestRefused):
    code = "invalid_token_id"
    param = "question"

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"position {position}: {reason}")


def check_token_ids(prompt_ids: Sequence[int], num_token_ids: int) -> None:
    """Raise BadPromptToken if a prompt has a token that the base model has no embedding of."""
    if not prompt_ids or max(prompt_ids) < num_token_ids:
        return
    position = next(i for i, token_id in enumerate(prompt_ids) if token_id >= num_token_ids)
    raise BadPromptToken(
        position,
        f"token id {prompt_ids[position]} is not in the base model's vocabulary, which has the ids "
        f"0 to {num_token_ids - 1}; its tokenizer has more: leave that token out",
    )


class PromptTooLong(RequestRefused):
    code = "prompt_too_long"
    param = "question"

    def __init__(self, num_prompt_tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt is {num_prompt_tokens} tokens long; this server accepts at most {limit} "
            f"(context_length_exceeded: this model's maximum context length is {limit} tokens): "
            "shorten the question or drop the oldest turns"
        )


class OutputTooLong(RequestRefused):
    code = "output_too_long"
    param = "max_tokens"

    def __init__(self, num_prompt_tokens: int, max_tokens: int, num_positions: int) -> None:
        super().__init__(
            f"the prompt ({num_prompt_tokens} tokens) and max_tokens ({max_tokens}) exceed the "
            f"{num_positions} positions of one answer (context_length_exceeded: this model's "
            f"maximum context length is {num_positions} tokens): ask for at most "
            f"{max(0, num_positions - num_prompt_tokens)} tokens"
        )


MAX_PROMPT_SCORES = 200_000  # some 5 MB on their way, 20 MB as JSON


class TooManyScores(RequestRefused):
    code = "too_many_scores"
    param = "logprobs"

    def __init__(self, num_prompt_tokens: int, logprobs: int) -> None:
        most = max(0, MAX_PROMPT_SCORES // num_prompt_tokens - 1)
        super().__init__(
            f"echo: the {num_prompt_tokens} tokens of the prompt with their {logprobs} most likely "
            f"ones are {num_prompt_tokens * (1 + logprobs)} log-probabilities; at most "
            f"{MAX_PROMPT_SCORES} in one answer: ask for logprobs up to {most}, or for parts of "
            "the text"
        )


def check_scores(sampling: SamplingParams, num_prompt_tokens: int) -> None:
    """Raise TooManyScores if the prompt's log-probabilities are more than one answer may hold."""
    each = 0 if sampling.logprobs is None or not sampling.echo else 1 + sampling.logprobs
    if num_prompt_tokens * each > MAX_PROMPT_SCORES:
        raise TooManyScores(num_prompt_tokens, each - 1)


class NotForThisModel(RequestRefused):
    code = "not_for_this_model"

    def __init__(self, param: str, why: str) -> None:
        super().__init__(f"{param}: {why}: leave it out")
        self.param = param


def check_features(sampling: SamplingParams, refuses: Mapping[str, str]) -> None:
    """Raise NotForThisModel for the first feature that is asked for and refused.

    Args:
        refuses: DecoderInfo.refuses.
    """
    asked = {
        "logprobs": sampling.logprobs is not None,
        "echo": sampling.echo,
        "structure": sampling.grammar is not None,
    }
    for name, why in refuses.items():
        if asked.get(name):
            raise NotForThisModel(name, why)


class InvalidGrammar(RequestRefused):
    code = "invalid_schema"
    param = "structure"

    def __init__(self, why: str) -> None:
        super().__init__(f"no answer can keep to it: {why.strip()}")


class StructureFailed(EngineError):
    code = "structure_failed"

    def __init__(self, why: str) -> None:
        super().__init__(f"the structure became too complex to follow ({why}): simplify it")


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
