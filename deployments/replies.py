"""The shapes of our answers: `/ask`, `/route` and OpenAI's. Plain dictionaries, no I/O."""

from typing import Any

from deployments.calls import Clinic
from deployments.engine.request import FinishReason, TokenEvent
from router.policy import Route


def route_reply(route: Route) -> dict[str, Any]:
    """The part of an answer that says who speaks and why."""
    return {
        "specialty": route.specialty,
        "confidence": _rounded(route.confidence),
        "adapter": route.adapter,
        "reason": str(route.reason),
        "in_scope": route.in_scope,
        "alternatives": [
            {"specialty": other.specialty, "probability": round(other.probability, 4)}
            for other in route.alternatives
        ],
        "evidence": list(route.evidence),
        "language": route.language,
        "notice": route.notice,
    }


def usage_reply(event: TokenEvent) -> dict[str, int]:
    return {
        "prompt_tokens": event.num_prompt_tokens,
        "completion_tokens": event.num_tokens,
        "total_tokens": event.num_prompt_tokens + event.num_tokens,
    }


def timings_reply(event: TokenEvent, route_s: float) -> dict[str, float | None]:
    """Milliseconds. `queue`, `first_token` and `total` count from the engine's acceptance."""
    timings = event.timings
    return {
        "route": _ms(route_s),
        "queue": _ms(timings.queue_s),
        "first_token": _ms(timings.first_token_s),
        "total": _ms(timings.total_s),
    }


def ask_reply(
    request_id: str, route: Route, text: str, event: TokenEvent, clinic: Clinic, route_s: float
) -> dict[str, Any]:
    return {
        "id": request_id,
        "answer": text,
        **route_reply(route),
        "adapter_version": _version(route, clinic),
        "finish_reason": event.finish_reason,
        "usage": usage_reply(event),
        "timings_ms": timings_reply(event, route_s),
    }


class OpenAIReply:
    """Chunks and whole replies of one chat or text completion."""

    def __init__(
        self, kind: str, request_id: str, created: int, route: Route, clinic: Clinic
    ) -> None:
        if kind not in ("chat.completion", "text_completion"):
            raise ValueError(f"kind '{kind}' is neither chat.completion nor text_completion")
        self._is_chat = kind == "chat.completion"
        self._kind = kind
        self._route = route
        self._envelope = {
            "id": ("chatcmpl-" if self._is_chat else "cmpl-") + request_id,
            "created": created,
            "model": route.adapter or "base",
        }
        self._polyclinic = {**route_reply(route), "adapter_version": _version(route, clinic)}

    def whole(self, text: str, event: TokenEvent, route_s: float) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice["finish_reason"] = event.finish_reason
        return {
            **self._envelope,
            "object": self._kind,
            "choices": [choice],
            "usage": usage_reply(event),
            "polyclinic": {**self._polyclinic, "timings_ms": timings_reply(event, route_s)},
        }

    def opening(self) -> dict[str, Any]:
        """The first chunk: who speaks (`polyclinic`) and, for a chat, the role."""
        chunk = self._chunk(self._delta("", role="assistant"), None)
        return {**chunk, "polyclinic": self._polyclinic}

    def piece(self, text: str, finish_reason: FinishReason | None) -> dict[str, Any]:
        return self._chunk(self._delta(text), finish_reason)

    def usage(self, event: TokenEvent, route_s: float) -> dict[str, Any]:
        """The extra last chunk of `stream_options.include_usage`: no choices."""
        chunk = self._chunk({}, None)
        timings = timings_reply(event, route_s)
        return {**chunk, "choices": [], "usage": usage_reply(event), "timings_ms": timings}

    def _delta(self, text: str, role: str | None = None) -> dict[str, Any]:
        if not self._is_chat:
            return {"text": text}
        delta: dict[str, Any] = {"role": role} if role else {}
        return {"delta": {**delta, "content": text}}

    def _chunk(self, content: dict[str, Any], reason: FinishReason | None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._envelope, "object": kind, "choices": [choice]}


def models_reply(clinic: Clinic) -> dict[str, Any]:
    """GET /v1/models: `auto` (the router picks), every adapter, and `base`."""

    def model(name: str, **more: Any) -> dict[str, Any]:
        owner = {"object": "model", "created": clinic.started_at, "owned_by": "polyclinic"}
        return {"id": name, **owner, **more}

    adapters = [
        model(card.name, specialty=card.specialty, version=card.version, parent=clinic.base_model)
        for card in clinic.adapters
    ]
    return {
        "object": "list",
        "data": [model("auto"), *adapters, model("base", parent=clinic.base_model)],
    }


def _version(route: Route, clinic: Clinic) -> str | None:
    card = clinic.adapter(route.adapter) if route.adapter else None
    return card.version if card else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
