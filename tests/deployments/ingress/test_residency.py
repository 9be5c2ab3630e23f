"""Questions go to a replica that holds their adapter, hot ones to several, cold ones to one."""

import asyncio
import itertools
import random
from collections import Counter, OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import PendingRequest

from adapters.prompting import Message
from deployments.engine.request import SamplingParams
from deployments.ingress.placement import AdapterAwareRouter
from deployments.ingress.residency import Residency, ranked, residency
from deployments.messages import GenerateRequest

SLACK = 4


def call(adapter: str | None, version: str | None = "1") -> GenerateRequest:
    turns = (Message("user", "a rash"),)
    sampling = SamplingParams(4)
    return GenerateRequest("r", turns, adapter, sampling, stream=True, adapter_version=version)


def report(replica: str, *held: str) -> dict[str, Any]:
    return {"replica": replica, "adapters_held": list(held)}


def first_ranks(held: set[str], load: dict[str, int], num: int = 200) -> Counter[str]:
    """Which replicas are tried first, and with which number of others."""
    seen: Counter[str] = Counter()
    for _ in range(num):
        ranks = ranked(sorted(load), held.__contains__, load.__getitem__, SLACK)
        assert all(ranks)
        seen[min(ranks[0], key=load.__getitem__)] += 1
    return seen


def test_a_holder_comes_first_and_others_after_it() -> None:
    load = {"a": 3, "b": 0}
    assert ranked(["a", "b"], {"a"}.__contains__, load.__getitem__, SLACK)[0] == ["a"]
    assert len(ranked(["a", "b"], {"a"}.__contains__, load.__getitem__, SLACK)[1]) == 2


def test_a_holder_that_is_too_busy_does_not() -> None:
    assert first_ranks({"a"}, {"a": SLACK, "b": 0}) == {"a": 200}
    assert first_ranks({"a"}, {"a": SLACK + 1, "b": 0}) == {"b": 200}
    assert first_ranks({"a"}, {"a": 90, "b": 90}) == {"a": 200}


@pytest.mark.parametrize("held", [set(), {"a", "b", "c"}])
def test_where_all_or_none_hold_it_two_are_drawn(held: set[str]) -> None:
    seen = first_ranks(held, {"a": 1, "b": 1, "c": 1}, 600)
    assert min(seen.values()) > 100
    ranks = ranked(["a", "b", "c"], held.__contains__, {"a": 1, "b": 1, "c": 1}.__getitem__, SLACK)
    assert [len(rank) for rank in ranks] == [2]


def test_of_several_holders_the_idler_of_two() -> None:
    seen = first_ranks({"a", "b"}, {"a": 3, "b": 1, "c": 1})
    assert seen == {"b": 200}
    assert first_ranks({"a"}, {"a": 5}) == {"a": 200}
    assert ranked([], {"a"}.__contains__, len, SLACK) == [[]]


def test_what_was_seen_and_what_was_sent_since() -> None:
    known = Residency()
    assert not known.holds("m1", call("derma"))
    known.saw([report("m1", "derma", "derma@2"), report("m2")])
    assert known.holds("m1", call("derma", None))
    assert known.holds("m1", call("derma", "2"))
    assert not known.holds("m1", call("derma", "1"))
    assert not known.holds("m2", call("derma", "2"))
    known.sent("m2", call("derma", "1"))
    known.sent("m2", call(None))
    known.sent("unknown", call("derma", "1"))
    assert known.holds("m2", call("derma", "1"))
    known.saw([report("m2")])  # m1 did not answer, and m2 holds nothing any more
    assert not known.holds("m1", call("derma", "2"))
    assert not known.holds("m2", call("derma", "1"))


@pytest.mark.parametrize(
    ("looks", "there", "asked"),
    [
        ([], "ab", "ab"),  # nobody was looked at yet
        (["ab", "ab"], "ab", "ab"),
        (["ab", "a"], "ab", "a"),  # b hangs
        (["ab", "a", "a"], "ab", "a"),
        (["ab", "a", "ab"], "ab", "ab"),  # and goes on
        (["ab", "a"], "abc", "ac"),  # c has just come
        (["ab", "a", "ac"], "abc", "ac"),
        (["ab", ""], "ab", "ab"),  # nobody answers: anybody may
        (["ab", "", "b"], "ab", "b"),
        (["ab", "a"], "b", "b"),
        (["ab", "a"], "", ""),
    ],
)
def test_one_that_did_not_answer_the_last_look_is_not_asked(
    looks: list[str], there: str, asked: str
) -> None:
    known = Residency()
    for look in looks:
        known.saw([report(name) for name in look])
    for _ in range(2):
        assert known.answering(there, str) == list(asked)


@pytest.mark.parametrize(
    ("looks", "given_up"),
    [
        (["ab", "a"], ""),
        (["ab", "a", "a"], "b"),
        (["ab", "a", "ab", "a"], ""),
        (["ab", "", ""], ""),  # nobody answers: there is no other one to ask
        (["ab", "", "", "a"], "b"),
        (["a", "a", "a"], ""),  # b never answered: it is starting
    ],
)
def test_one_that_misses_two_looks_in_a_row_is_given_up(looks: list[str], given_up: str) -> None:
    known = Residency()
    found = [known.saw([report(name) for name in look]) for look in looks]
    assert found[-1] == list(given_up)


def test_the_place_of_a_call_is_known_from_its_choice_to_its_end() -> None:
    known, asked, other = Residency(), call("derma"), call("derma")
    assert known.place_of(asked) is None
    known.chose("m1", asked)
    known.chose("m2", other)  # equal, and another one
    assert (known.place_of(asked), known.place_of(other)) == ("m1", "m2")
    known.ended(asked)
    assert (known.place_of(asked), known.place_of(other)) == (None, "m2")
    kept = [call("derma") for _ in range(20_001)]
    for one in kept:
        known.chose("m1", one)
    assert len(known._places) <= 10_001


def test_those_that_are_gone_are_forgotten() -> None:
    known = Residency()
    for number in range(100):
        known.saw([report(f"m{number}")])
        known.answering([f"m{number}"], str)
    assert len(known._silent) <= 1


async def test_serve_s_router_asks_no_silent_replica() -> None:
    router = _router()
    replicas: list[Any] = [Replica("m1"), Replica("m2")]
    residency().saw([report("m1", "derma@1"), report("m2")])
    residency().saw([report("m2")])
    for pending in (_pending(call("derma")), _pending(call(None)), None):
        assert await router.choose_replicas(replicas, pending) == [[replicas[1]]]
    residency().saw([])
    await router.choose_replicas([], None)


def _router() -> AdapterAwareRouter:
    router = AdapterAwareRouter(
        deployment_id=DeploymentID("Model", "app"),
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.initialize_state(slack=SLACK)
    return router


def _pending(*args: Any) -> Any:
    return SimpleNamespace(args=args, routing_context=SimpleNamespace(should_backoff=False))


async def test_serve_s_router_follows_it() -> None:
    router = _router()
    ids = {name: ReplicaID(name, DeploymentID("Model", "app")) for name in ("m1", "m2")}
    replicas: list[Any] = [
        SimpleNamespace(replica_id=i, max_ongoing_requests=32) for i in ids.values()
    ]
    residency().saw([report("m1", "derma@1"), report("m2")])
    for _ in range(20):
        pending = _pending(call("derma"), 7, ("127.0.0.1", 9))
        ranks = await router.choose_replicas(replicas, pending)
        assert ranks[0] == [replicas[0]]
        assert pending.routing_context.should_backoff  # or Serve spins while all are full
    router.replica_queue_len_cache.update(ids["m1"], SLACK + 1)
    assert [len(r) for r in await router.choose_replicas(replicas, _pending(call("derma")))] == [2]
    router.on_request_routed(_pending(call("derma")), ids["m2"], None)
    assert residency().holds("m2", call("derma"))
    for other in (_pending(call(None)), _pending(), _pending("info"), None):
        assert [len(rank) for rank in await router.choose_replicas(replicas, other)] == [2]
    residency().saw([])


class Replica:
    """What Serve's router needs of one."""

    max_ongoing_requests = 3

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, DeploymentID("Model", "app"))
        self.num_ongoing = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.num_ongoing


async def routed(router: AdapterAwareRouter, number: int, *args: Any) -> Replica:
    """Send one request through Serve's own loop of routing."""
    metadata: Any = SimpleNamespace(
        internal_request_id=str(number), request_id=str(number), multiplexed_model_id=""
    )
    pending = PendingRequest(args=list(args), kwargs={}, metadata=metadata)
    replica: Any = await asyncio.wait_for(router._choose_replica_for_request(pending), 5)
    replica.num_ongoing += 1
    router.on_send_request(replica.replica_id)
    router.on_request_routed(pending, replica.replica_id, None)
    return replica  # type: ignore[no-any-return]


async def test_several_calls_of_one_request_are_all_placed() -> None:
    """Serve gives them one internal id: second opinions, several prompts, several choices."""
    router = _router()
    replicas: list[Any] = [Replica("m1"), Replica("m2")]
    router.update_replicas(replicas)
    found = await asyncio.gather(*(routed(router, 7, call("derma")) for _ in range(4)))
    assert len(found) == 4


async def test_a_choice_is_known_before_the_replica_has_taken_the_call() -> None:
    router = _router()
    replicas: list[Any] = [Replica("m1")]
    router.update_replicas(replicas)
    asked = call(None)
    metadata: Any = SimpleNamespace(
        internal_request_id="1", request_id="1", multiplexed_model_id=""
    )
    pending = PendingRequest(args=[asked], kwargs={}, metadata=metadata)
    await asyncio.wait_for(router._choose_replica_for_request(pending), 5)
    assert residency().place_of(asked) == "m1"
    residency().ended(asked)


async def test_serve_s_own_loop_places_each_request() -> None:
    """A hot adapter: the holder up to the slack, then both; when all are full it waits."""
    router = _router()
    router.initialize_state(slack=1)
    first, second = Replica("m1"), Replica("m2")
    replicas: list[Any] = [first, second]
    router.update_replicas(replicas)
    residency().saw([report("m1", "derma@1"), report("m2", "cardio@1")])
    assert await routed(router, 1, call("derma")) is first
    assert await routed(router, 2, call("cardio")) is second
    assert await routed(router, 3, call("derma")) is first
    assert await routed(router, 4, call("derma")) is first  # one more than m2
    assert await routed(router, 5, call("derma")) is second  # m1 has two more
    assert residency().holds("m2", call("derma"))
    assert await routed(router, 6, call("cardio")) is second
    waiting = asyncio.create_task(routed(router, 7, call("derma")))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    first.num_ongoing = 0
    assert await waiting is first
    residency().saw([])


@pytest.mark.parametrize(("num_replicas", "gain"), [(2, 0.06), (4, 0.15)])
def test_zipf_over_more_adapters_than_places(num_replicas: int, gain: float) -> None:
    """2,000 adapters, 64 places each, loads that ended at once: the share that is found there."""
    found = {slack: hit_rate(num_replicas, slack) for slack in (-1000, SLACK)}
    assert found[SLACK] > found[-1000] + gain, found


def hit_rate(num_replicas: int, slack: int, num: int = 6000) -> float:
    """`slack` far below zero: by load alone. Each question is in progress for the next 24."""
    rng = random.Random(5)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, 2001)))
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(num_replicas)]
    running: list[int] = []
    hits = 0
    for adapter in rng.choices(range(2000), cum_weights=weights, k=num):
        load = Counter(running[-24:])
        ranks = ranked(
            range(num_replicas), lambda r, a=adapter: a in caches[r], load.__getitem__, slack
        )
        chosen = min(ranks[0], key=load.__getitem__)
        running.append(chosen)
        cache = caches[chosen]
        hits += adapter in cache
        cache[adapter] = None
        cache.move_to_end(adapter)
        if len(cache) > 64:
            cache.popitem(last=False)
    return hits / num
