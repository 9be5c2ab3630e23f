"""A backend in a few lines, its client, and a check that nothing of a question reaches the log."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from adapters.token_prompts import BadTokenId
from deployments.api.app import create_api
from deployments.engine.request import ErrorInfo, FinishReason, Timings, TokenEvent
from deployments.live_settings import RouterLiveSettings
from deployments.messages import AdapterCard, GenerateRequest, Outcome, ServedModels
from router.policy import Alternative, Reason, Route
from tests.deployments.small_shelf import SmallShelf

ADVICE = "Call for help.\n\n"  # for a question with "droops"
SECRET = "zebrafish"  # stands for a patient's words: it may appear in no log record
UNCACHED = {"prompt_tokens_details": {"cached_tokens": 0}}
VOCABULARY = ("a", "red", "rash", "on", "my", "arm")


class SmallBackend:
    """Echoes: the answer is the last user turn in capitals, word by word. Its token ids are
    positions in VOCABULARY."""

    def __init__(self) -> None:
        self.limits = RouterLiveSettings()
        self.references = SmallShelf()
        self.clinic = ServedModels(
            base_model="tiny",
            adapters=(AdapterCard("derm-1", "dermatology", "3"),),
            specialties=("cardiology", "dermatology"),
            default_output_tokens=16,
            max_output_tokens=64,
            started_at=1,
        )
        self.calls: list[GenerateRequest] = []
        self.classified: list[list[str]] = []
        self.outcomes: list[Outcome] = []
        self.num_closed = 0
        self.error: ErrorInfo | None = None
        self.refuses: ErrorInfo | None = None
        self.timeouts: list[float] = []
        self.raises: Exception | None = None
        self.break_after: int | None = None
        self.times_out_after: int | None = None

    async def classify(
        self, conversations: Sequence[Sequence[str]], min_confidence: float | None = None
    ) -> list[Route]:
        if self.raises:
            raise self.raises
        self.classified += [list(turns) for turns in conversations]
        return [self._route(turns[-1], min_confidence or 0.5) for turns in conversations]

    def _route(self, question: str, min_confidence: float) -> Route:
        foreign = question.startswith("Bonjour")
        in_scope = "football" not in question
        is_sure = in_scope and min_confidence <= 0.98765
        unsure = Reason.LOW_CONFIDENCE if in_scope else Reason.OUT_OF_SCOPE
        return Route(
            specialty="dermatology" if is_sure else None,
            adapter="derm-1" if is_sure else None,
            confidence=0.98765,
            reason=Reason.CONFIDENT if is_sure else unsure,
            in_scope=in_scope,
            alternatives=(Alternative("dermatology", 0.98765), Alternative("cardiology", 0.01235)),
            evidence=("rash",),
            language="fr" if foreign else "en",
            notice="language_not_supported" if foreign else None,
            specialists=(Alternative("dermatology", 0.98765),),
            red_flags=("stroke",) if "droops" in question else (),
            advice=ADVICE if "droops" in question else "",
        )

    def explicit(self, specialty: str | None, turns: Sequence[str]) -> Route:
        is_urgent = "droops" in turns[-1]
        return Route(
            specialty=specialty,
            adapter="derm-1" if specialty == "dermatology" else None,
            confidence=None,
            reason=Reason.EXPLICIT if specialty else Reason.BASE_REQUESTED,
            in_scope=None,
            alternatives=(),
            evidence=(),
            language="en",
            notice=None,
            red_flags=("stroke",) if is_urgent else (),
            advice=ADVICE if is_urgent else "",
        )

    def refusal(self, timeout_s: float) -> ErrorInfo | None:
        self.timeouts.append(timeout_s)
        return self.refuses

    def answer_language(self, route: Route) -> str | None:
        return "English" if route.notice else None

    async def decode(self, prompts: Sequence[Sequence[int]]) -> list[str] | BadTokenId:
        for number, ids in enumerate(prompts):
            for position, token_id in enumerate(ids):
                if token_id >= len(VOCABULARY):
                    return BadTokenId(number, position, f"token id {token_id} is out of range")
        return [" ".join(VOCABULARY[token_id] for token_id in ids) for ids in prompts]

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        self.calls.append(call)
        try:
            if self.error:
                yield self._event(call, "", 0, FinishReason.ERROR, self.error)
                return
            words = call.turns[-1].content.upper().split(" ")
            for count, word in enumerate(words, start=1):
                if self.break_after is not None and count > self.break_after:
                    lost = ErrorInfo("replica_lost", "lost", retry_after_s=5)
                    yield self._event(call, "", count, FinishReason.ERROR, lost)
                    return
                text = word if count == 1 else f" {word}"
                if count == self.times_out_after:
                    yield self._event(call, text, count, FinishReason.TIMEOUT)
                    return
                last = count == len(words)
                yield self._event(call, text, count, FinishReason.STOP if last else None)
        finally:
            self.num_closed += 1

    def _event(
        self,
        call: GenerateRequest,
        text: str,
        count: int,
        reason: FinishReason | None,
        error: ErrorInfo | None = None,
    ) -> TokenEvent:
        timings = Timings(0.001, 0.0125, 0.5)
        return TokenEvent(call.request_id, text, count, 7, timings, reason, error)

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        return self.error is None, {"adapters": []}

    async def operator_report(self) -> Mapping[str, Any]:
        return {"models": [], "routers": []}

    def record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def our_log_propagates() -> Iterator[None]:
    """A replica that an earlier test made has given our records to Serve's handlers alone."""
    ours = logging.getLogger("deployments")
    before = ours.handlers, ours.propagate, ours.level
    ours.handlers, ours.propagate = [], True
    ours.setLevel(logging.NOTSET)
    yield
    ours.handlers, ours.propagate = before[:2]
    ours.setLevel(before[2])


@pytest.fixture
def our_records() -> Iterator[list[logging.LogRecord]]:
    """What our packages log, from DEBUG up, wherever their records go."""
    found: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    ours, keeper = logging.getLogger("deployments"), Keeper()
    before = ours.level
    ours.addHandler(keeper)
    ours.setLevel(logging.DEBUG)
    yield found
    ours.removeHandler(keeper)
    ours.setLevel(before)


@pytest.fixture
def backend() -> SmallBackend:
    return SmallBackend()


@pytest.fixture
async def client(
    backend: SmallBackend, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[httpx.AsyncClient]:
    caplog.set_level(logging.DEBUG)
    transport = httpx.ASGITransport(create_api(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        yield client
    assert backend.num_closed == len(backend.calls), "a generation was left open"
    ours = [r for r in caplog.records if r.name.startswith("deployments")]
    assert SECRET not in "".join(record.getMessage() for record in ours)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error
