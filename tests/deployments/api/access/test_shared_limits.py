"""Three router replicas and one ledger, on a clock that stands still until a test moves it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.api.access import shared_limits
from deployments.api.access.leased_usage import SharedKeyUsage
from deployments.api.access.limit_ledger import (
    LEASE_S,
    LEASED_SHARE,
    Claims,
    Grants,
    LimitLedger,
    Turn,
    leased_ahead,
)
from deployments.api.access.rate_limits import Limits
from deployments.api.access.shared_limits import SharedUsageTable

KEY = "0123456789ab"
NUM_ROUTERS = 3


class Cluster:
    """`is_reachable`: whether the ledger answers; `hears`: if it does not, whether it gets what is
    said, and only its answers are lost. `lost`: routers that claim nothing any more. `on_its_way`
    is called with an answer of the ledger on its way."""

    def __init__(self, num_routers: int = NUM_ROUTERS) -> None:
        self.now = 1000.0
        self.ledger = LimitLedger(lambda: self.now)
        self.is_reachable = True
        self.hears = False
        self.num_exchanges = 0
        self.on_its_way: Callable[[], Awaitable[None]] | None = None
        self.routers = [
            SharedUsageTable(self, num_routers, lambda: self.now) for _ in range(num_routers)
        ]
        self.lost: set[int] = set()

    async def exchange(self, session: str, turn: Turn, claims: Claims) -> Grants:
        self.num_exchanges += 1
        if not self.is_reachable:
            if self.hears:
                self.ledger.exchange(session, turn, claims)
            raise ConnectionError("away")
        grants = self.ledger.exchange(session, turn, claims)
        if self.on_its_way is not None:
            await self.on_its_way()
        return grants

    def replace_ledger(self) -> None:
        """As Ray does after the actor's death."""
        self.ledger = LimitLedger(lambda: self.now, starts_full=False)

    def usage(self, router: int) -> SharedKeyUsage:
        return self.routers[router].usage(KEY)

    async def asked(self, router: int, limits: Limits) -> bool:
        """Whether a request is let in; it is in progress then."""
        return await self.routers[router].admit(self.usage(router), limits) is None

    async def answered(self, router: int, limits: Limits, num_tokens: int = 0) -> bool:
        """Whether a request is let in; it has ended."""
        if not await self.asked(router, limits):
            return False
        usage = self.usage(router)
        usage.charge(num_tokens, limits)
        usage.end()
        return True

    async def passes(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let time pass, with the routers' messages."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now = min(until, self.now + step_s)
            for router, table in enumerate(self.routers):
                if router not in self.lost:
                    await table.exchanged()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "_PAUSE_S", 0)
    monkeypatch.setattr(shared_limits, "REFUSED_S", 0)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def burst(cluster: Cluster, limits: Limits, num_each: int) -> list[int]:
    """Ask on each router in turn; returns how many each let in."""
    admitted = [0] * len(cluster.routers)
    for _ in range(num_each):
        for router in range(len(cluster.routers)):
            if router not in cluster.lost:
                admitted[router] += await cluster.answered(router, limits)
    return admitted


@pytest.mark.parametrize("limit", [1, 2, 7, 30, 100, 1000])
async def test_a_burst_on_every_router_gets_one_limit_in_all(limit: int) -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=limit)
    admitted = sum(await burst(cluster, limits, limit + 1))
    assert limit - limit / LEASED_SHARE <= admitted <= limit


@pytest.mark.parametrize("limit", [1, 2, 7, 30, 100, 1000])
async def test_a_burst_on_one_router_gets_the_whole_limit(limit: int) -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=limit)
    answered = [await cluster.answered(1, limits) for _ in range(limit + 5)]
    assert answered == [True] * limit + [False] * 5
    assert cluster.usage(1).headers(limits)[1] == (b"x-ratelimit-remaining-requests", b"0")


@settings(max_examples=30, deadline=None)
@given(
    limit=st.integers(1, 400),
    demand=st.lists(
        st.tuples(st.floats(0.01, 8.0), st.integers(0, NUM_ROUTERS - 1), st.integers(1, 40)),
        min_size=1,
        max_size=40,
    ),
)
def test_never_more_than_the_limit_whoever_is_asked(
    limit: int, demand: list[tuple[float, int, int]]
) -> None:
    """A bucket of `limit` that fills in a minute, as with one router: no window gets more."""

    async def scenario() -> None:
        cluster, limits = Cluster(), Limits(requests_per_minute=limit)
        started, admitted = cluster.now, 0
        for pause_s, router, num_requests in demand:
            await cluster.passes(pause_s)
            for _ in range(num_requests):
                admitted += await cluster.answered(router, limits)
            allowed = limit * (1 + (cluster.now - started) / 60)
            assert admitted <= allowed + 1e-6

    run(scenario)


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(1, 200), weights=st.tuples(*[st.integers(0, 5)] * NUM_ROUTERS))
def test_never_less_than_a_tenth_below_the_limit_under_steady_demand(
    limit: int, weights: tuple[int, ...]
) -> None:
    """The demand is above the limit, however it is spread; after the first minute's burst."""
    if not any(weights):
        weights = (1, 1, 1)

    async def scenario() -> None:
        cluster, limits = Cluster(), Limits(requests_per_minute=limit)
        asked_a_second = [round(w * max(1, limit / 30)) for w in weights]
        admitted = 0
        for _ in range(90):
            await cluster.passes(1)
            for router, num_requests in enumerate(asked_a_second):
                for _ in range(num_requests):
                    if not await cluster.answered(router, limits):
                        break
                    admitted += 1
        allowed = limit * (1 + 90 / 60)
        # One more: what fills since the last second is not asked for.
        assert allowed - limit / LEASED_SHARE - limit / 60 - 1 <= admitted <= allowed + 1e-6

    run(scenario)


@settings(max_examples=30, deadline=None)
@given(
    limit=st.integers(1, 40),
    steps=st.lists(st.tuples(st.integers(0, NUM_ROUTERS - 1), st.booleans()), max_size=120),
)
def test_never_more_at_the_same_time(limit: int, steps: list[tuple[int, bool]]) -> None:
    async def scenario() -> None:
        cluster, limits = Cluster(), Limits(max_concurrent=limit)
        running = [0] * NUM_ROUTERS
        for router, begins in steps:
            if begins:
                running[router] += await cluster.asked(router, limits)
            elif running[router]:
                cluster.usage(router).end()
                running[router] -= 1
            assert sum(running) <= limit
        await cluster.passes(2)
        free = limit - sum(running)
        taken = 0
        while await cluster.asked(0, limits):
            taken += 1
        spare = NUM_ROUTERS * leased_ahead(limit, NUM_ROUTERS)
        assert free - spare <= taken <= free

    run(scenario)


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize(
    ("limits", "num_late"), [(Limits(requests_per_minute=60), 2), (Limits(max_concurrent=30), 1)]
)
async def test_what_is_on_its_way_back_is_not_used(
    limits: Limits, num_late: int, arrives: bool
) -> None:
    """A router gives back what it has leased ahead, and requests come before it hears of that."""
    cluster = Cluster()
    most = limits.requests_per_minute or limits.max_concurrent or 0
    assert await cluster.asked(0, limits)
    late: list[asyncio.Task[bool]] = []

    async def come() -> None:
        cluster.on_its_way = None
        late.extend(asyncio.create_task(cluster.asked(0, limits)) for _ in range(num_late))
        for _ in range(5):
            await asyncio.sleep(0)
        if not arrives:
            raise ConnectionError("the answer is lost")

    cluster.on_its_way = come
    await cluster.routers[0].exchanged()
    admitted = 1
    while await cluster.asked(1, limits):
        admitted += 1
    assert admitted + sum(await asyncio.gather(*late)) <= most
    await cluster.passes(2)
    assert not cluster.routers[0].is_away


async def test_a_client_that_asks_one_after_another_is_never_refused_one_at_a_time() -> None:
    """Each request comes to another router, a moment after the one before has ended."""
    cluster, limits = Cluster(), Limits(max_concurrent=1)
    for number in range(30):
        assert await cluster.asked(number % NUM_ROUTERS, limits), number
        assert not await cluster.asked((number + 1) % NUM_ROUTERS, limits)
        cluster.usage(number % NUM_ROUTERS).end()


async def test_tokens_count_for_all_when_the_answer_ends() -> None:
    cluster, limits = Cluster(), Limits(tokens_per_minute=6000)
    assert await cluster.answered(0, limits, 9000)
    await cluster.passes(1)
    for router in range(NUM_ROUTERS):
        assert not await cluster.answered(router, limits)
    excess = await cluster.routers[2].admit(cluster.usage(2), limits)
    assert excess is not None
    assert excess.limit == "tokens_per_minute"
    assert 29 <= excess.retry_after_s <= 31
    await cluster.passes(excess.retry_after_s)
    assert await cluster.answered(2, limits, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, NUM_ROUTERS - 1), st.integers(0, 500)), max_size=60))
def test_tokens_stay_within_the_limit_and_the_answers_in_progress(
    answers: list[tuple[int, int]],
) -> None:
    async def scenario() -> None:
        limit, longest = 3000, 500
        cluster, limits = Cluster(), Limits(tokens_per_minute=limit)
        used = 0
        for router, num_tokens in answers:
            if await cluster.answered(router, limits, num_tokens):
                used += num_tokens
            # What an answer takes is known at its end: the last token of each router's lease lets
            # a whole answer in.
            assert used <= limit + NUM_ROUTERS * (longest - 1)

    run(scenario)


@pytest.mark.parametrize("limit", [3, 30, 300])
async def test_a_lost_router_s_lease_comes_back(limit: int) -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=limit, max_concurrent=5)
    for _ in range(5):
        assert await cluster.asked(0, limits) or limit < 5
    cluster.lost.add(0)
    assert not await cluster.asked(1, limits)
    await cluster.passes(LEASE_S + 1)
    admitted = sum(await burst(cluster, limits, limit))
    used = min(5, limit)
    assert admitted >= limit - used - limit / LEASED_SHARE


@pytest.mark.parametrize("limit", [1, 2, 30, 300])
async def test_without_the_ledger_each_router_has_its_share(limit: int) -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=limit, max_concurrent=limit)
    cluster.is_reachable = False
    first = sum(await burst(cluster, limits, limit))
    assert first <= NUM_ROUTERS  # nothing is known of the key: one request each, and then the rate
    await cluster.passes(60)
    later = await burst(cluster, limits, 2 * limit)
    share = max(1, limit // NUM_ROUTERS)
    assert max(later) <= share
    assert sum(later) >= limit - NUM_ROUTERS


@pytest.mark.parametrize("limit", [1, 2, 7, 40])
async def test_without_the_ledger_as_many_at_once_as_the_share(limit: int) -> None:
    cluster, limits = Cluster(), Limits(max_concurrent=limit)
    cluster.is_reachable = False
    for router in range(NUM_ROUTERS):
        taken = 0
        while await cluster.asked(router, limits):
            taken += 1
        assert taken == max(1, limit // NUM_ROUTERS)


@pytest.mark.parametrize("is_restarted", [True, False])
@pytest.mark.parametrize("limit", [30, 300])
async def test_the_ledger_goes_and_comes_back_after_the_limit_was_used(
    limit: int, is_restarted: bool
) -> None:
    """Two minutes, of which the ledger is away for 20 s: the bound holds all the time."""
    cluster, limits = Cluster(), Limits(requests_per_minute=limit)
    started, admitted = cluster.now, 0
    for second in range(120):
        if second == 30:
            cluster.is_reachable = False
        if second == 50:
            cluster.is_reachable = True
            if is_restarted:
                cluster.replace_ledger()
        await cluster.passes(1)
        admitted += sum(await burst(cluster, limits, limit // 20))
        allowed = limit * (1 + (cluster.now - started) / 60)
        assert admitted <= allowed + limit / LEASED_SHARE + NUM_ROUTERS, second
    assert admitted >= allowed - limit / 3
    assert not any(table.is_away for table in cluster.routers)


@pytest.mark.parametrize("hears", [True, False])
@pytest.mark.parametrize("limit", [5, 30, 300])
async def test_a_ledger_that_is_away_every_other_second(limit: int, hears: bool) -> None:
    """As on a machine that is too busy: nothing is gained from it, however often it happens."""
    cluster, limits = Cluster(), Limits(requests_per_minute=limit)
    cluster.hears = hears
    started, admitted = cluster.now, 0
    for second in range(90):
        cluster.is_reachable = second % 2 == 0
        await cluster.passes(1)
        admitted += sum(await burst(cluster, limits, 1 + limit // 20))
        allowed = limit * (1 + (cluster.now - started) / 60)
        assert admitted <= allowed + limit / LEASED_SHARE + NUM_ROUTERS, second
    assert admitted >= allowed - limit / 3 - 3


async def test_no_request_waits_for_a_ledger_that_is_away() -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=60)
    cluster.is_reachable = False
    assert await cluster.answered(0, limits)
    assert cluster.routers[0].is_away
    asked = cluster.num_exchanges
    for _ in range(20):
        await cluster.answered(0, limits)
    assert cluster.num_exchanges == asked


async def test_a_ledger_that_hangs_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "TIMEOUT_S", 0.02)

    class Hanging:
        def exchange(self, session: str, turn: Turn, claims: Claims) -> Awaitable[Grants]:
            return asyncio.get_running_loop().create_future()

    table = SharedUsageTable(Hanging(), NUM_ROUTERS, lambda: 5.0)
    assert await table.admit(table.usage(KEY), Limits(requests_per_minute=9)) is None
    assert table.is_away


async def test_a_changed_limit_takes_effect_at_once_on_each_router() -> None:
    cluster = Cluster()
    assert sum(await burst(cluster, Limits(requests_per_minute=600), 10)) == 30
    lowered = Limits(requests_per_minute=6)
    await burst(cluster, lowered, 1)
    await cluster.passes(2)
    # The share that was left stays, of the new limit; leases of the old one are given back.
    assert sum(await burst(cluster, lowered, 30)) <= 6 + 1
    await cluster.passes(60)
    raised = Limits(requests_per_minute=60)
    assert sum(await burst(cluster, raised, 60)) >= 54


async def test_an_idle_key_is_given_back_and_forgotten() -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=600, max_concurrent=100)
    assert await cluster.answered(0, limits)
    before = cluster.usage(0)
    await cluster.passes(2)
    assert before.is_idle
    cluster.routers[0].forget_unused()
    assert cluster.usage(0) is before
    await cluster.passes(60)
    cluster.routers[0].forget_unused()
    assert cluster.usage(0) is not before
    assert [await cluster.answered(1, limits) for _ in range(600)].count(True) >= 599


async def test_concurrent_requests_share_one_message() -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=1000, max_concurrent=500)
    admitted = await asyncio.gather(*(cluster.asked(0, limits) for _ in range(200)))
    assert all(admitted)
    assert cluster.num_exchanges <= 4


async def test_the_ledger_keeps_only_keys_that_are_in_use() -> None:
    cluster, limits = Cluster(), Limits(requests_per_minute=60, max_concurrent=5)
    for number in range(50):
        usage = cluster.routers[0].usage(f"{number:012x}")
        assert await cluster.routers[0].admit(usage, limits) is None
        usage.end()
    assert await cluster.asked(1, limits)
    assert len(cluster.ledger._accounts) == 51
    await cluster.passes(130)
    assert list(cluster.ledger._accounts) == [KEY]
