"""Log-probabilities against transformers' own, in float32, in batches where not all rows ask."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.core import EngineLimits
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.engine import Engine
from deployments.engine.errors import NotForThisModel, TooManyScores
from deployments.engine.model_loader import load_pretrained
from deployments.engine.request import (
    FinishReason,
    Request,
    SamplingParams,
    ScoredToken,
    TokenEvent,
)
from tests.conftest import TINY_ADAPTERS
from tests.oracle import Oracle

# Logits of the tiny T5 reach 20, and its scores are their differences.
CLOSE = {"rtol": 5e-4, "atol": 5e-4}
SIDES = [None, *TINY_ADAPTERS]
Catalogs = dict[str, tuple[Path, Path]]


class Case:
    def __init__(
        self, catalogs: Catalogs, name: str, kind: str = "auto", weights: Any = "none"
    ) -> None:
        base_dir, catalog = catalogs[name]
        self.family: Any = "seq2seq" if name.endswith("t5") else "causal"
        base = load_pretrained(base_dir, self.family, device="cpu", dtype="float32")
        self.eos_ids = base.eos_ids
        folders = {name: catalog / "weights" / name for name in TINY_ADAPTERS}
        limits = FastLimits(max_rows=4, num_positions=160, max_adapters=3)
        self.decoder: Any = build_decoder(base, kind, limits, folders, weights=weights)
        for adapter, folder in folders.items():
            self.decoder.load_adapter(adapter, folder)
        self.oracle = Oracle(base_dir, folders)
        self.vocab_size = len(base.tokenizer)

    def engine(self) -> Engine:
        limits = EngineLimits(8, 50, 120, prefill_tokens=48)
        return Engine.on_thread(self.decoder, limits)

    def prompt(self, seed: int, longest: int = 90) -> tuple[int, ...]:
        rng = random.Random(seed)
        size = rng.randint(2, longest)
        return tuple(rng.randrange(3, self.vocab_size) for _ in range(size))

    def token_of(self, scored: ScoredToken) -> set[int]:
        ids = range(self.vocab_size)
        return {id_ for id_ in ids if self.decoder.token_bytes(id_) == scored.data}


@pytest.fixture(scope="module", params=["llama", "flan_t5"])
def case(request: pytest.FixtureRequest, tiny_catalogs: Catalogs) -> Case:
    return Case(tiny_catalogs, request.param)


async def answered(
    case: Case, requests: Sequence[Request], *, stream: bool = False
) -> list[list[TokenEvent]]:
    engine = case.engine()

    async def one(asked: Request) -> list[TokenEvent]:
        return [event async for event in engine.generate(asked, stream=stream)]

    try:
        return await asyncio.gather(*map(one, requests))
    finally:
        engine.close()


def scores_of(events: Sequence[TokenEvent]) -> list[ScoredToken]:
    return [scored for event in events for scored in event.scores]


def check_scores(
    case: Case, asked: Request, scores: Sequence[ScoredToken], answer: Sequence[int]
) -> None:
    """Compare every score with the oracle's. `answer`: greedy, with its end-of-sequence token."""
    expected = case.oracle.logprobs(asked.prompt_ids, answer, asked.adapter)
    tokens = list(answer)
    if asked.sampling.echo:
        tokens = [*asked.prompt_ids, *answer]
        assert scores[0].logprob is None
        scores, tokens = scores[1:], tokens[1:]
    elif case.family == "causal":
        expected = expected[len(asked.prompt_ids) - 1 :]
    assert len(scores) == len(tokens) == len(expected)
    for scored, token, row in zip(scores, tokens, expected, strict=True):
        assert scored.data == case.decoder.token_bytes(token)
        torch.testing.assert_close(torch.tensor(scored.logprob), row[token], **CLOSE)
        found = torch.tensor([logprob for _, _, logprob in scored.top])
        count = asked.sampling.logprobs or 0
        torch.testing.assert_close(found, row.topk(count).values, **CLOSE)
        for (text, data, _), id_ in zip(scored.top, row.topk(count).indices.tolist(), strict=True):
            is_tied = (row - row[id_]).abs().sort().values[1] < 1e-4
            assert is_tied or data == case.decoder.token_bytes(id_)
            is_whole = data.decode(errors="ignore").encode() == data
            assert text == (data.decode() if is_whole else "bytes:" + _escaped(data))


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


async def test_scores_of_mixed_rows_are_transformers_own(case: Case) -> None:
    requests = [
        Request(f"r{n}", case.prompt(n), SIDES[n % 3], SamplingParams(12, logprobs=wanted))
        for n, wanted in enumerate([5, None, 0, 20, None, 1, 3, None, 2, 20, 0])
    ]
    for asked, events in zip(requests, await answered(case, requests), strict=True):
        if asked.sampling.logprobs is None:
            assert not scores_of(events)
            continue
        answer = case.oracle.generate(asked.prompt_ids, asked.adapter, 12)
        check_scores(case, asked, scores_of(events), answer)


async def test_asking_changes_no_token(case: Case) -> None:
    prompts = [case.prompt(n) for n in range(6)]
    plain = SamplingParams(12, temperature=0.8, seed=4, min_tokens=4, repetition_penalty=1.2)
    for params in (SamplingParams(12), plain):
        texts = []
        for asked in (params, replace(params, logprobs=3)):
            requests = [Request("r", p, SIDES[n % 3], asked) for n, p in enumerate(prompts)]
            events = await answered(case, requests)
            texts.append(["".join(event.text for event in each) for each in events])
        assert texts[0] == texts[1]


async def test_the_own_score_is_one_of_the_likeliest(case: Case) -> None:
    requests = [Request("r", case.prompt(n), None, SamplingParams(8, logprobs=1)) for n in range(4)]
    for events in await answered(case, requests):
        scores = scores_of(events)
        assert scores
        assert all(one.logprob == one.top[0][2] for one in scores), "greedy, and not the largest"


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_scores_the_prompt(tiny_catalogs: Catalogs, stream: bool) -> None:
    """Prompts are longer than one step reads, and share steps with rows that do not ask."""
    case = Case(tiny_catalogs, "llama")
    requests = [
        Request(f"r{n}", case.prompt(n), SIDES[n % 3], params)
        for n, params in enumerate(
            [
                SamplingParams(1, logprobs=1, echo=True),
                SamplingParams(6),
                SamplingParams(0, logprobs=5, echo=True),
                SamplingParams(6, logprobs=2, echo=True),
                SamplingParams(0, echo=True),
                SamplingParams(3, logprobs=2),
                SamplingParams(0, logprobs=0, echo=True),
            ]
        )
    ]
    for asked, events in zip(requests, await answered(case, requests, stream=stream), strict=True):
        limit, text = asked.sampling.max_tokens, "".join(event.text for event in events)
        answer = case.oracle.generate(asked.prompt_ids, asked.adapter, limit) if limit else []
        assert events[-1].num_tokens == len(answer)
        if asked.sampling.echo:
            prompt = case.decoder.decode(asked.prompt_ids).rstrip("\N{REPLACEMENT CHARACTER}")
            assert text.startswith(prompt)
        if asked.sampling.logprobs is not None:
            check_scores(case, asked, scores_of(events), answer)


@pytest.mark.parametrize("weights", ["none", "int8"])
async def test_what_was_written_scores_the_same_when_it_is_read(
    tiny_catalogs: Catalogs, weights: str
) -> None:
    """Also in the compiled step with weights of eight bits, which no oracle has."""
    case = Case(tiny_catalogs, "llama", weights=weights)
    written = SamplingParams(10, logprobs=2, temperature=1.0, seed=1, min_tokens=10)
    asked = [Request(f"r{n}", case.prompt(n), SIDES[n % 3], written) for n in range(6)]
    asked.append(Request("free", case.prompt(7), "derm", SamplingParams(10)))
    for request, events in zip(asked[:6], await answered(case, asked), strict=False):
        scores = scores_of(events)
        ids = [next(iter(case.token_of(scored))) for scored in scores]
        text = (*request.prompt_ids, *ids)
        read = SamplingParams(0, logprobs=2, echo=True)
        [again] = await answered(case, [Request("r", text, request.adapter, read)])
        for one, other in zip(scores, scores_of(again)[-10:], strict=True):
            assert one.data == other.data
            assert other.logprob == pytest.approx(one.logprob, abs=2e-3)


async def test_offsets_are_places_in_the_text(case: Case) -> None:
    is_causal = case.family == "causal"
    ids = case.decoder.tokenizer("What is eczema? Une éruption, 37 °C.")["input_ids"]
    params = SamplingParams(12, logprobs=0, echo=is_causal)
    [events] = await answered(case, [Request("r", tuple(ids), "derm", params)], stream=True)
    text, scores = "".join(event.text for event in events), scores_of(events)
    assert scores[0].offset == 0
    assert len({scored.offset for scored in scores}) > 5
    for scored in scores:
        whole = scored.text.strip()
        if scored.is_text and whole and not whole.startswith("bytes:"):
            assert text[scored.offset :].lstrip().startswith(whole)


async def test_tokens_of_a_stop_string_are_not_handed_out(tiny_catalogs: Catalogs) -> None:
    case = Case(tiny_catalogs, "llama")
    prompt = case.prompt(5)
    [events] = await answered(case, [Request("r", prompt, "derm", SamplingParams(24))])
    whole = events[-1].text
    stop = next(whole[i : i + 2] for i in range(4, len(whole)) if whole[i : i + 2].isascii())
    params = SamplingParams(24, logprobs=1, stop=(stop,))
    for stream in (False, True):
        asked = Request("r", prompt, "derm", params)
        [events] = await answered(case, [asked], stream=stream)
        assert events[-1].finish_reason is FinishReason.STOP
        text = "".join(event.text for event in events)
        assert all(scored.offset < len(text) for scored in scores_of(events))


async def test_what_a_decoder_cannot_do_is_refused(tiny_catalogs: Catalogs) -> None:
    echoed = Request("r", (5, 6), None, SamplingParams(1, echo=True))
    with pytest.raises(NotForThisModel, match="echo: this model is an encoder-decoder"):
        await answered(Case(tiny_catalogs, "flan_t5"), [echoed])
    reference = Case(tiny_catalogs, "llama", "reference")
    for params in (SamplingParams(1, echo=True), SamplingParams(1, logprobs=0)):
        with pytest.raises(NotForThisModel, match="the reference decoder"):
            await answered(reference, [Request("r", (5, 6), None, params)])


async def test_more_scores_of_a_prompt_than_an_answer_may_hold_are_refused(
    tiny_catalogs: Catalogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.engine.errors.MAX_PROMPT_SCORES", 60)
    case = Case(tiny_catalogs, "llama")

    def asked(num_tokens: int, **params: Any) -> Request:
        return Request("r", tuple(range(3, 3 + num_tokens)), None, SamplingParams(1, **params))

    fine = [(20, 2, True), (60, 0, True), (61, 20, False), (100, None, True)]
    for num_tokens, logprobs, echo in fine:
        await answered(case, [asked(num_tokens, logprobs=logprobs, echo=echo)])
    for num_tokens, logprobs, most in ((20, 3, 2), (21, 2, 1), (61, 0, 0), (3, 20, 19)):
        with pytest.raises(TooManyScores, match=f"ask for logprobs up to {most}, or for parts"):
            await answered(case, [asked(num_tokens, logprobs=logprobs, echo=True)])
