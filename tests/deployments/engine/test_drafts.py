"""Tokens guessed from the prompt: the same answers, several tokens a step where they quote."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.drafts import PromptLookup
from tests.deployments.engine.captured_on_host import captured
from tests.deployments.engine.planted_guesses import know
from tests.deployments.engine.prefix_runs import Answers, Driver
from tests.deployments.engine.test_parity import one_thread
from tests.deployments.engine.test_prefixes import KINDS, Catalogs, build, decoder_of, prompt

__all__ = ["one_thread"]  # a fixture


ON_HOST = ["llama as captured", "flan_t5 as captured"]
ON_GPU = ["llama on a GPU", "flan_t5 on a GPU"] if torch.cuda.is_available() else []


@pytest.fixture(scope="module", params=[*KINDS, "flan_t5", *ON_HOST, *ON_GPU])
def decoder(request: pytest.FixtureRequest, tiny_catalogs: Catalogs) -> Iterator[ModelRunner]:
    name, _, how = request.param.partition(" ")
    if how or name == "flan_t5":
        device = "cuda" if how == "on a GPU" else "cpu"
        found = build(tiny_catalogs, name, device=device, batch_invariant=True)
        with pytest.MonkeyPatch.context() as patch:
            if request.param in ON_HOST:
                captured(found, patch)
            yield found
        return
    with decoder_of(request.param, tiny_catalogs) as found:
        yield found


class Steps:
    """Counts the steps of a decoder."""

    def __init__(self, decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num, self.num_drafted, self.most_rows = 0, 0, 0
        step, step_drafts = decoder.step, decoder.step_drafts

        def counted(scheduled: Any) -> Any:
            self.num += 1
            return step(scheduled)

        def drafted(lines: Any) -> Any:
            self.num += 1
            self.num_drafted += 1
            self.most_rows = max(self.most_rows, len(lines))
            return step_drafts(lines)

        monkeypatch.setattr(decoder, "step", counted)
        monkeypatch.setattr(decoder, "step_drafts", drafted)


def run(decoder: ModelRunner, requests: list[Request], **more: Any) -> Answers:
    return Driver(decoder, reuses_prefixes=True, tries_drafts=True).run(requests, **more)


def plain(decoder: ModelRunner, request: Request) -> list[int]:
    return Driver(decoder, reuses_prefixes=False).run([request]).tokens[0]


@st.composite
def questions(draw: st.DrawFn) -> list[Request]:
    """Prompts that repeat themselves, with whatever shapes an answer."""
    asked = []
    for _ in range(draw(st.integers(1, 4))):
        passage = prompt(draw(st.integers(0, 5)), draw(st.integers(4, 30)))
        ids = passage * draw(st.integers(1, 3)) + prompt(9, 5)
        tokens = draw(st.integers(1, 40))
        params = SamplingParams(
            tokens,
            repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3])),
            no_repeat_ngram_size=draw(st.sampled_from([0, 0, 4])),
            min_tokens=draw(st.integers(0, tokens)),
            temperature=draw(st.sampled_from([0.0, 0.0, 0.8])),
            seed=3,
        )
        adapter = draw(st.sampled_from([None, "derm", "cardio"]))
        asked.append(Request("r", ids, adapter, params))
    return asked


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=questions(), gap=st.integers(0, 6), leaves=st.integers(0, 12))
def test_answers_are_the_same_tokens(
    decoder: ModelRunner, asked: list[Request], gap: int, leaves: int
) -> None:
    expected = [plain(decoder, request) for request in asked]
    arrivals = [gap * number for number in range(len(asked))]
    cancels = {0: leaves} if leaves and len(asked) > 1 else {}
    found = run(decoder, asked, arrivals=arrivals, cancels=cancels)
    for number, answer in enumerate(found.tokens):
        complete = expected[number]
        assert answer == (complete[: len(answer)] if number in cancels else complete)
    assert all(state.length == 0 for state in decoder._states), "a row is left over"


def quoting(decoder: ModelRunner, tokens: int = 32) -> Request:
    """A prompt that holds its own answer: what the model says to it, found by trying."""
    sampling = SamplingParams(tokens, min_tokens=tokens)
    ids = prompt(3, 12)
    for _ in range(6):
        answer = plain(decoder, Request("r", ids, "derm", sampling))
        ids = (*prompt(3, 12), *answer[:40], *prompt(3, 12)[-4:])
    return Request("r", ids, "derm", sampling)


def test_an_answer_that_repeats_itself_takes_fewer_steps(
    decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = quoting(decoder)
    expected = plain(decoder, asked)
    know(monkeypatch, {asked.prompt_ids: expected})
    steps = Steps(decoder, monkeypatch)
    assert run(decoder, [asked]).tokens[0] == expected
    assert steps.num_drafted
    assert steps.num < 0.7 * len(expected)


def test_a_token_picked_from_logits_behind_guesses_is_read_next(
    tiny_catalogs: Catalogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step's tokens are the captured step's own, the next one's are picked, the third has no
    guesses: it reads what was picked."""
    decoder = build(tiny_catalogs, batch_invariant=True)
    captured(decoder, monkeypatch)
    asked = Request("r", prompt(3, 12), "derm", SamplingParams(12, min_tokens=12))
    expected = plain(decoder, asked)
    assert 7 not in expected, "what the stand-in leaves would be right"
    guesses, is_argmax = 0, decoder._sampler.is_argmax

    def guess(self: PromptLookup, answer: list[int], count: int) -> list[int]:
        return [expected[len(answer)], 7][:count] if guesses < 2 else []

    def drafted(lines: Any) -> Any:
        nonlocal guesses
        guesses += 1
        return step_drafts(lines)

    step_drafts = decoder.step_drafts
    monkeypatch.setattr(PromptLookup, "guess", guess)
    monkeypatch.setattr(decoder, "step_drafts", drafted)
    monkeypatch.setattr(
        decoder._sampler, "is_argmax", lambda *given: guesses != 2 and is_argmax(*given)
    )
    assert run(decoder, [asked]).tokens[0] == expected
    assert guesses == 2


def test_the_turn_after_guessed_tokens_is_read_from_the_row(
    decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (decoder.can_reuse_prefixes and decoder.can_reuse_answers):
        pytest.skip("an encoder reads every prompt whole; a GPU in one order of sums, every answer")
    asked = quoting(decoder)
    with monkeypatch.context() as knowing:
        know(knowing, {asked.prompt_ids: plain(decoder, asked)})
        driver = Driver(decoder, reuses_prefixes=True, tries_drafts=True)
        answer = driver.run([asked]).tokens[0]
    ids = (*asked.prompt_ids, *answer, *prompt(4, 8))
    follow = Request("r", ids, "derm", asked.sampling)
    found = driver.run([follow])
    assert found.num_cached[0] == len(asked.prompt_ids) + len(answer) - 1
    assert found.tokens[0] == plain(decoder, follow)


def test_many_rows_guess_nothing(decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "drafted_rows", 2)
    asked = quoting(decoder, 24)
    steps = Steps(decoder, monkeypatch)
    found = run(decoder, [asked] * 4)
    assert found.tokens[0] == found.tokens[3]
    assert steps.most_rows <= 2


def test_beside_an_answer_with_scores_nothing_is_guessed(
    decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = quoting(decoder, 16)
    scored = replace(asked, sampling=replace(asked.sampling, logprobs=1))
    expected = plain(decoder, asked)
    steps = Steps(decoder, monkeypatch)
    assert run(decoder, [asked, scored]).tokens == [expected, expected]
    assert not steps.num_drafted


def test_what_followed_is_guessed() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 9, 1, 2])
    assert lookup.guess([], 4) == []
    assert lookup.guess([3], 4) == [4, 5, 6, 9]
    assert lookup.guess([3, 4], 2) == [5, 6]
    assert lookup.guess([3, 4, 8], 4) == []
    assert lookup.guess([3, 4, 8, 1, 2, 3], 2) == [4, 8], "the latest place counts"
    assert lookup.guess([3, 4, 8, 1, 2, 3], 0) == []


def test_guesses_that_fail_stop_for_a_while() -> None:
    passage = [1, 2, 3, 4]
    lookup, answer, guesses = PromptLookup(passage), [], []
    for _ in range(200):
        answer += [1, 2, 3]
        guesses.append(bool(lookup.guess(answer, 4)))
        if guesses[-1]:
            lookup.saw(0)
        answer += [random.Random(len(answer)).randrange(50, 90)]
    assert guesses[0]
    assert sum(guesses) < 40


def test_guesses_that_hold_grow() -> None:
    lookup, answer, sizes = PromptLookup(list(range(300))), list(range(3)), []
    for _ in range(6):
        guess = lookup.guess(answer, 31)
        assert guess == list(range(answer[-1] + 1, answer[-1] + 1 + len(guess)))
        sizes.append(len(guess))
        lookup.saw(len(guess))
        answer += guess
    assert sizes[0] == 7
    assert sizes == sorted(sizes)
    assert sizes[-1] == 31


def test_guesses_that_hold_go_on() -> None:
    passage = list(range(100))
    lookup, answer = PromptLookup(passage), list(range(3))
    for _ in range(20):
        guess = lookup.guess(answer, 4)
        assert guess == list(range(answer[-1] + 1, answer[-1] + 5))
        lookup.saw(len(guess))
        answer += guess


def test_weights_that_round_by_the_number_of_rows_guess_nothing(tiny_catalogs: Catalogs) -> None:
    base_dir, _ = tiny_catalogs["llama"]
    for dtype, is_exact in (("float32", True), ("bfloat16", False)):
        base = load_pretrained(base_dir, "causal", device="cpu", dtype=dtype)  # type: ignore[arg-type]
        limits = FastLimits(2, 64, 1)
        decoder = build_decoder(base, "fast", limits, {}, batch_invariant=False)
        assert isinstance(decoder, ModelRunner)
        assert decoder.can_try_drafts is is_exact
