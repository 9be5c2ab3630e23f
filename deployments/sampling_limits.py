"""What a client asks of one answer, within this server's limits: tokens, sampling, time."""

from deployments.calls import Clinic
from deployments.engine.request import SamplingParams
from deployments.schema import ApiError, OpenAIRequest


def sampling_of(asked: OpenAIRequest, clinic: Clinic) -> SamplingParams:
    """Greedy unless a temperature above 0 is given.

    Raises:
        ApiError: 400 naming the field and the limit.
    """
    param, value = asked.num_tokens_asked
    max_tokens = max_tokens_of(param, value, clinic)
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise ApiError(
            400,
            "invalid_value",
            f"min_tokens: {min_tokens} is above the longest answer of {max_tokens} tokens: lower "
            f"it, or raise {param}",
            param="min_tokens",
            detail={"limit": max_tokens},
        )
    stop = asked.stop_strings
    if "" in stop:
        raise ApiError(400, "invalid_value", "stop: holds an empty string", param="stop")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=asked.temperature or 0.0,
        top_p=asked.top_p or 1.0,
        seed=asked.seed,
        stop=stop,
        top_k=asked.top_k or 0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        min_tokens=min_tokens,
    )


def max_tokens_of(param: str, value: int | None, clinic: Clinic) -> int:
    """The longest answer in tokens; raises ApiError (400) above the server's limit."""
    if value is None:
        return clinic.default_output_tokens
    if value > clinic.max_output_tokens:
        raise _above(param, value, clinic.max_output_tokens)
    return value


def timeout_of(value: float | None, max_timeout_s: float) -> float:
    """Seconds that an answer may take; raises ApiError (400) above the server's limit."""
    if value is None:
        return max_timeout_s
    if value > max_timeout_s:
        raise _above("timeout_s", value, max_timeout_s)
    return value


def _above(param: str, value: float, limit: float) -> ApiError:
    return ApiError(
        400,
        "invalid_value",
        f"{param}: {value} is above this server's limit of {limit:g}",
        param=param,
        detail={"limit": limit},
    )
