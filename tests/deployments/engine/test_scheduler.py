"""The scheduler's promises, with the books checked after every step."""

import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.request import Request, SamplingParams, SchedulerOutput, SequenceState
from deployments.engine.scheduling.fairness import TokenCounters
from deployments.engine.scheduling.scheduler import Scheduler


def request(
    adapter: str | None = "a", prompt: int = 4, tokens: int = 3, deadline_s: float | None = None
) -> Request:
    return Request("r", tuple(range(prompt)), adapter, SamplingParams(tokens), deadline_s)


def scheduler(
    capacities: tuple[int, ...] = (16, 16),
    prefill_tokens: int = 64,
    *,
    can_split: bool = True,
    together: int = 1,
) -> Scheduler:
    return Scheduler(
        capacities,
        prefill_tokens=prefill_tokens,
        can_split_prompts=can_split,
        prompts_together=together,
    )


def step(books: Scheduler, now: float = 0.0) -> SchedulerOutput:
    """One step whose rows end at max_tokens."""
    plan = books.schedule(now)
    books.check_invariants()
    end_planned(books, plan)
    return plan


def end_planned(books: Scheduler, plan: SchedulerOutput) -> None:
    for job in plan.emits:
        if job.num_scheduled == job.request.sampling.max_tokens:
            books.finish(job)
    books.check_invariants()


def test_a_request_joins_the_running_batch() -> None:
    books = scheduler()
    first = books.add(request("a", prompt=4, tokens=3), 0)
    plan = step(books)
    assert [(c.row, c.start, c.stop, c.is_last) for c in plan.prefill] == [(0, 0, 4, True)]
    assert plan.emits == (first,)
    second = books.add(request("b"), 0)
    plan = step(books)
    assert (plan.decode, plan.admitted, plan.emits) == ((0,), (second,), (second, first))
    plan = step(books)
    assert plan.decode == (0, 1)
    assert first.is_finished
    assert step(books).decode == (1,)
    assert step(books).is_empty


def test_a_long_prompt_is_read_in_pieces_while_others_decode() -> None:
    books = scheduler((32, 32), prefill_tokens=4)
    books.add(request("a", prompt=2, tokens=9), 0)
    step(books)
    books.add(request("b", prompt=10), 0)
    pieces = []
    for _ in range(3):
        plan = step(books)
        assert plan.decode == (0,), "decoding stalled"
        pieces += [(c.start, c.stop, c.is_last) for c in plan.prefill]
    assert pieces == [(0, 4, False), (4, 8, False), (8, 10, True)]


def test_short_prompts_do_not_wait_for_the_end_of_a_long_one() -> None:
    books = scheduler((200, 32, 32), prefill_tokens=8)
    long = books.add(request("a", prompt=160), 0)
    step(books)
    short = [books.add(request("b", prompt=6), 0), books.add(request("c", prompt=7), 0)]
    read = [step(books) for _ in range(4)]
    assert [chunk.stop - chunk.start for chunk in read[0].prefill] == [4, 4], "half of a step each"
    assert all(each.is_prefilled for each in short)
    assert all(any(c.row == long.row for c in plan.prefill) for plan in read), "it goes on too"
    assert [chunk.stop - chunk.start for chunk in step(books).prefill] == [8], "alone again"


def test_pieces_get_smaller_deep_inside_a_prompt_while_others_decode() -> None:
    sizes = {}
    for num_decoding in (0, 1):
        books = scheduler((64, 40_000), prefill_tokens=300)
        for _ in range(num_decoding):
            books.add(request("a", prompt=1, tokens=60), 0)
            step(books)
        books.add(request("b", prompt=12_000), 0)
        chunks = [chunk for _ in range(50) for chunk in step(books).prefill]
        sizes[num_decoding] = {c.start // 4096: c.stop - c.start for c in chunks if not c.is_last}
    assert sizes == {0: {0: 300, 1: 300, 2: 300}, 1: {0: 300, 1: 150, 2: 100}}


def test_prompts_that_cannot_be_split_stay_whole() -> None:
    books = scheduler((32,) * 4, prefill_tokens=8, can_split=False)
    for prompt in (20, 5, 3, 4):
        books.add(request("a", prompt=prompt), 0)
    sizes = [[c.stop - c.start for c in step(books).prefill] for _ in range(3)]
    assert sizes == [[20], [5, 3], [4]]


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"may need 17 positions.*largest row has 16"):
        scheduler((8, 16)).add(request(prompt=14, tokens=3), 0)


def test_a_large_request_waits_for_a_large_row_and_is_not_overtaken_there() -> None:
    books = scheduler((8, 8, 32), prefill_tokens=100)
    holder = books.add(request("a", prompt=20, tokens=5), 0)
    step(books)
    assert holder.row == 2
    books.add(request("b", prompt=20, tokens=5), 0)
    small = [books.add(request("c", prompt=2, tokens=5), 0) for _ in range(4)]
    plan = step(books)
    assert plan.admitted == tuple(small[:2]), "small ones may use the small rows"
    while not holder.is_finished:
        step(books)
    plan = step(books)
    assert [job.request.adapter for job in plan.admitted if job.row == 2] == ["b"]


def test_what_waits_for_a_large_row_keeps_its_own_adapter_from_no_small_one() -> None:
    books = scheduler((8, 8, 32), prefill_tokens=100)
    holder = books.add(request("a", prompt=20, tokens=5), 0)
    step(books)
    large = books.add(request("a", prompt=20, tokens=5), 0)
    small = [books.add(request("a", prompt=2, tokens=5), 0) for _ in range(40)]
    assert step(books).admitted == tuple(small[:2])
    while not holder.is_finished:
        step(books)
    step(books)
    assert large.row == 2


def test_a_flood_on_one_adapter_does_not_starve_another() -> None:
    books = scheduler((16,) * 2)
    flood = [books.add(request("a", tokens=4), 0) for _ in range(200)]
    for _ in range(10):
        step(books)
    late = books.add(request("b", tokens=4), 0)
    num_steps = 0
    while late.row is None:
        step(books)
        num_steps += 1
    assert num_steps <= 4, "b waited for more than what was already running"
    assert sum(job.row is None for job in flood) > 150


def test_adapters_that_wait_get_equal_service() -> None:
    books = scheduler((16,) * 3)
    jobs = {
        name: [books.add(request(name, prompt=prompt, tokens=tokens), 0) for _ in range(60)]
        for name, prompt, tokens in (("a", 4, 2), ("b", 4, 8), ("c", 8, 4))
    }
    for _ in range(90):
        step(books)
    served = {
        name: sum(job.num_prefilled + 2 * job.num_scheduled for job in of)
        for name, of in jobs.items()
    }
    assert max(served.values()) - min(served.values()) <= 3 * (8 + 2 * 8), served


def test_a_pause_saves_no_credit() -> None:
    counters = TokenCounters()
    counters.arrive("busy", [])
    counters.charge("busy", 1000)
    counters.arrive("back", ["busy"])
    assert counters.of("back") == 1000
    counters.leave("busy")
    counters.arrive("new", [])
    assert counters.of("new") == 1000


def test_deadlines_end_what_waits_and_what_runs() -> None:
    books = scheduler((16,))
    running = books.add(request("a", tokens=9, deadline_s=2.0), 10.0)
    waiting = books.add(request("a", deadline_s=1.0), 10.0)
    endless = books.add(request("a", deadline_s=None), 10.0)
    assert step(books, 10.9).expired == ()
    assert step(books, 11.0).expired == (waiting,)
    plan = step(books, 12.0)
    assert plan.expired == (running,)
    assert plan.admitted == (endless,), "the row is free in the same step"


def test_a_cancelled_row_is_free_in_the_next_step() -> None:
    books = scheduler((16,))
    first, second = books.add(request("a", tokens=9), 0), books.add(request("a"), 0)
    step(books)
    books.finish(first)
    books.finish(first)
    books.check_invariants()
    assert step(books).admitted == (second,)


def test_a_row_is_free_once_its_last_token_is_planned() -> None:
    """The host may not have seen that token yet: it runs one step behind the device."""
    books = scheduler((16,))
    first, second = books.add(request("a", tokens=1), 0), books.add(request("b"), 0)
    assert books.schedule(0).emits == (first,)
    plan = books.schedule(0)
    books.check_invariants()
    assert (plan.released, plan.admitted, second.row) == ((0,), (second,), 0)
    assert first in books.sequences, "its token is still on its way"
    books.finish(first)
    books.check_invariants()
    assert books.num_running == 1, "the row belongs to the second one"
    assert first not in books.sequences


def test_a_late_deadline_leaves_the_next_owner_alone() -> None:
    books = scheduler((16,))
    first = books.add(request("a", tokens=1, deadline_s=1.0), 0)
    books.schedule(0)
    second = books.add(request("b", tokens=5), 0)
    books.schedule(0.5)
    assert books.schedule(1.5).expired == (first,)
    books.check_invariants()
    assert second.holds_row


def test_a_crowd_is_let_in_a_few_at_a_time() -> None:
    books = scheduler((32,) * 6, together=3)
    running = [books.add(request("a", tokens=20), 0) for _ in range(6)]
    step(books)
    crowd = [books.add(request("b", tokens=20), 0) for _ in range(4)]
    books.finish(running[0])
    books.finish(running[1])
    assert step(books).admitted == (), "two rows are free, and more than two requests wait"
    books.finish(running[2])
    assert step(books).admitted == tuple(crowd[:3])
    books.finish(running[3])
    assert step(books).admitted == (crowd[3],), "it is the last one: nobody else would come along"


def test_patience_has_an_end() -> None:
    books = scheduler((32,) * 3, together=3)
    first = [books.add(request("a", tokens=25), 0) for _ in range(3)]
    step(books)
    for _ in range(5):
        books.add(request("b"), 0)
    books.finish(first[0])
    num_steps = 0
    while not step(books).admitted:
        num_steps += 1
    assert num_steps == 8


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_books_balance_whatever_happens(data: st.DataObject) -> None:
    capacities = tuple(data.draw(st.lists(st.integers(8, 40), min_size=1, max_size=5)))
    cap = data.draw(st.integers(1, 30))
    can_split = data.draw(st.booleans())
    together = data.draw(st.integers(1, 4))
    books = scheduler(capacities, cap, can_split=can_split, together=together)
    num_behind = data.draw(st.integers(0, 1))  # steps that the host is behind the plans
    planned: deque[SchedulerOutput] = deque()
    jobs: list[SequenceState] = []
    for now in range(data.draw(st.integers(1, 30))):
        for _ in range(data.draw(st.integers(0, 3))):
            tokens = data.draw(st.integers(1, 6))
            prompt = data.draw(st.integers(1, max(1, max(capacities) - tokens)))
            limit = data.draw(st.sampled_from([None, None, 3.0]))
            adapter = data.draw(st.sampled_from([None, "a", "b"]))
            jobs.append(books.add(request(adapter, prompt, tokens, limit), now))
        plan = books.schedule(now)
        books.check_invariants()
        planned.append(plan)
        if len(planned) > num_behind:
            end_planned(books, planned.popleft())
        total = sum(c.stop - c.start for c in plan.prefill)
        assert total <= cap or (not can_split and len(plan.prefill) == 1)
        assert len({c.row for c in plan.prefill} | set(plan.decode)) == len(plan.prefill) + len(
            plan.decode
        )
        if jobs and data.draw(st.booleans()):
            books.finish(data.draw(st.sampled_from(jobs)))
            books.check_invariants()
    while planned:
        end_planned(books, planned.popleft())
    bound = sum(j.num_positions + 8 for j in jobs) + 1
    for _ in range(bound):
        if not books.sequences:
            break
        step(books, math.inf)
    assert not books.sequences, "work was left over"


def test_everything_ends_without_deadlines_too() -> None:
    books = scheduler((8, 24), prefill_tokens=3)
    jobs = [books.add(request("ab"[i % 2], prompt=1 + 3 * i % 19, tokens=5), 0) for i in range(20)]
    for _ in range(400):
        step(books)
    assert all(job.num_scheduled == 5 for job in jobs)


@pytest.mark.parametrize(("num_decoding", "waits"), [(7, 0), (8, 8)])
def test_prompts_wait_for_each_other_while_many_rows_decode(num_decoding: int, waits: int) -> None:
    """Eight rows lose more by a prefill than a few steps' wait costs one prompt."""
    books = scheduler((40,) * 20, together=2)
    for _ in range(num_decoding):
        books.add(request(tokens=30), 0)
    assert len(step(books).admitted) == num_decoding
    books.add(request(tokens=30), 0)
    admitted = [len(step(books).admitted) for _ in range(waits + 1)]
    assert admitted == [0] * waits + [1]
    for _ in range(2):
        books.add(request(tokens=30), 0)
    assert len(step(books).admitted) == 2, "as many as are read together wait for nobody"
