"""What OpenAI's requests ask for: turns, prompts, sampling; and its code for what is too long."""

from collections.abc import Mapping
from dataclasses import replace

from adapters.prompting import Message, Role
from adapters.token_prompts import BadTokenId
from deployments.api.errors import ApiError, engine_error, invalid
from deployments.api.openai.structure import engine_words
from deployments.api.protocol.openai import ChatRequest, CompletionRequest, OpenAIRequest
from deployments.api.protocol.structure import Structure
from deployments.api.request_body import (
    check_characters,
    check_count,
    check_length,
    check_text,
    has_latin_letter,
)
from deployments.api.request_errors import shown
from deployments.engine.request import ErrorInfo, SamplingParams
from deployments.messages import Backend, ServedModels
from deployments.setting_sections import GroundingMode

MAX_MESSAGES = 256
# As vLLM does: below it, drawing takes the likeliest token too, and float32 overflows far below.
_LEAST_TEMPERATURE = 1e-5
_PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "loop_words": 0}
# What is too long, in our words. OpenAI has one code for it, and clients drop old turns on it.
_TOO_LONG = ("prompt_too_long", "output_too_long", "text_too_long", "body_too_large")
# LangChain and LiteLLM look for these words in the message. The engine's messages hold them.
_LOOKED_FOR = "context_length_exceeded: this model's maximum context length is exceeded"


def in_openais_words(error: ApiError, param: str) -> ApiError:
    """Return `error` as OpenAI's clients know it. `param`: the field with the turns or the text."""
    if error.code in _TOO_LONG:
        message = error.message
        if error.code not in ("prompt_too_long", "output_too_long"):
            message = f"{_LOOKED_FOR}: {message}"
        return ApiError(400, "context_length_exceeded", message, param=param, detail=error.detail)
    if error.param == "question":
        error.param = param
    return error


def openai_engine_error(
    error: ErrorInfo, *, param: str, structure: Structure | None = None
) -> ApiError:
    """Return the ApiError of an engine's error on OpenAI's paths.

    Args:
        structure: what the answer was to keep to.
    """
    return engine_words(in_openais_words(engine_error(error), param), structure)


def chat_turns(asked: ChatRequest, max_chars: int) -> tuple[Message, ...]:
    """Return the turns of the messages; the last is the user's.

    What the system says after the last turn of the user's is put before it.

    Raises:
        ApiError: 400; there are too many, the last message is the assistant's, a text has a
            character that is not allowed, or no turn of the user's can be classified.
    """
    check_count("messages", len(asked.messages), MAX_MESSAGES, code="text_too_long")
    turns = []
    for position, message in enumerate(asked.messages):
        check_characters(f"messages.{position}.content", message.text)
        role: Role = "system" if message.role == "developer" else message.role
        turns.append(Message(role, message.text))
    last = max((i for i, turn in enumerate(turns) if turn.role != "system"), default=-1)
    if last < 0 or turns[last].role != "user":
        found = asked.messages[last].role
        raise invalid("messages", f"the last one has role '{found}': it must be the user's")
    check_length("messages", sum(len(turn.content) for turn in turns), max_chars=max_chars)
    to_check = [(i, turn.content) for i, turn in enumerate(turns) if turn.role == "user"]
    if any(has_latin_letter(text) for _, text in to_check):
        # A follow-up such as "42" needs no letter; only an empty last turn asks for nothing.
        to_check = [(i, text) for i, text in to_check[-1:] if not text.strip()]
    for i, text in to_check:
        check_text(f"messages.{i}.content", text, max_chars=max_chars)
    return (*turns[:last], *turns[last + 1 :], turns[last])


async def prompt_texts(asked: CompletionRequest, backend: Backend) -> dict[str, str]:
    """Return the text of each prompt by its path in the body.

    Raises:
        ApiError: 400; there are too many, one is no question, or a token id stands for no text.
    """
    limits, prompts = backend.limits, asked.prompts
    check_count("prompt", len(prompts), limits.max_prompts)
    ids = {path: prompt for path, prompt in prompts.items() if not isinstance(prompt, str)}
    texts = {path: prompt for path, prompt in prompts.items() if isinstance(prompt, str)}
    for path, token_ids in ids.items():
        check_length(path, len(token_ids), max_chars=limits.max_question_chars, what="token ids")
    if ids:
        decoded = await backend.decode(list(ids.values()))
        if isinstance(decoded, BadTokenId):
            path = f"{list(ids)[decoded.prompt]}.{decoded.position}"
            raise invalid(path, decoded.reason, code="invalid_token_id")
        texts |= zip(ids, decoded, strict=True)
    for path, text in texts.items():
        check_text(path, text, max_chars=limits.max_question_chars)
    return texts


def continued_prompts(
    asked: CompletionRequest, max_chars: int, max_prompts: int
) -> dict[str, str | tuple[int, ...]]:
    """Return what is continued as it stands, by its path in the body: with `echo`, every prompt.

    Raises:
        ApiError: 400; nobody is named to continue it, there are too many, or one is too long.
    """
    if not asked.is_echoed:
        return {}
    if asked.model_name == "auto":
        raise invalid(
            "echo",
            "the prompt is continued as it stands, and not routed: put an adapter's name, or base, "
            "in model",
            code="conflicting_fields",
        )
    prompts = asked.prompts
    check_count("prompt", len(prompts), max_prompts)
    for path, prompt in prompts.items():
        what = "characters" if isinstance(prompt, str) else "token ids"
        check_length(path, len(prompt), max_chars=max_chars, what=what)
        if isinstance(prompt, str):
            check_characters(path, prompt)
    return {path: p if isinstance(p, str) else tuple(p) for path, p in prompts.items()}


def checked_mode(asked: OpenAIRequest, mode: GroundingMode) -> GroundingMode:
    """Return how the answer stands on references: not at all where the model's own text is asked
    for, unless the request names a mode.

    Args:
        mode: the request's, or else the operator's.

    Raises:
        ApiError: 400; the request asks for both.
    """
    own = {"echo": asked.is_echoed, "logprobs": asked.num_logprobs is not None}
    own |= {structure.path.partition(".")[0]: True for structure in asked.structures}
    for field, is_asked_for in own.items():
        if is_asked_for and asked.grounding is None:
            return "off"
        if is_asked_for and mode != "off":
            raise invalid(
                field,
                f"it is of a text that the model alone writes, and grounding: {mode} asks for one "
                "that stands on references: leave one of them out",
                code="conflicting_fields",
            )
    return mode


def includes_usage(asked: OpenAIRequest) -> bool:
    """Whether a stream ends in a chunk with the usage.

    Raises:
        ApiError: 400; the usage chunk is asked for without a stream.
    """
    wanted = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    if wanted and not asked.stream:
        message = "only with stream: true; leave it out, or set stream"
        raise invalid("stream_options", message, code="conflicting_fields")
    return wanted


def check_choices(num: int, num_prompts: int, most: int) -> None:
    """Raise ApiError, a 400, where `n` choices for each prompt are too many for one request."""
    if num > 1 and num * num_prompts > most:
        raise invalid(
            "n",
            f"{num} choices for each of {num_prompts} prompts are {num * num_prompts} answers, at "
            f"most {most} in one request: lower it, or send fewer prompts",
            limit=most,
        )


def of_choice(sampling: SamplingParams, number: int) -> SamplingParams:
    """Return how a question's choice `number`, from 0, is sampled: with a seed of its own."""
    if not number or sampling.seed is None:
        return sampling
    last = 2**63 - 1
    seed = sampling.seed + number
    return replace(sampling, seed=seed if seed <= last else seed - 2**64)


def is_above_limit(asked: OpenAIRequest, clinic: ServedModels) -> bool:
    """Whether a longer answer is asked for than this server gives."""
    return (asked.num_tokens_asked[1] or 0) > clinic.max_output_tokens


def sampling_of(
    asked: OpenAIRequest, clinic: ServedModels, grammar: str | None = None
) -> SamplingParams:
    """Return how tokens are picked: greedily unless a temperature above 0 is given.

    A `max_tokens` above the server's limit stands for the limit: clients send 1000 or 4096 unasked.
    The base model's own rules against repetition do not apply to an answer with a grammar, which
    repeats the grammar's words.

    Raises:
        ApiError: 400 naming the field and the limit.
    """
    param, value = asked.num_tokens_asked
    if value == 0 and not asked.is_echoed:
        raise invalid(param, "0 asks for no answer: at least 1, or send echo: true too")
    wanted = clinic.default_output_tokens if value is None else value
    max_tokens = min(wanted, clinic.max_output_tokens)
    min_tokens = asked.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(
            "min_tokens",
            f"{shown(min_tokens)} is above the longest answer of {max_tokens} tokens: lower it, "
            f"or raise {param}",
            limit=max_tokens,
        )
    stop = asked.stop_strings
    if "" in stop:
        raise invalid("stop", "holds an empty string")
    if grammar is not None:
        _check_free_of(asked, {"stop": bool(stop), "min_tokens": min_tokens > 0})
    penalty, temperature = asked.repetition_penalty, asked.temperature or 0.0
    own = {} if grammar is None else _PLAIN
    return clinic.sampling(
        max_tokens,
        temperature=0.0 if temperature < _LEAST_TEMPERATURE else temperature,
        top_p=asked.top_p or 1.0,
        seed=asked.seed,
        stop=stop,
        top_k=max(asked.top_k or 0, 0),
        min_tokens=min_tokens,
        logprobs=asked.num_logprobs,
        echo=asked.is_echoed,
        grammar=grammar,
        **(own if penalty is None else own | {"repetition_penalty": penalty}),
    )


def _check_free_of(asked: OpenAIRequest, others: Mapping[str, bool]) -> None:
    """Raise ApiError, a 400, for a field that would cut or stretch an answer with a grammar."""
    for name, is_asked_for in {**others, "echo": asked.is_echoed}.items():
        if is_asked_for:
            path = asked.structures[0].path
            message = f"with {path}, which says where the answer ends: leave one of them out"
            raise invalid(name, message, code="conflicting_fields")
