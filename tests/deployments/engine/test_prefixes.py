"""Prefixes that rows hold: the same tokens as without them, never another's, no row the less."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.engine.attention.kv_cache import are_aligned
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling import scheduler
from deployments.engine.scheduling.prefixes import PrefixCache
from deployments.engine.scheduling.scheduler import Scheduler
from tests.conftest import TINY_ADAPTERS
from tests.deployments.engine.prefix_runs import Driver, Plans
from tests.tiny_models import make_adapter

Catalogs = dict[str, tuple[Path, Path]]
ADAPTERS: list[str | None] = [None, "derm", "cardio"]


def build(
    catalogs: Catalogs, name: str = "llama", rows: int = 4, device: str = "cpu", **more: Any
) -> ModelRunner:
    base_dir, catalog = catalogs[name]
    family: Any = "seq2seq" if name.endswith("t5") else "causal"
    base = load_pretrained(base_dir, family, device=device, dtype="float32")
    folders = {adapter: catalog / "weights" / adapter for adapter in TINY_ADAPTERS}
    limits = FastLimits(max_rows=rows, num_positions=144, max_adapters=4)
    decoder = build_decoder(base, "fast", limits, folders, **more)
    assert isinstance(decoder, ModelRunner)
    for adapter, folder in folders.items():
        decoder.load_adapter(adapter, folder)
    return decoder


@pytest.fixture(scope="module")
def decoder(tiny_catalogs: Catalogs) -> ModelRunner:
    return build(tiny_catalogs)


KINDS = ["torch", pytest.param("compiled", marks=pytest.mark.slow)]


@contextmanager
def decoder_of(kind: str, catalogs: Catalogs) -> Iterator[ModelRunner]:
    """The torch model in float32, or the compiled step of eight bits."""
    if kind == "torch":
        yield build(catalogs)
        return
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(catalogs, weights="int8")
    torch.set_num_threads(previous)


@pytest.fixture(scope="module", params=KINDS)
def either(request: pytest.FixtureRequest, tiny_catalogs: Catalogs) -> Iterator[ModelRunner]:
    with decoder_of(request.param, tiny_catalogs) as decoder:
        yield decoder


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(4, 60), k=length))


def ask(
    ids: tuple[int, ...],
    adapter: str | None = "derm",
    tokens: int = 8,
    tenant: str | None = None,
) -> Request:
    return Request("r", ids, adapter, SamplingParams(tokens, min_tokens=tokens), tenant=tenant)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Request], list[int], dict[int, int]]:
    """Prompts that share beginnings of any length, with arrivals and clients that leave."""
    requests, arrivals, cancels = [], [], {}
    for number in range(draw(st.integers(4, 10))):
        stem = prompt(draw(st.integers(0, 2)), 100)[: draw(st.integers(0, 100))]
        tail = prompt(100 + draw(st.integers(0, 3)), draw(st.integers(1, 24)))
        tokens = draw(st.integers(1, 12))
        adapter = draw(st.sampled_from(ADAPTERS))
        tenant = draw(st.sampled_from([None, "t"]))
        sampling = SamplingParams(tokens, no_repeat_ngram_size=draw(st.sampled_from([0, 3])))
        requests.append(Request(f"r{number}", stem + tail, adapter, sampling, tenant=tenant))
        arrivals.append(draw(st.integers(0, 30)))
        if draw(st.integers(0, 4)) == 0:
            cancels[number] = draw(st.integers(1, 8))
    return requests, arrivals, cancels


@pytest.fixture
def spread_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prompts of a few tokens be as long as those whose pieces are spread."""
    monkeypatch.setattr(scheduler, "LONG_PROMPT", 30)
    monkeypatch.setattr(scheduler, "PIECE", 12)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=conversations(),
    ahead=st.integers(0, 1),
    prefill_tokens=st.sampled_from([7, 40, 200]),
    slowdown=st.sampled_from([None, 1.3]),
)
def test_answers_are_the_same_tokens(
    either: ModelRunner,
    asked: tuple[list[Request], list[int], dict[int, int]],
    ahead: int,
    prefill_tokens: int,
    slowdown: float | None,
    spread_soon: None,
) -> None:
    """Whatever shares a beginning, arrives, leaves or takes another's row; one step late as on a
    GPU, where a row is given on before its last token is known, or not; pieces of prompts spread
    between steps of others, or not."""
    requests, arrivals, cancels = asked
    plain = Driver(either, reuses_prefixes=False)
    expected = [plain.run([request]).tokens[0] for request in requests]
    either.num_steps_ahead = ahead
    try:
        driver = Driver(
            either,
            reuses_prefixes=True,
            prefill_tokens=prefill_tokens,
            long_prompt_slowdown=slowdown,
        )
        for _ in range(2):
            found = driver.run(requests, arrivals=arrivals, cancels=cancels)
            for number, answer in enumerate(found.tokens):
                complete = expected[number]
                assert answer == (complete[: len(answer)] if number in cancels else complete)
    finally:
        either.num_steps_ahead = 0
        assert all(state.length == 0 for state in either._states), "a row is left over"


def test_turns_of_a_conversation_are_read_once(either: ModelRunner) -> None:
    driver = Driver(either, reuses_prefixes=True)
    history = prompt(1, 40)
    for turn in range(3):
        answer = driver.run([ask(history)])
        assert len(answer.tokens[0]) == 8
        # Its own last token was never read: it ended the answer.
        assert answer.num_cached[0] == (0 if turn == 0 else len(history) - 11)
        history += (*answer.tokens[0], *prompt(10 + turn, 10))


def test_streams_with_a_common_beginning_read_it_once(decoder: ModelRunner) -> None:
    requests = [ask(prompt(2, 90) + prompt(20 + n, 10), tokens=2) for n in range(12)]
    plans = Plans(decoder)
    found = Driver(decoder, reuses_prefixes=True, prefill_tokens=256).run(requests)
    assert plans.num_read == 100 + 11 * 10
    assert sorted(found.num_cached.values()) == [0] + 11 * [90]


@pytest.mark.parametrize(
    "other",
    [
        {"adapter": "cardio"},
        {"adapter": None},
        {"tenant": "another"},
        {"tenant": None},
        {"adapter": None, "tenant": None},
    ],
)
def test_the_same_tokens_of_another_are_not_shared(
    decoder: ModelRunner, other: dict[str, Any]
) -> None:
    same = {"adapter": "derm", "tenant": "one"}
    driver = Driver(decoder, reuses_prefixes=True)
    ids = prompt(3, 80)
    driver.run([ask(ids, **same)])
    assert driver.run([ask(ids, **same | other)]).num_cached[0] == 0
    assert driver.run([ask(ids, **same)]).num_cached[0] == 79
    together = driver.run([ask(prompt(4, 80), **same), ask(prompt(4, 80), **same | other)])
    assert together.num_cached == {0: 0, 1: 0}


def test_another_version_under_the_same_name_reads_for_itself(
    tiny_catalogs: Catalogs, tmp_path: Path
) -> None:
    decoder = build(tiny_catalogs)
    driver = Driver(decoder, reuses_prefixes=True)
    ids = prompt(5, 80)
    before = driver.run([ask(ids)]).tokens[0]
    folder = tiny_catalogs["llama"][1] / "weights" / "derm"
    kept = decoder.read_adapter(folder)
    changed = make_adapter(
        tiny_catalogs["llama"][0], tmp_path / "new", base_name="tiny", rank=4, seed=77
    )
    decoder.load_adapter("derm", changed)
    after = driver.run([ask(ids)])
    assert after.num_cached[0] == 0
    assert after.tokens[0] != before, "the two versions answer alike: this shows nothing"
    assert after.tokens[0] == Driver(decoder, reuses_prefixes=False).run([ask(ids)]).tokens[0]
    decoder.install("derm", kept)  # the first content again, maybe in its slot
    again = driver.run([ask(ids)])
    assert (again.num_cached[0], again.tokens[0]) == (0, before)
    decoder.evict("derm")
    decoder.install("derm", kept)
    assert driver.run([ask(ids)]).num_cached[0] == 0


def test_a_row_in_flight_keeps_the_old_version_to_itself(
    tiny_catalogs: Catalogs, tmp_path: Path
) -> None:
    decoder = build(tiny_catalogs)
    changed = make_adapter(
        tiny_catalogs["llama"][0], tmp_path / "new", base_name="tiny", rank=4, seed=77
    )
    driver = Driver(decoder, reuses_prefixes=True)
    inner, steps = decoder.step, []

    def step(scheduled: Any) -> Any:
        steps.append(scheduled)
        if len(steps) == 4:
            decoder.load_adapter("derm", changed)
        return inner(scheduled)

    decoder.step = step  # type: ignore[method-assign]
    found = driver.run([ask(prompt(6, 80), tokens=20)] * 2, arrivals=[0, 8])
    assert found.num_cached == {0: 0, 1: 0}


def test_what_rows_hold_costs_no_row(decoder: ModelRunner) -> None:
    driver = Driver(decoder, reuses_prefixes=True)
    num_rows = len(decoder.capacities)
    for seed in range(num_rows):
        driver.run([ask(prompt(30 + seed, 80))])
    plans = Plans(decoder)
    found = driver.run([ask(prompt(50 + n, 80), tokens=40) for n in range(num_rows)])
    assert found.num_ended == num_rows
    assert max(len(plan.emits) for plan in plans.steps) == num_rows


def test_a_failed_step_leaves_no_prefix(tiny_catalogs: Catalogs) -> None:
    decoder = build(tiny_catalogs)
    driver = Driver(decoder, reuses_prefixes=True)
    driver.run([ask(prompt(7, 80))])
    inner = decoder.step

    def broken(scheduled: Any) -> Any:
        raise RuntimeError("no")

    decoder.step = broken  # type: ignore[method-assign]
    driver.run([ask(prompt(8, 80))])
    decoder.step = inner  # type: ignore[method-assign]
    assert driver.run([ask(prompt(7, 80))]).num_cached[0] == 0
    assert driver.run([ask(prompt(8, 80))]).num_cached[0] == 0


def test_an_encoder_decoder_reads_every_prompt(tiny_catalogs: Catalogs) -> None:
    decoder = build(tiny_catalogs, "flan_t5")
    assert not decoder.can_reuse_prefixes
    driver = Driver(decoder, reuses_prefixes=True)
    for _ in range(2):
        assert driver.run([ask(prompt(9, 60))]).num_cached[0] == 0


def test_rows_that_are_not_aligned_share_nothing() -> None:
    assert are_aligned((160, 32))
    assert not are_aligned((160, 40))


def test_who_waits_for_a_prefix_keeps_no_other_tenant_from_a_row() -> None:
    """Nor another prompt of its own; and it is the next once its prefix was read."""
    books = Scheduler(
        [100] * 6,
        prefill_tokens=64,
        can_split_prompts=True,
        prefixes=PrefixCache(lambda adapter: 0),
    )
    shared = prompt(1, 40)
    first, *same = [books.add(ask(shared, tenant="a"), 0) for _ in range(11)]
    own = books.add(ask(prompt(2, 8), tenant="a"), 0)  # not among those that are looked at
    other, longer = (books.add(ask(prompt(seed, 8), tenant="b"), 0) for seed in (3, 4))
    books.finish(same.pop())
    assert books.schedule(0).admitted == (first, other, longer)
    books.check_invariants()
    for sequence in same[3:]:
        books.finish(sequence)
    assert books.schedule(0).admitted == tuple(same[:3])
    assert [sequence.prefix and sequence.prefix.num_tokens for sequence in same[:3]] == [39] * 3
    assert own.row is None
    books.finish(other)
    assert books.schedule(0).admitted == (own,)
    books.check_invariants()
