"""OpenAI's replies: chat and text completions, the chunks of a stream, models.

What is ours is under `polyclinic`. `choices[0].finish_reason` keeps to OpenAI's words, since strict
clients refuse any other: an answer that its deadline cut short is a `length` there, and a `timeout`
under `polyclinic.finish_reason`, which is always the true one.
"""

from typing import Annotated, Literal

from pydantic import Field

from deployments.api.protocol.base import AnsweredRoute, Ending, ReplyModel, Usage
from deployments.api.protocol.references import CitationReply, SupportReply
from deployments.messages import ServedModels

OpenAIFinishReason = Annotated[
    Literal["stop", "length"],
    Field(description="length: cut short, by max_tokens, its deadline, or a loop"),
]


class _RequestId(ReplyModel):
    request_id: str


class PolyclinicOpening(AnsweredRoute, _RequestId):
    """What is ours in the first chunk of a stream."""

    citations: list[CitationReply] = Field(
        default=[], description="the passages, by number; left out where grounding is off"
    )
    advice: str = Field(
        default="",
        description="with notice urgent, of an answer that keeps to a structure: what "
        "any other answer begins with",
    )


class _Checked(ReplyModel):
    support: list[SupportReply] = Field(
        default=[], description="as in /ask's reply; left out where grounding is off"
    )


class PolyclinicPart(_Checked, Ending, PolyclinicOpening):
    """What is ours in a completion."""


class PolyclinicClosing(_Checked, Ending):
    """What is ours in the last chunk of a choice."""

    answer: str = Field(
        default="", description="with notice ungrounded: takes the place of the text sent"
    )

    notice: str | None = Field(default=None, description="the first of notices")
    notices: list[str] = Field(
        default=[], description="all of them, if some show late; else left out"
    )


class Envelope(ReplyModel):
    id: str
    created: int
    model: str = Field(description="the adapter that answered, or base; auto: several did")


class UrlCitation(ReplyModel):
    """A marker's characters in the text, and its passage's title and address."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(ReplyModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


_Annotations = Annotated[
    list[Annotation],
    Field(description="markers of passages that have an address; left out without grounding"),
]


class ChatMessageReply(ReplyModel):
    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: _Annotations = []


class LikelyToken(ReplyModel):
    """`token`: its text, or `bytes:\\xe2\\x80` where its bytes are no whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(ReplyModel):
    """Natural logarithms, of the model's probabilities before temperature and penalties."""

    content: list[ChatToken]
    refusal: None


class TextLogprobs(ReplyModel):
    """Four lists with an item for each token, one that ends the answer included. The first of a
    prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatChoice(ReplyModel):
    index: int
    logprobs: ChatLogprobs | None
    message: ChatMessageReply
    finish_reason: OpenAIFinishReason
    polyclinic: PolyclinicPart | None = Field(default=None, description="with several choices")


class TextChoice(ReplyModel):
    index: int
    logprobs: TextLogprobs | None
    text: str
    finish_reason: OpenAIFinishReason
    polyclinic: PolyclinicPart | None = Field(default=None, description="with several choices")


class ChatReply(Envelope):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    polyclinic: PolyclinicPart


class CompletionReply(Envelope):
    """`polyclinic` is that of the first choice."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage
    polyclinic: PolyclinicPart


class ChatDelta(ReplyModel):
    role: Literal["assistant"] = "assistant"
    content: str
    annotations: _Annotations = []


class ChunkChoice(ReplyModel):
    """`delta` in a chat, `text` in a text completion."""

    index: int
    delta: ChatDelta | None = None
    text: str | None = None
    logprobs: ChatLogprobs | TextLogprobs | None
    finish_reason: OpenAIFinishReason | None


class Chunk(Envelope):
    """`polyclinic`: a choice's route in its first chunk, and its ending in its last."""

    object: Literal["chat.completion.chunk", "text_completion"]
    choices: list[ChunkChoice]
    usage: Usage | None = None
    polyclinic: PolyclinicOpening | PolyclinicClosing | None = None


class ModelReply(ReplyModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    specialty: str | None = None
    version: str | None = None
    parent: str | None = None


class ModelsReply(ReplyModel):
    object: Literal["list"]
    data: list[ModelReply]

    @classmethod
    def of(cls, clinic: ServedModels) -> "ModelsReply":
        """List `auto` (the router picks), every adapter, and `base`."""

        def model(name: str, **more: str) -> ModelReply:
            return ModelReply(
                id=name, object="model", created=clinic.started_at, owned_by="polyclinic", **more
            )

        adapters = [
            model(
                card.name, specialty=card.specialty, version=card.version, parent=clinic.base_model
            )
            for card in clinic.adapters
        ]
        base = model("base", parent=clinic.base_model)
        return cls(object="list", data=[model("auto"), *adapters, base])
