"""What travels between the router deployment and the model deployment, as plain data.

Imports neither ray nor torch nor starlette.
"""

import dataclasses
import hashlib
import random
from collections import ChainMap
from collections.abc import AsyncGenerator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from adapters.prompting import Message
from adapters.token_prompts import BadTokenId
from deployments.engine.request import ErrorInfo, SamplingParams, TokenEvent
from deployments.live_settings import RouterLiveSettings
from references.passage import Passage
from references.shelf import Hit
from references.signs_question import MatchedDisease
from references.version import Source
from router.policy import Route

# The engine ends an answer at its deadline, with what it has. A caller waits this many seconds
# longer: for a replica that hangs, or a place in a queue that never comes.
GRACE_S = 1.0
# What a model replica says to a router of the application's version before, or after.
OTHER_CONFIG = ErrorInfo(
    "other_config", "the model is being replaced by another one: ask again", retry_after_s=2
)


def held_name(adapter: str, version: str | None) -> str:
    """Return how a model replica's report names what it holds; None: the stable version."""
    return adapter if version is None else f"{adapter}@{version}"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer to generate.

    answer_language: the name of a language to ask the answer in; None to leave it.
    deadline_at: Unix seconds, by the sender's clock, at which the answer ends as `timeout`. A
        wall-clock time, so that waiting on the way to a replica counts.
    session_id: the client's name for a conversation.
    adapter_version: None for the adapter's stable one.
    config: the sender's `Settings.model_config_id`; a replica with another one does not answer.
    sender: the router replica, for its clock (deployments/clocks.py).
    may_shorten: `sampling.max_tokens` is lowered to what the model has room for after the prompt.
    trace_context: W3C's headers of the span that asks (deployments/observe/tracing.py).
    continues: a text, or token ids, that the answer continues as they stand; `turns` are empty.
    tenant: whose question it is, not readable (deployments/api/middleware.py); prompts that were
        read for one tenant are reused for that one alone. None: keys are off.
    """

    request_id: str
    turns: tuple[Message, ...]
    adapter: str | None
    sampling: SamplingParams
    stream: bool
    answer_language: str | None = None
    deadline_at: float | None = None
    session_id: str | None = None
    adapter_version: str | None = None
    config: str | None = None
    sender: str | None = None
    may_shorten: bool = False
    trace_context: Mapping[str, str] | None = None
    continues: str | tuple[int, ...] | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """An adapter in service, as /v1/models and the answers name it.

    canary_version: the version that the share `canary_weight` of the sessions gets; None without
        a canary.
    """

    name: str
    specialty: str
    version: str
    canary_version: str | None = None
    canary_weight: float = 0.0

    def for_session(self, session_id: str | None) -> "AdapterCard":
        """Return the card with the version that answers this session; without an id, a draw."""
        if self.canary_version is None:
            return self
        if session_id is None:
            share = random.random()
        else:
            text = f"{self.name}\n{self.canary_version}\n{session_id}"
            share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        chosen = self.canary_version if share < self.canary_weight else self.version
        return AdapterCard(self.name, self.specialty, chosen)


@dataclass(frozen=True)
class ServedModels:
    """What this application serves at one moment.

    specialties: the router's labels and the catalogue's, sorted.
    started_at: Unix seconds.
    """

    base_model: str
    adapters: tuple[AdapterCard, ...]
    specialties: tuple[str, ...]
    default_output_tokens: int
    max_output_tokens: int
    started_at: int
    repetition_penalty: float = 1.0  # the base model's defaults (adapters/catalog.yaml)
    no_repeat_ngram_size: int = 0
    loop_words: int = 0
    max_input_tokens: int = 1536

    def sampling(self, max_tokens: int, **asked: Any) -> SamplingParams:
        """Return how tokens are picked: as asked, else by the base model's defaults."""
        defaults = {
            name: getattr(self, name)
            for name in ("repetition_penalty", "no_repeat_ngram_size", "loop_words")
        }
        return SamplingParams(max_tokens, **(defaults | asked))

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """What a client may put in OpenAI's `model`."""
        return ("auto", "base", *(card.name for card in self.adapters))

    def adapter(self, name: str) -> AdapterCard | None:
        return self._by_name.get(name)

    def version_of(self, adapter: str | None) -> str | None:
        """Return the version in service of an adapter; None for the base model."""
        card = self.adapter(adapter) if adapter else None
        return card.version if card else None

    def for_session(self, session_id: str | None) -> "ServedModels":
        """Return what answers this session. Only the adapters with a canary are looked at."""
        if not self._with_canary:
            return self
        cards, drawn = list(self.adapters), {}
        for position in self._with_canary:
            cards[position] = cards[position].for_session(session_id)
            drawn[cards[position].name] = cards[position]
        chosen = dataclasses.replace(self, adapters=tuple(cards))
        chosen.__dict__["_by_name"] = ChainMap(drawn, self._by_name)
        return chosen

    @cached_property
    def _by_name(self) -> MutableMapping[str, AdapterCard]:
        return {card.name: card for card in self.adapters}

    @cached_property
    def _with_canary(self) -> tuple[int, ...]:
        """The positions in `adapters` of those that have a canary on trial."""
        cards = enumerate(self.adapters)
        return tuple(position for position, card in cards if card.canary_version is not None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished request, for the metrics.

    outcome: a finish reason, a refusal's code, or "routed".
    """

    specialty: str | None
    adapter: str | None
    outcome: str
    confidence: float | None = None


class PassageSource(Protocol):
    """The reference shelf, as the API asks for passages."""

    async def search(self, question: str, *, language: str | None, limit: int) -> list[Hit]:
        """Return the best passages, or [] where the shelf has nothing on the question.

        Raises:
            ReferencesError: there is no shelf that can be read.
        """

    async def diseases(self, question: str, *, limit: int) -> list[MatchedDisease]:
        """Return the diseases that match, if the question lists signs and asks which disease has
        them; else []. Raises ReferencesError as `search` does."""

    async def version(self) -> str:
        """Return the shelf's version. Raises ReferencesError as `search` does."""

    async def sources(self) -> list[Source]:
        """Return what the passages are of. Raises ReferencesError as `search` does."""

    async def add(self, passages: Sequence[Passage], *, replace: bool) -> str:
        """Put passages on the shelf, all or none. Returns the new version.

        Raises:
            PassagesRefused: names each bad passage.
            ReferencesError: the shelf cannot be changed, and is as it was.
        """

    async def remove(self, ids: Sequence[str], *, source: str | None) -> str:
        """Take passages out, all or none, and those of `source`. Raises as `add` does."""

    def observe_unsupported(self, share: float) -> None:
        """Count an answer that was checked, for the metrics."""


class Backend(Protocol):
    """What the API needs of the rest; the router deployment implements it."""

    @property
    def clinic(self) -> ServedModels: ...

    @property
    def limits(self) -> RouterLiveSettings: ...

    @property
    def references(self) -> PassageSource: ...

    async def classify(
        self, conversations: Sequence[Sequence[str]], min_confidence: float | None = None
    ) -> list[Route]:
        """Return a route for each conversation (its user turns, oldest first).

        `min_confidence` replaces the router's threshold for them.
        """

    def explicit(self, specialty: str | None, turns: Sequence[str]) -> Route:
        """Return the route for a specialty that the client names; None for the base model alone.

        `turns`: the user's, oldest first.
        """

    async def decode(self, prompts: Sequence[Sequence[int]]) -> list[str] | BadTokenId:
        """Return the texts of token ids of the base model's tokenizer.

        Raises:
            ApiError: 503, no model replica is there to say.
        """

    def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Yield the events of one answer. Closing it cancels the answer on the model's side."""

    def refusal(self, timeout_s: float) -> ErrorInfo | None:
        """Return why a question would not be answered now, before anything is done for it.

        `timeout_s`: how long its client waits.
        """

    def answer_language(self, route: Route) -> str | None:
        """Return the language to ask the answer in, if the base does not write the question's."""

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the model answers, and what is loaded."""

    async def operator_report(self) -> Mapping[str, Any]:
        """Return what every replica holds and does."""

    def record(self, outcome: Outcome) -> None: ...
