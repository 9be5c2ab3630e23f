"""What travels between a model replica and the process of its engine, as msgpack frames.

Two socket pairs join them. On `control`, both ways, each frame is a list that begins with a word:

    replica to process   start, add, abort, call, prepare
    process to replica   reply, failure, resident, pulse, stopped, log

On `steps`, from the process only, each frame is what one step made for all requests.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

from deployments.channel.frames import MAX_SCORES, BadFrame, load_frame, pack_frame
from deployments.engine.decoder import DecoderInfo
from deployments.engine.errors import EngineError, error_classes
from deployments.engine.request import (
    Drafts,
    EndedRow,
    ErrorInfo,
    FinishReason,
    Request,
    SamplingParams,
    StartedRow,
    StepOutput,
    TokenScore,
)

_INT = "q"  # 64 bits


def pack_request(number: int, request: Request) -> bytes:
    return pack_frame(
        [
            "add",
            number,
            request.request_id,
            array(_INT, request.prompt_ids).tobytes(),
            request.adapter,
            asdict(request.sampling),
            request.deadline_s,
            request.is_logged,
            request.tenant,
        ]
    )


def unpack_request(
    request_id: str,
    prompt_ids: bytes,
    adapter: str | None,
    sampling: dict[str, Any],
    deadline_s: float | None,
    is_logged: bool,
    tenant: str | None,
) -> Request:
    params = SamplingParams(**sampling | {"stop": tuple(sampling["stop"])})
    ids = tuple(_ints(prompt_ids))
    return Request(request_id, ids, adapter, params, deadline_s, is_logged, tenant)


def pack_step(output: StepOutput) -> bytes:
    ended = [
        [number, str(reason), num_tokens, None if error is None else list(astuple(error))]
        for number, reason, num_tokens, error in output.ended
    ]
    numbers, tokens = array(_INT, output.numbers), array(_INT, output.tokens)
    content: list[Any] = [output.started, numbers.tobytes(), tokens.tobytes(), ended]
    if output.scores or output.drafts:  # nobody else pays for them
        for more in (output.scores, output.drafts):
            content.append({str(number): value for number, value in more.items()})
    return pack_frame(content)


def parts_of(output: StepOutput) -> Iterator[StepOutput]:
    """Yield a step as several whose frames are small enough: what the prompts of several rows
    scored comes in parts, before the tokens of the step."""
    part: dict[int, list[TokenScore]] = {}
    size = 0
    for number, scores in output.scores.items():
        for score in scores:
            part.setdefault(number, []).append(score)
            size += 1 + len(score.top)
            if size >= MAX_SCORES:
                yield StepOutput(scores=part)
                part, size = {}, 0
    yield replace(output, scores=part) if output.scores else output


def unpack_step(payload: bytes) -> StepOutput:
    """Return what a step made.

    Raises:
        BadFrame: The payload is something else.
    """
    found = load_frame(payload)
    try:
        started, numbers, tokens, ended, *more = found
        scored, guessed = more or ({}, {})
        scores = {
            int(number): [
                TokenScore(id_, own, tuple((top, value) for top, value in likely))
                for id_, own, likely in items
            ]
            for number, items in scored.items()
        }
        drafts = {int(number): Drafts(*counts) for number, counts in guessed.items()}
        rows = [
            EndedRow(number, FinishReason(reason), n, None if error is None else ErrorInfo(*error))
            for number, reason, n, error in ended
        ]
        begun = [StartedRow(*each) for each in started]
        return StepOutput(begun, _ints(numbers), _ints(tokens), rows, scores, drafts)
    except (TypeError, ValueError, AttributeError) as error:
        raise BadFrame(f"not what a step makes: {type(error).__name__}") from None


_SETS = ("eos_ids", "hidden_ids", "adapters")


def pack_info(info: DecoderInfo) -> dict[str, Any]:
    return asdict(info) | {name: sorted(getattr(info, name)) for name in _SETS}


def unpack_info(fields: dict[str, Any]) -> DecoderInfo:
    sets = {name: frozenset(fields[name]) for name in _SETS}
    return DecoderInfo(**fields | sets)


def pack_error(error: BaseException) -> list[Any]:
    """Return an exception as plain data: its kind, its name, its text, and its `problems`."""
    kind = "other"
    if isinstance(error, EngineError):
        kind = "engine"
    elif isinstance(error, OSError):
        kind = "os"
    problems = getattr(error, "problems", None)
    return [kind, type(error).__name__, str(error), problems and [str(item) for item in problems]]


def unpack_error(fields: Sequence[Any]) -> Exception:
    """Return the exception that `pack_error` described: of the same class if it is one of the
    engine's, an OSError if it was one, else of a new class with the same name."""
    kind, name, text, problems = fields
    if kind == "os":
        return OSError(text)
    found = {known.__name__: known for known in error_classes()}.get(name)
    if found is None or kind != "engine":
        found = type(name, (EngineError if kind == "engine" else Exception,), {})
    error: Exception = found.__new__(found, text)
    error.args = (text,)
    if problems is not None:
        error.problems = problems  # type: ignore[attr-defined]
    return error


def _ints(data: bytes) -> list[int]:
    return array(_INT, data).tolist()
