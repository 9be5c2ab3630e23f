"""All that shapes an answer at once: structures, scores, prefixes, guesses, penalties, neighbours.

Each request's tokens are those that it gets alone, from a fresh row, one token a step: in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.scheduling.drafts import PromptLookup
from deployments.engine.structured.grammar import json_grammar
from tests.deployments.engine.prefix_runs import Answers, Driver
from tests.deployments.engine.test_prefixes import Catalogs, build, prompt

GRAMMARS = [
    json_grammar({"type": "array", "items": {"enum": ["mild", "mild", 1, None]}, "maxItems": 5}),
    json_grammar({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    "start: /[a-c ]{3,12}/",
]


@pytest.fixture(scope="module")
def decoder(tiny_catalogs: Catalogs) -> ModelRunner:
    return build(tiny_catalogs)


@pytest.fixture(scope="module")
def another(tiny_catalogs: Catalogs) -> ModelRunner:
    """For the answers alone, which would write over what the first one's rows hold."""
    return build(tiny_catalogs)


@st.composite
def shapes(draw: st.DrawFn) -> SamplingParams:
    tokens = draw(st.integers(1, 14))
    params = SamplingParams(
        tokens,
        temperature=draw(st.sampled_from([0.0, 0.0, 0.0, 0.7, 2.0])),
        top_p=draw(st.sampled_from([1.0, 0.8, 1e-6])),
        top_k=draw(st.sampled_from([0, 0, 1, 5])),
        seed=draw(st.integers(0, 3)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.4, 0.7])),
        no_repeat_ngram_size=draw(st.sampled_from([0, 0, 2])),
        logprobs=draw(st.sampled_from([None, None, 0, 3])),
    )
    if draw(st.booleans()):
        grammar = draw(st.sampled_from(GRAMMARS))
        return replace(params, grammar=grammar, no_repeat_ngram_size=0)
    echo = draw(st.integers(0, 3)) == 0
    return replace(params, echo=echo, min_tokens=draw(st.integers(0, tokens)))


@st.composite
def talks(draw: st.DrawFn) -> list[list[Request]]:
    """Rounds of questions; a later one may go on from what was asked and answered before."""
    rounds = []
    for _ in range(draw(st.integers(1, 3))):
        asked = []
        for _ in range(draw(st.integers(1, 4))):
            stem = prompt(draw(st.integers(0, 1)), 60)[: draw(st.integers(0, 60))]
            ids = stem * draw(st.sampled_from([1, 1, 2])) if len(stem) < 40 else stem
            ids += prompt(100 + draw(st.integers(0, 2)), draw(st.integers(1, 12)))
            adapter = draw(st.sampled_from([None, "derm", "cardio"]))
            tenant = draw(st.sampled_from([None, "t"]))
            asked.append(Request("r", ids, adapter, draw(shapes()), tenant=tenant))
        rounds.append(asked)
    return rounds


def alone(decoder: ModelRunner, asked: Request) -> Answers:
    return Driver(decoder, reuses_prefixes=False).run([asked])


@contextmanager
def guessing(asked: Sequence[Request], expected: Sequence[Answers], wrong: int) -> Iterator[None]:
    """Guess what an answer to this prompt is, but for its token `wrong` of each guess: a tiny
    random model quotes nothing."""
    answers = {request.prompt_ids: e.tokens[0] for request, e in zip(asked, expected, strict=True)}

    def guess(self: PromptLookup, answer: Sequence[int], count: int) -> list[int]:
        known = answers.get(tuple(self._tokens[: self._num_prompt]), [])
        guessed = list(known[len(answer) : len(answer) + max(0, count)])
        guessed[wrong:] = [5] * bool(guessed[wrong:])
        return guessed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptLookup, "guess", guess)
        yield


def assert_same(found: Answers, number: int, expected: Answers) -> None:
    assert found.tokens[number] == expected.tokens[0]
    scores, alone = found.scores.get(number, []), expected.scores.get(0, [])
    assert [score.token_id for score in scores] == [score.token_id for score in alone]
    for one, other in zip(scores, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert len(one.top) == len(other.top)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=talks(),
    gap=st.integers(0, 3),
    leaves=st.integers(0, 9),
    pieces=st.sampled_from([5, 17, 48]),
    continues=st.booleans(),
    wrong=st.integers(0, 4),
)
def test_every_answer_is_the_one_that_it_is_alone(
    decoder: ModelRunner,
    another: ModelRunner,
    rounds: list[list[Request]],
    gap: int,
    leaves: int,
    pieces: int,
    continues: bool,
    wrong: int,
) -> None:
    driver = Driver(decoder, reuses_prefixes=True, tries_drafts=True, prefill_tokens=pieces)
    before: tuple[int, ...] = ()
    for number, asked in enumerate(rounds):
        if continues and number:
            asked[0] = replace(asked[0], prompt_ids=(before + asked[0].prompt_ids)[-100:])
        arrivals = [gap * place for place in range(len(asked))]
        leaving = {len(asked) - 1: leaves} if leaves and len(asked) > 1 else {}
        expected = [alone(another, request) for request in asked]
        with guessing(asked, expected, wrong):
            found = driver.run(asked, arrivals=arrivals, cancels=leaving)
        for place in range(len(asked)):
            if place not in leaving:
                assert_same(found, place, expected[place])
        before = (*asked[0].prompt_ids, *found.tokens[0])
    assert all(state.length == 0 for state in decoder._states), "a row is left over"
