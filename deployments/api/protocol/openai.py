"""OpenAI's requests: POST /v1/chat/completions and /v1/completions."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag, model_validator

from deployments.api.errors import ApiError
from deployments.api.protocol import neutral
from deployments.api.protocol.ask import MaxTokens
from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.chat_messages import ChatMessage
from deployments.api.protocol.neutral import HINT, Neutral
from deployments.api.protocol.references import Grounding
from deployments.api.protocol.structure import StructuredRequest
from deployments.api.request_errors import shown

# Scores are divided by it: by a smaller one they are no finite numbers in float32.
LEAST_PENALTY = 1e-5


class StreamOptions(RequestModel):
    include_usage: StrictBool | None = None
    include_obfuscation: Annotated[StrictBool | None, HINT] = None
    continuous_usage_stats: Neutral = None


def _kind_of_stop(stop: Any) -> str:
    return "Texts" if isinstance(stop, list) else "Text"


_Stop = Annotated[
    Annotated[StrictStr, Tag("Text")]
    | Annotated[list[StrictStr], Field(max_length=4), Tag("Texts")],
    Discriminator(_kind_of_stop),
]


class OpenAIRequest(StructuredRequest):
    """What /v1/chat/completions and /v1/completions share."""

    _tools = model_validator(mode="before")(neutral.without_uncalled)

    model: StrictStr | None = Field(
        default=None, description="auto or null (the router picks), an adapter's name, or base"
    )
    max_tokens: MaxTokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, description="null: 0, greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    top_k: StrictInt | None = Field(
        default=None,
        ge=-1,
        lt=2**31,
        description="as in vLLM: the k most likely tokens; 0 or -1: all",
    )
    repetition_penalty: float | None = Field(
        default=None,
        ge=LEAST_PENALTY,
        le=2,
        description="as in vLLM: above 1, tokens seen before are less likely",
    )
    min_tokens: StrictInt | None = Field(
        default=None, ge=0, description="as in vLLM: no end of sequence before this many tokens"
    )

    n: neutral.NumChoices = 1

    grounding: Grounding = None  # ours

    # For who caches, stores or counts: they change no answer.
    user: Annotated[StrictStr | None, HINT] = None
    metadata: Annotated[dict[str, Any] | None, HINT] = None
    prompt_cache_key: Annotated[StrictStr | None, HINT] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, HINT] = None
    prompt_cache_retention: Annotated[StrictStr | None, HINT] = None
    safety_identifier: Annotated[StrictStr | None, HINT] = None
    store: Annotated[StrictBool | None, HINT] = None

    # Accepted with a value that asks for nothing, refused by name with another.
    audio: Neutral = None
    best_of: neutral.NeutralCount = None
    frequency_penalty: Neutral = None
    function_call: neutral.NeutralToolChoice = None
    functions: neutral.Tools = None
    logit_bias: neutral.NeutralBias = None
    modalities: neutral.NeutralModalities = None
    moderation: Neutral = None
    parallel_tool_calls: neutral.NeutralFlag = None
    prediction: Neutral = None
    presence_penalty: Neutral = None
    reasoning_effort: neutral.NeutralEffort = None
    service_tier: neutral.NeutralTier = None
    suffix: Neutral = None
    tool_choice: neutral.NeutralToolChoice = None
    tools: neutral.Tools = None
    verbosity: neutral.NeutralVerbosity = None
    web_search_options: neutral.NeutralSearch = None
    # vLLM's.
    add_generation_prompt: neutral.NeutralFlag = None
    add_special_tokens: Neutral = None
    allowed_token_ids: Neutral = None
    bad_words: Neutral = None
    cache_salt: Annotated[StrictStr | None, HINT] = None
    chat_template: Neutral = None
    chat_template_kwargs: neutral.NeutralTemplate = None
    continue_final_message: Neutral = None
    documents: Neutral = None
    ignore_eos: Neutral = None
    include_reasoning: neutral.NeutralFlag = None
    include_stop_str_in_output: Neutral = None
    kv_transfer_params: Neutral = None
    length_penalty: neutral.NeutralOne = None
    logits_processors: Neutral = None
    min_p: Neutral = None
    mm_processor_kwargs: Neutral = None
    priority: Neutral = None
    prompt_logprobs: Neutral = None
    request_id: Annotated[StrictStr | None, HINT] = None
    return_token_ids: Neutral = None
    return_tokens_as_token_ids: Neutral = None
    skip_special_tokens: neutral.NeutralFlag = None
    spaces_between_special_tokens: neutral.NeutralFlag = None
    stop_token_ids: Neutral = None
    truncate_prompt_tokens: Neutral = None
    use_beam_search: Neutral = None
    vllm_xargs: Neutral = None

    @property
    def num_logprobs(self) -> int | None:
        """The likeliest tokens to show in each token's place; None: no log-probabilities."""
        raise NotImplementedError

    @property
    def is_echoed(self) -> bool:
        """Whether the prompt is continued as it stands, and comes before the answer."""
        return False

    @property
    def model_name(self) -> str:
        return "auto" if self.model is None else self.model

    @property
    def num_tokens_asked(self) -> tuple[str, int | None]:
        """The field that bounds the answer, and its value."""
        return "max_tokens", self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(OpenAIRequest):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: MaxTokens | None = None
    logprobs: Annotated[neutral.Flag, Field(description="of each token of the answer")] = None
    top_logprobs: neutral.NumLogprobs = None

    echo: Neutral = None

    @property
    def num_logprobs(self) -> int | None:
        if self.logprobs is True:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise ApiError(
                400,
                "conflicting_fields",
                f"top_logprobs ({self.top_logprobs}): only with logprobs: true; set it, or leave "
                "top_logprobs out",
                param="top_logprobs",
            )
        return None

    @property
    def num_tokens_asked(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is None:
            return "max_tokens", self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise ApiError(
                400,
                "conflicting_fields",
                f"max_tokens ({shown(self.max_tokens)}) and max_completion_tokens "
                f"({shown(self.max_completion_tokens)}) differ: send one of them",
                param="max_completion_tokens",
            )
        return "max_completion_tokens", self.max_completion_tokens


# Token ids are those of the base model's own tokenizer.
TokenIds = list[Annotated[StrictInt, Field(ge=0)]]
_Lists = Annotated[list[TokenIds], Field(min_length=1)]
_Texts = Annotated[list[StrictStr], Field(min_length=1)]


def _kind_of_prompt(prompt: Any) -> str:
    """Tell the four kinds of prompt apart by the first item, so that an error names the item."""
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, list):
        return "Lists"
    if isinstance(first, int) and not isinstance(first, bool):
        return "Ids"
    return "Texts" if isinstance(prompt, list) else "Text"


class CompletionRequest(OpenAIRequest):
    """POST /v1/completions: each prompt is asked as one question, in the serving prompt format.
    With `echo` it is no question, but a text that `model` continues as it stands."""

    prompt: Annotated[
        Annotated[StrictStr, Tag("Text")]
        | Annotated[_Texts, Tag("Texts")]
        | Annotated[TokenIds, Tag("Ids")]
        | Annotated[_Lists, Tag("Lists")],
        Discriminator(_kind_of_prompt),
    ] = Field(
        description="a text, several texts, or token ids of the base model's tokenizer; each is "
        "one question with a choice of its own"
    )
    max_tokens: StrictInt | None = Field(
        default=None, ge=0, description="0, with echo: the prompt alone"
    )
    logprobs: neutral.NumLogprobs = None
    echo: Annotated[
        neutral.Flag,
        Field(description="the prompt's text and tokens come first; needs a `model` by name"),
    ] = None

    top_logprobs: Neutral = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def is_echoed(self) -> bool:
        return self.echo is True

    @property
    def prompts(self) -> dict[str, str | list[int]]:
        """The prompts by their path in the body."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return {"prompt": prompt} if is_one else {f"prompt.{i}": p for i, p in enumerate(prompt)}
