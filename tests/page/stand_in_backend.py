"""A backend for the browser's tests: what it routes and answers is known beforehand.

What a question holds decides what happens: `parkinson`, `eczéma`, `stairs` (ambiguous) and `bake`
(out of scope) are routed as the router would, `droops` is urgent; `endless` never ends, `lost`
loses its replica after five words, `half` loses only the one that holds pulmonology, `full` finds
the queue full.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from deployments.engine.errors import QueueFull
from deployments.engine.request import ErrorInfo, FinishReason, Timings, TokenEvent, failed_event
from deployments.ingress.operator import assemble
from deployments.ingress.traffic import TrafficLog
from deployments.live_settings import RouterLiveSettings
from deployments.messages import AdapterCard, GenerateRequest, Outcome, ServedModels
from router.policy import Alternative, Reason, Route
from tests.deployments.small_shelf import SmallShelf

ANSWER = (
    "Early signs are often mild and begin on one side of the body. A hand may tremble at rest, "
    "handwriting may become small, and steps may shorten. Some people notice a softer voice, "
    "stiff muscles, or a reduced sense of smell years before. A doctor can examine how you move "
    "and decide whether further tests are useful."
)
ADVICE = "Call your local emergency number now.\n\n"
ANSWERS = {  # by adapter; the others say ANSWER
    "cardiology": "A fast heartbeat with effort is often normal, since muscles need more blood. "
    "When it comes with chest pain, fainting or breathlessness at rest, an examination with an "
    "ECG is needed without delay.",
    "pulmonology": "Breathlessness on the stairs can come from the lungs as well as from the "
    "heart. Asthma, anemia or a lack of training are common causes. A breathing test shows "
    "whether the airways are narrowed.",
}
SPECIALTIES = (
    "cardiology dermatology endocrinology gastroenterology hematology infectious_disease "
    "nephrology_urology neurology obstetrics_gynecology oncology ophthalmology psychiatry "
    "pulmonology rheumatology_orthopedics"
).split()
WITHOUT_ADAPTER = ("obstetrics_gynecology", "psychiatry")
ADAPTERS = {name: name for name in SPECIALTIES if name not in WITHOUT_ADAPTER}


class StandInBackend:
    """Implements `calls.Backend`. Word by word, `word_s` seconds apart."""

    def __init__(self) -> None:
        self.limits = RouterLiveSettings(max_question_chars=400)
        self.references = SmallShelf()
        self.clinic = ServedModels(
            base_model="smollm2-135m-instruct",
            adapters=tuple(AdapterCard(name, name, "2") for name in ADAPTERS),
            specialties=tuple(SPECIALTIES),
            default_output_tokens=160,
            max_output_tokens=512,
            started_at=1,
        )
        self.word_s = 0.01
        self.num_running = 0
        self.num_left_open = 0  # generations that ended because the client had gone
        self.traffic = TrafficLog()
        self.models = [_model_replica("k3v9qa01"), _model_replica("p7m2zx02")]

    async def classify(
        self, conversations: Sequence[Sequence[str]], *_: Any, **__: Any
    ) -> list[Route]:
        return [urgent_where(turns[-1], route_of(turns[-1])) for turns in conversations]

    def explicit(self, specialty: str | None, turns: Sequence[str]) -> Route:
        adapter = ADAPTERS.get(specialty) if specialty else None
        reason = Reason.EXPLICIT if adapter else Reason.NO_ADAPTER
        return Route(specialty, adapter, None, reason, None, (), (), "en", None)

    def refusal(self, timeout_s: float) -> None:
        return None

    async def decode(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        return ["What is eczema?" for _ in prompts]

    def answer_language(self, route: Route) -> str | None:
        return "English" if route.notice else None

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        question = call.turns[-1].content.lower()
        if "full" in question:
            yield failed_event(call.request_id, QueueFull(256, 256).info)
            return
        started = time.perf_counter()
        watch = self.traffic.watch()
        is_finished = False
        self.num_running += 1
        try:
            async for event in self._events(call, question, started):
                watch.saw(event)
                is_finished = event.finish_reason is not None
                yield event
        finally:
            self.num_running -= 1
            self.num_left_open += not is_finished

    async def _events(
        self, call: GenerateRequest, question: str, started: float
    ) -> AsyncIterator[TokenEvent]:
        words = ANSWERS.get(call.adapter or "", ANSWER).split(" ")
        first_s: float | None = None
        count = 0
        while count < len(words) or "endless" in question:
            await asyncio.sleep(self.word_s)
            count += 1
            first_s = first_s or time.perf_counter() - started
            word = words[(count - 1) % len(words)]
            timings = Timings(0.0003, first_s)
            is_half = "half" in question and call.adapter == "pulmonology"
            if count > 5 and (is_half or "lost" in question):
                lost = ErrorInfo("replica_lost", "the model replica was lost", retry_after_s=5)
                reason = FinishReason.ERROR
                yield TokenEvent(call.request_id, "", count, 31, timings, reason, lost)
                return
            text = word if count == 1 else f" {word}"
            yield TokenEvent(call.request_id, text, count, 31, timings)
        timings = Timings(0.0003, first_s, time.perf_counter() - started)
        yield TokenEvent(call.request_id, "", count, 31, timings, FinishReason.STOP)

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        router = {
            "version": "2026-11-25",
            "specialties": SPECIALTIES,
            "without_adapter": list(WITHOUT_ADAPTER),
            "explicit_only": [],
        }
        return True, {**self.models[0], "router": router}

    async def operator_report(self) -> Mapping[str, Any]:
        routers = [
            {"replica": "a1b2c3d4", "catalog_revision": 7, "snapshot": self.traffic.snapshot()},
            {"replica": "e5f6g7h8", "problem": "no_answer", "message": "no answer within 2 s"},
        ]
        return assemble(self.models, routers, generated_at=time.time())

    def record(self, outcome: Outcome) -> None:
        self.traffic.record(outcome)


def urgent_where(question: str, route: Route) -> Route:
    if "droops" not in question:
        return route
    return dataclasses.replace(route, red_flags=("stroke",), advice=ADVICE)


def route_of(question: str) -> Route:
    lowered = question.lower()
    if "bake" in lowered or "pain au levain" in lowered:
        top = (("oncology", 0.11), ("cardiology", 0.1), ("dermatology", 0.09))
        return _route(None, Reason.OUT_OF_SCOPE, top, (), "en", in_scope=False)
    if "stairs" in lowered or "half" in lowered:
        top = (("cardiology", 0.52), ("pulmonology", 0.38), ("endocrinology", 0.04))
        return _route(None, Reason.AMBIGUOUS, top, ("heart", "climb stairs"), "en")
    if "eczéma" in lowered:
        top = (("dermatology", 0.9713), ("infectious_disease", 0.0124), ("hematology", 0.003))
        return _route("dermatology", Reason.CONFIDENT, top, ("eczema", "contagieux"), "fr")
    top = (("neurology", 0.9901), ("rheumatology_orthopedics", 0.0024), ("psychiatry", 0.0012))
    return _route("neurology", Reason.CONFIDENT, top, ("parkinson's disease", "signs"), "en")


def _route(
    specialty: str | None,
    reason: Reason,
    top: Sequence[tuple[str, float]],
    evidence: tuple[str, ...],
    language: str,
    *,
    in_scope: bool = True,
) -> Route:
    alternatives = tuple(Alternative(name, share) for name, share in top)
    return Route(
        specialty=specialty,
        adapter=ADAPTERS.get(specialty) if specialty else None,
        confidence=top[0][1],
        reason=reason,
        in_scope=in_scope,
        alternatives=alternatives,
        evidence=evidence,
        language=language,
        notice="language_not_supported" if language == "fr" else None,
        specialists=tuple(a for a in alternatives if a.specialty in ADAPTERS),
    )


def held(name: str, version: str = "2", **more: Any) -> dict[str, Any]:
    """A version in service on one replica, as `AdapterRegistry.described` tells it."""
    return {
        "name": name,
        "specialty": name,
        "version": version,
        "digest": f"{name}-{version}",
        "state": "active",
        "weight": None,
        "pinned": False,
        "answers": 0,
        "load_s": 0.012,
        "error": None,
        "tier": "device",
        **more,
    }


def _model_replica(replica: str) -> dict[str, Any]:
    """`p...` has not followed the newest revision: a trial that began, a pin, an update."""
    adapters = [held(name) for name in ADAPTERS]
    is_behind = replica.startswith("p")
    if is_behind:
        adapters[-1] = held("rheumatology_orthopedics", "1", tier="disk", load_s=None)
    else:
        adapters[0] |= {"pinned": True, "answers": 1204}
        adapters.insert(2, held("dermatology", "3", state="canary", weight=0.1, tier="host"))
    leaving = [{"name": "neurology", "version": "1", "running": 2}]
    return {
        "replica": replica,
        "base_model": "smollm2-135m-instruct",
        "decoder": "fast",
        "decoder_reason": "",
        "device": "cuda:0",
        "dtype": "bfloat16",
        "adapters": adapters,
        "adapters_leaving": [] if is_behind else leaving,
        "adapters_revision": 6 if is_behind else 7,
        "adapters_error": None,
        "adapters_skipped": {"haiku": "trained on another base"},
        "rows_running": 3,
        "requests_waiting": 0,
    }
