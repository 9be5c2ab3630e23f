"""Log-probabilities in OpenAI's two shapes: of a chat, and of a text completion."""

from collections.abc import Sequence
from typing import Any

from deployments.api.protocol import openai_replies as bodies
from deployments.engine.request import ScoredToken


def chat_tokens(scores: Sequence[ScoredToken]) -> list[bodies.ChatToken]:
    """Return those of a message's tokens: what ends it is none of them."""
    return [
        bodies.ChatToken(
            **_likely(token.text, token.data, token.logprob or 0.0),
            top_logprobs=[bodies.LikelyToken(**_likely(*other)) for other in token.top],
        )
        for token in scores
        if token.is_text
    ]


def text_logprobs(scores: Sequence[ScoredToken], num_before: int) -> bodies.TextLogprobs:
    """Return those of a text completion's tokens.

    Args:
        num_before: characters of the text before what the model read or wrote.
    """
    return bodies.TextLogprobs(
        tokens=[token.text for token in scores],
        token_logprobs=[token.logprob for token in scores],
        top_logprobs=[_top(token) for token in scores],
        text_offset=[num_before + token.offset for token in scores],
    )


def _top(token: ScoredToken) -> dict[str, float] | None:
    """Return the likeliest tokens and the token itself, as OpenAI does; None if it has no score."""
    if token.logprob is None:
        return None
    return {text: logprob for text, _, logprob in token.top} | {token.text: token.logprob}


def _likely(text: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(data)}
