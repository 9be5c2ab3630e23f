"""next_group: pure, so table tests and properties are enough."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.group_loop import next_group


def request(adapter: str | None, temperature: float = 0.0) -> Request:
    return Request("r", (1, 2), adapter, SamplingParams(4, temperature=temperature))


def test_nothing_waits() -> None:
    assert next_group([], 4) == []


def test_the_oldest_request_picks_the_adapter() -> None:
    waiting = [request("a"), request("b"), request("a"), request(None), request("a")]
    assert next_group(waiting, 8) == [0, 2, 4]


def test_rows_are_bounded_and_the_oldest_go_first() -> None:
    assert next_group([request("a")] * 5, 3) == [0, 1, 2]


def test_a_sampled_request_runs_alone() -> None:
    waiting = [request("a", temperature=0.7), request("a"), request("a")]
    assert next_group(waiting, 8) == [0]
    assert next_group(waiting[1:] + waiting[:1], 8) == [0, 1]


def test_a_flood_on_one_adapter_delays_another_by_one_group() -> None:
    flood = [request("a") for _ in range(100)]
    waiting = [*flood[:50], request("b"), *flood[50:]]
    num_groups = 0
    while True:
        group = next_group(waiting, 4)
        num_groups += 1
        if waiting[group[0]].adapter == "b":
            break
        waiting = [r for position, r in enumerate(waiting) if position not in group]
    # 50 older ones at 4 a group, with younger ones filling up no group of their own before "b"
    assert num_groups <= 50 // 4 + 2


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([0.0, 0.5]))),
    st.integers(1, 5),
)
def test_every_group_keeps_its_contract(kinds: list[tuple[str | None, float]], rows: int) -> None:
    waiting = [request(adapter, temperature) for adapter, temperature in kinds]
    group = next_group(waiting, rows)
    assert group == sorted(set(group))
    assert len(group) <= rows
    assert bool(group) == bool(waiting)
    if waiting:
        assert group[0] == 0
        chosen = [waiting[position] for position in group]
        assert len({r.adapter for r in chosen}) == 1
        assert len(chosen) == 1 or all(r.sampling.is_greedy for r in chosen)
