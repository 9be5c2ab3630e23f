"""The shapes of OpenAI's replies: chat and text completions, chunks, models. No I/O.

What is ours stands under `polyclinic`. `choices[0].finish_reason` keeps to OpenAI's words, since
strict clients refuse any other: an answer that its deadline cut short is a `length` there, and a
`timeout` under `polyclinic.finish_reason`, which is always the true one.
"""

from typing import Any

from deployments.api.replies import ending_reply, route_reply, usage_reply, version_of
from deployments.engine.request import FinishReason, TokenEvent
from deployments.messages import ServedModels
from router.policy import Route


class OpenAIReply:
    """Chunks and whole replies of one chat or text completion."""

    def __init__(
        self,
        kind: str,
        request_id: str,
        created: int,
        route: Route,
        clinic: ServedModels,
        *,
        include_usage: bool = False,
    ) -> None:
        if kind not in ("chat.completion", "text_completion"):
            raise ValueError(f"kind '{kind}' is neither chat.completion nor text_completion")
        self._is_chat = kind == "chat.completion"
        self._kind = kind
        self._include_usage = include_usage
        self._envelope = {
            "id": ("chatcmpl-" if self._is_chat else "cmpl-") + request_id,
            "created": created,
            "model": route.adapter or "base",
        }
        version = version_of(route.adapter, clinic)
        self._polyclinic = {
            "request_id": request_id,
            **route_reply(route),
            "adapter_version": version,
        }

    def whole(self, text: str, event: TokenEvent, route_s: float) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice["finish_reason"] = _openai_reason(event)
        return {
            **self._envelope,
            "object": self._kind,
            "choices": [choice],
            "usage": usage_reply(event),
            "polyclinic": {**self._polyclinic, **ending_reply(event, route_s)},
        }

    def opening(self) -> dict[str, Any]:
        """The first chunk: who speaks (`polyclinic`) and, for a chat, the role."""
        chunk = self._chunk(self._delta("", role="assistant"), None)
        return {**chunk, "polyclinic": self._polyclinic}

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk(self._delta(text), None)

    def closing(self, event: TokenEvent, route_s: float) -> dict[str, Any]:
        """The last chunk with a choice: how it ended, OpenAI's way and (`polyclinic`) ours."""
        chunk = self._chunk(self._delta(""), _openai_reason(event))
        return {**chunk, "polyclinic": ending_reply(event, route_s)}

    def usage(self, event: TokenEvent) -> dict[str, Any]:
        """The extra last chunk of `stream_options.include_usage`: no choices."""
        return {**self._chunk({}, None), "choices": [], "usage": usage_reply(event)}

    def _delta(self, text: str, role: str | None = None) -> dict[str, Any]:
        if not self._is_chat:
            return {"text": text}
        delta: dict[str, Any] = {"role": role} if role else {}
        return {"delta": {**delta, "content": text}}

    def _chunk(self, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        chunk = {**self._envelope, "object": kind, "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


def models_reply(clinic: ServedModels) -> dict[str, Any]:
    """GET /v1/models: `auto` (the router picks), every adapter, and `base`."""
    return {"object": "list", "data": _models(clinic)}


def model_reply(clinic: ServedModels, name: str) -> dict[str, Any]:
    """GET /v1/models/{name}, one of `clinic.model_names`."""
    return next(model for model in _models(clinic) if model["id"] == name)


def _models(clinic: ServedModels) -> list[dict[str, Any]]:
    def model(name: str, **more: Any) -> dict[str, Any]:
        owner = {"object": "model", "created": clinic.started_at, "owned_by": "polyclinic"}
        return {"id": name, **owner, **more}

    adapters = [
        model(card.name, specialty=card.specialty, version=card.version, parent=clinic.base_model)
        for card in clinic.adapters
    ]
    return [model("auto"), *adapters, model("base", parent=clinic.base_model)]


def _openai_reason(event: TokenEvent) -> str:
    return "stop" if event.finish_reason is FinishReason.STOP else "length"
