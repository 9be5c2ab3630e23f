"""What the router deployment sends to the model deployment, and what it knows of it.

Plain data: no ray, no torch, no starlette.
"""

import dataclasses
import hashlib
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from deployments.engine.request import SamplingParams, TokenEvent
from deployments.settings import RouterLiveSettings
from router.policy import Route

Role = Literal["system", "user", "assistant"]

# The engine ends an answer at its deadline, with what it has. Whoever waits for the engine gives it
# this much longer, in seconds: for a replica that hangs, or a place in a queue that never came.
GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer to generate.

    `answer_language`: ask for the answer in this language, by name. `deadline_at`: Unix seconds at
    which the answer ends as `timeout`; a wall-clock time, so that what a request waits on its way
    to a replica counts. `session_id`: the client's name for a conversation.
    """

    request_id: str
    turns: tuple[Turn, ...]
    adapter: str | None
    sampling: SamplingParams
    stream: bool
    answer_language: str | None = None
    deadline_at: float | None = None
    session_id: str | None = None
    adapter_version: str | None = None  # None: the one in force


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """An adapter in service, as /v1/models and the answers name it.

    `canary_version`: on trial, for the share `canary_weight` of the sessions; None: no trial.
    """

    name: str
    specialty: str
    version: str
    canary_version: str | None = None
    canary_weight: float = 0.0

    def for_session(self, session_id: str | None) -> "AdapterCard":
        """With the version that answers this session: the same one as long as the trial lasts.

        Without a session each question is drawn by itself.
        """
        if self.canary_version is None:
            return self
        if session_id is None:
            share = random.random()
        else:
            text = f"{self.name}\n{self.canary_version}\n{session_id}"
            share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        chosen = self.canary_version if share < self.canary_weight else self.version
        return AdapterCard(self.name, self.specialty, chosen)


@dataclass(frozen=True, slots=True)
class ServedModels:
    """What this application serves at one moment."""

    base_model: str
    adapters: tuple[AdapterCard, ...]
    specialties: tuple[str, ...]  # the router's labels and the catalogue's, sorted
    default_output_tokens: int
    max_output_tokens: int
    started_at: int  # Unix seconds

    @property
    def model_names(self) -> tuple[str, ...]:
        """What a client may put in OpenAI's `model`."""
        return ("auto", "base", *(card.name for card in self.adapters))

    def adapter(self, name: str) -> AdapterCard | None:
        return next((card for card in self.adapters if card.name == name), None)

    def version_of(self, adapter: str | None) -> str | None:
        """Return the version in service of an adapter; None for the base model."""
        card = self.adapter(adapter) if adapter else None
        return card.version if card else None

    def for_session(self, session_id: str | None) -> "ServedModels":
        """With the versions that answer this session, where some are on trial."""
        cards = tuple(card.for_session(session_id) for card in self.adapters)
        return dataclasses.replace(self, adapters=cards)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished request, for the metrics."""

    specialty: str | None
    adapter: str | None
    outcome: str  # a finish reason, a refusal's code, or "routed"
    confidence: float | None = None


class Backend(Protocol):
    """What api.py needs; the router deployment implements it, tests have a small one."""

    @property
    def clinic(self) -> ServedModels: ...

    @property
    def limits(self) -> RouterLiveSettings: ...

    async def classify(
        self, conversations: Sequence[Sequence[str]], min_confidence: float | None = None
    ) -> list[Route]:
        """A route for each conversation (its user turns, oldest first).

        `min_confidence` stands in for the threshold in force, for these conversations only.
        """

    def explicit(self, specialty: str | None, question: str) -> Route:
        """The route when the client names the specialty; None: the base model alone."""

    def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of one answer; closing it cancels the answer on the model's side."""

    def answer_language(self, route: Route) -> str | None:
        """The language to ask the answer in, when the base does not write the question's."""

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether the model answers, and what is loaded."""

    async def operator_report(self) -> Mapping[str, Any]:
        """What every replica holds and does (operator_report.py)."""

    def record(self, outcome: Outcome) -> None: ...
