"""Calls without a replica end at once, lost ones are sent again within a budget, and a question
that kills is kept away."""

import asyncio
from typing import Any

import pytest

from adapters.prompting import Message
from deployments.channel.receiver import NOT_REACHED
from deployments.engine.request import (
    ErrorInfo,
    FinishReason,
    SamplingParams,
    Timings,
    TokenEvent,
    failed_event,
)
from deployments.ingress.call_guard import NO_MODEL_REPLICA, CallGuard
from deployments.ingress.model_client import answer_events
from deployments.ingress.model_watch import ModelWatch
from deployments.ingress.quarantine import QUARANTINE_S, Quarantine
from deployments.messages import OTHER_CONFIG, GenerateRequest
from tests.deployments.ingress.test_model_watch import GONE, OTHERS, OURS, Clock, Replicas

LOST = failed_event("r", ErrorInfo("replica_lost", "lost", retry_after_s=5))
OTHER = failed_event("r", OTHER_CONFIG)
FINE = TokenEvent("r", "fine", 1, 3, Timings(), FinishReason.STOP)


def call(text: str = "a rash") -> GenerateRequest:
    return GenerateRequest("r", (Message("user", text),), None, SamplingParams(8), stream=False)


class Calls:
    """`answers` in turn, for ever the last; None: it waits until it is cancelled."""

    def __init__(self, *answers: TokenEvent | None) -> None:
        self.answers = list(answers)
        self.num_sent = 0
        self.num_cancelled = 0
        self.is_assigned = False
        self.replica: str | None = None

    def start(self, sent: GenerateRequest) -> "Calls":
        self.num_sent += 1
        return self

    async def get(self) -> TokenEvent:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            await asyncio.Event().wait()
        assert answer is not None
        return answer

    def cancel(self) -> None:
        self.num_cancelled += 1


class Setting:
    def __init__(self, *answers: Any, retries: int = 100) -> None:
        self.clock = Clock()
        self.replicas = Replicas(*answers)
        self.watch = ModelWatch(self.replicas, "b", "router-1", clock=self.clock)
        self.guard = CallGuard(self.watch, Quarantine(retries, self.clock))
        self.watch.on_empty = self.guard.expire
        self.watch.look()

    async def ask(self, calls: Calls, text: str = "a rash") -> TokenEvent:
        events = [e async for e in answer_events(calls.start, call(text), self.guard)]
        return events[-1]


async def test_without_a_replica_nothing_is_sent() -> None:
    setting, calls = Setting(OURS), Calls(FINE)
    setting.replicas.answers = GONE
    setting.watch.look()
    assert (await setting.ask(calls)).error == NO_MODEL_REPLICA
    assert calls.num_sent == 0


async def test_at_a_start_a_call_waits_for_one_whole_look() -> None:
    setting, calls = Setting(), Calls(None)
    setting.replicas.answers = GONE
    setting.watch.look()
    began = asyncio.get_running_loop().time()
    asked = asyncio.create_task(setting.ask(calls))
    await asyncio.sleep(0.01)
    setting.guard.expire(began)  # a look that began before the call says nothing about it
    await asyncio.sleep(0.01)
    assert not asked.done()
    await asyncio.to_thread(setting.watch.look)
    assert (await asyncio.wait_for(asked, 5)).error == NO_MODEL_REPLICA
    assert calls.num_sent == 1


async def test_what_waits_for_a_replica_ends_when_there_is_none_any_more() -> None:
    setting, waiting, assigned = Setting(OURS), Calls(None), Calls(None)
    assigned.is_assigned = True  # a replica that drains finishes it
    asked = [asyncio.create_task(setting.ask(c)) for c in (waiting, assigned)]
    await asyncio.sleep(0.01)
    setting.replicas.answers = GONE
    await asyncio.to_thread(setting.watch.look)
    event = await asyncio.wait_for(asked[0], 5)
    assert event.error == NO_MODEL_REPLICA
    assert waiting.num_cancelled == 1
    await asyncio.sleep(0.01)
    assert not asked[1].done()
    asked[1].cancel()


async def test_what_waits_at_a_replica_that_hangs_is_asked_once_more_elsewhere() -> None:
    """After two looks that it missed and another answered; what waits there is asked again."""
    setting = Setting(OURS)
    hangs, elsewhere = Calls(None, FINE), Calls(None)
    hangs.replica, elsewhere.replica = "m1", "m2"
    elsewhere.is_assigned = True  # one that hangs says not even that it has taken a call
    asked = [asyncio.create_task(setting.ask(c, c.replica or "")) for c in (hangs, elsewhere)]
    await asyncio.sleep(0.01)
    for there in (["m1", "m2"], ["m2"], []):
        setting.guard.saw([{"replica": name} for name in there])
        await asyncio.sleep(0.01)
        assert (hangs.num_sent, elsewhere.num_sent) == (1, 1), "one look is missed by chance"
    setting.guard.saw([{"replica": "m2"}])
    setting.guard.saw([{"replica": "m2"}])  # it is ended once
    assert (await asyncio.wait_for(asked[0], 5)).text == "fine"
    assert (hangs.num_sent, hangs.num_cancelled) == (2, 1)
    assert (elsewhere.num_sent, elsewhere.num_cancelled) == (1, 0)
    asked[1].cancel()
    setting.guard.saw([])


async def test_an_answer_that_has_begun_waits_for_its_replica() -> None:
    setting = Setting(OURS)
    begun = Calls(TokenEvent("r", "a", 1, 3, Timings()), None)
    begun.replica, begun.is_assigned = "m1", True
    asked = asyncio.create_task(setting.ask(begun))
    await asyncio.sleep(0.01)
    for there in (["m1", "m2"], ["m2"], ["m2"], ["m2"]):
        setting.guard.saw([{"replica": name} for name in there])
    await asyncio.sleep(0.01)
    assert not asked.done()
    assert (begun.num_sent, begun.num_cancelled) == (1, 0)
    asked.cancel()
    setting.guard.saw([])


async def test_a_replica_of_another_version_is_not_asked_twice_in_a_row_without_a_pause() -> None:
    setting = Setting(OURS, OTHERS)
    calls = Calls(OTHER, OTHER, FINE)
    assert (await setting.ask(calls)).text == "fine"
    assert calls.num_sent == 3
    setting.replicas.answers = [OTHERS]
    setting.watch.look()
    assert (await setting.ask(Calls(OTHER))).error == NO_MODEL_REPLICA


async def test_a_router_that_took_over_early_sends_its_calls_when_its_models_come() -> None:
    setting, calls = Setting(OTHERS), Calls(FINE)
    asked = asyncio.create_task(setting.ask(calls))
    setting.replicas.answers = GONE  # in between there may be none at all
    await asyncio.to_thread(setting.watch.look)
    await asyncio.sleep(0.15)
    assert calls.num_sent == 0
    setting.replicas.answers = [OTHERS, OURS]
    await asyncio.to_thread(setting.watch.look)
    assert (await asyncio.wait_for(asked, 5)).text == "fine"
    waiting = asyncio.create_task(Setting(OTHERS).ask(Calls(FINE)))
    with pytest.raises(TimeoutError):  # as the deadline of a request does
        await asyncio.wait_for(waiting, 0.15)


async def test_retries_have_a_budget() -> None:
    setting = Setting(OURS, retries=3)
    for number in range(3):
        assert (await setting.ask(Calls(LOST, FINE), f"question {number}")).text == "fine"
    calls = Calls(LOST, FINE)
    assert (await setting.ask(calls, "one more")).error == LOST.error
    assert calls.num_sent == 1
    setting.clock.now += 60
    assert (await setting.ask(Calls(LOST, FINE), "later")).text == "fine"


async def test_a_question_that_killed_two_replicas_is_kept_from_a_third() -> None:
    setting = Setting(OURS)
    assert (await setting.ask(Calls(LOST))).error == LOST.error  # a first one, with its retry
    setting.clock.now += 6
    second = Calls(LOST)
    assert (await setting.ask(second)).error is not None
    assert second.num_sent == 1, "and no third"
    refused = (await setting.ask(Calls(FINE))).error
    assert refused is not None
    assert (refused.code, refused.retry_after_s) == ("question_quarantined", QUARANTINE_S)
    assert "rash" not in refused.message
    assert (await setting.ask(Calls(FINE), "another")).text == "fine"
    setting.clock.now += QUARANTINE_S
    assert (await setting.ask(Calls(FINE))).text == "fine"


async def test_a_replica_that_could_not_send_its_answer_has_not_died() -> None:
    """A network that lets the channel through nowhere is no question's doing."""
    setting, unsent = Setting(OURS), failed_event("r", NOT_REACHED)
    for _ in range(5):
        calls = Calls(unsent)
        assert (await setting.ask(calls)).error == NOT_REACHED
        assert calls.num_sent == 2, "it is asked once more"
        setting.clock.now += 60
    assert (await setting.ask(Calls(FINE))).text == "fine"


async def test_a_retry_at_the_replica_that_is_dying_is_the_same_death() -> None:
    """A single replica says that its engine is gone until its process has ended."""
    setting = Setting(OURS)
    stopped = failed_event("r", ErrorInfo("engine_stopped", "gone", retry_after_s=5))
    for _ in range(20):
        calls = Calls(stopped)
        await setting.ask(calls)
        assert calls.num_sent == 2
        setting.clock.now += 0.2
    assert (await setting.ask(Calls(FINE))).text == "fine"


async def test_one_that_was_only_there_when_a_replica_died_is_cleared_by_its_answer() -> None:
    """Frequent questions are at every death of a machine."""
    setting = Setting(OURS)
    for _ in range(5):
        assert (await setting.ask(Calls(LOST, FINE))).text == "fine"


async def test_the_same_question_of_many_clients_was_at_one_death() -> None:
    setting = Setting(OURS)
    for number in range(8):
        sent = GenerateRequest(
            str(number), (Message("user", "a rash"),), None, SamplingParams(8), True
        )
        setting.guard.ended(sent, LOST)
    assert await setting.guard.refusal(call()) is None
    setting.clock.now += 6
    for number in range(8, 16):
        sent = GenerateRequest(
            str(number), (Message("user", "a rash"),), None, SamplingParams(8), True
        )
        setting.guard.ended(sent, LOST)
    assert await setting.guard.refusal(call()) is not None


async def test_a_stream_that_breaks_counts_too() -> None:
    setting = Setting(OURS)
    begun = TokenEvent("r", "a", 1, 3, Timings())
    for _ in range(2):
        assert (await setting.ask(Calls(begun, LOST))).error == LOST.error
        setting.clock.now += 6
    refused = (await setting.ask(Calls(FINE))).error
    assert refused is not None
    assert refused.code == "question_quarantined"


def test_the_quarantine_is_bounded() -> None:
    quarantine = Quarantine(1)
    for number in range(5000):
        quarantine.saw_death(call(str(number)))
    assert len(quarantine._deaths) <= 4096


@pytest.mark.parametrize("skew_s", [-3600.0, -2.0, 0.0, 5.0, 86_400.0])
def test_a_deadline_is_kept_whatever_the_other_clock_says(skew_s: float) -> None:
    from deployments.clocks import ClockOffsets

    here = Clock()
    offsets = ClockOffsets(here)
    for delay_s in (0.4, 0.01, 0.8):  # on their way
        sent_at = here.now + skew_s
        here.now += delay_s
        offsets.hear("router", sent_at)
    left = offsets.seconds_left(here.now + skew_s + 7.0, "router")
    assert left == pytest.approx(7.0, abs=0.02)
    assert offsets.seconds_left(None, "router") is None
    assert offsets.seconds_left(here.now + 3, "unknown") == pytest.approx(3)


def test_a_clock_of_this_machine_is_not_judged_by_a_message_that_waited() -> None:
    from deployments.clocks import ClockOffsets, sender_name

    here = Clock()
    offsets = ClockOffsets(here)
    router = sender_name("router")
    sent_at = here.now
    here.now += 0.8  # the replica was starting
    offsets.hear(router, sent_at)
    assert offsets.seconds_left(here.now + 0.8, router) == pytest.approx(0.8)
    assert sender_name("router") == router
