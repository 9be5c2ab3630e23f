"""Answers that keep to a grammar, from random weights: valid whatever the model wants to say."""

import asyncio
import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import numpy
import pytest
import torch
from llguidance import LLParserLimits

import deployments.engine.structured.grammar as grammar_module
from deployments.engine.core import EngineLimits
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.engine import Engine
from deployments.engine.errors import EngineStopped, InvalidGrammar, NotForThisModel
from deployments.engine.model_loader import load_pretrained
from deployments.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from deployments.engine.structured.grammar import GrammarCompiler, json_grammar
from deployments.engine.structured.masks import GrammarMasks, _Answer
from deployments.engine.structured.vocabulary import Vocabulary
from tests.conftest import TINY_ADAPTERS
from tests.structured_schemas import SCHEMAS

SIDES = [None, *TINY_ADAPTERS]
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
Catalogs = dict[str, tuple[Path, Path]]


def engine_of(
    catalogs: Catalogs, name: str = "llama", kind: str = "auto", weights: Any = "none"
) -> Engine:
    base_dir, catalog = catalogs[name]
    family: Any = "seq2seq" if name.endswith("t5") else "causal"
    base = load_pretrained(base_dir, family, device="cpu", dtype="float32")
    folders = {name: catalog / "weights" / name for name in TINY_ADAPTERS}
    fast = FastLimits(max_rows=8, num_positions=400, max_adapters=3)
    decoder: Any = build_decoder(base, kind, fast, folders, weights=weights)
    for adapter, folder in folders.items():
        decoder.load_adapter(adapter, folder)
    return Engine.on_thread(decoder, EngineLimits(8, 2000, 120))


@pytest.fixture(scope="module")
def decoder_engine(tiny_catalogs: Catalogs) -> Iterator[Engine]:
    engine = engine_of(tiny_catalogs)
    yield engine
    engine.close()


def asked(n: int, grammar: str | None, **params: Any) -> Request:
    rng = random.Random(n)
    prompt = tuple(rng.randrange(3, 100) for _ in range(rng.randint(2, 30)))
    sampling = SamplingParams(**{"max_tokens": 250, "grammar": grammar} | params)
    return Request(f"r{n}", prompt, SIDES[n % 3], sampling)


async def last_events(engine: Engine, requests: Sequence[Request]) -> list[TokenEvent]:
    async def one(request: Request) -> TokenEvent:
        events = [event async for event in engine.generate(request, stream=False)]
        return events[-1]

    return await asyncio.gather(*map(one, requests))


def check(schema: Any, event: TokenEvent) -> bool:
    """Whether an answer is finished; if it is, it must be valid."""
    assert event.error is None, event.error
    if event.finish_reason is not FinishReason.STOP:
        assert event.finish_reason is FinishReason.LENGTH
        return False
    value = json.loads(event.text)
    jsonschema.validate(value, schema, format_checker=FORMATS)
    return True


def requests_of(count: int) -> list[tuple[Any, Request]]:
    """Greedy and drawn, hot and cold, penalised, with scores, mixed with rows without a grammar."""
    made: list[tuple[Any, Request]] = []
    for n in range(count):
        schema = list(SCHEMAS.values())[n % len(SCHEMAS)]
        heat = {"temperature": (0.0, 0.7, 1.5)[n % 3], "seed": n, "top_k": (0, 5)[n % 2]}
        more = {"logprobs": 2} if n % 5 == 0 else {}
        penalty = {"repetition_penalty": 1.3} if n % 4 == 0 else {}
        made.append((schema, asked(n, json_grammar(schema), **heat, **more, **penalty)))
        if n % 4 == 0:
            made.append((None, asked(n, None, max_tokens=20)))
    return made


async def check_all(engine: Engine, count: int, at_once: int = 64) -> int:
    made, num_finished = requests_of(count), 0
    for start in range(0, len(made), at_once):
        part = made[start : start + at_once]
        events = await last_events(engine, [request for _, request in part])
        pairs = zip(part, events, strict=True)
        num_finished += sum(check(s, event) for (s, _), event in pairs if s is not None)
    return num_finished


async def test_every_finished_answer_is_valid(decoder_engine: Engine) -> None:
    assert await check_all(decoder_engine, 60) >= 54


@pytest.mark.long
async def test_every_one_of_a_thousand_finished_answers_is_valid(decoder_engine: Engine) -> None:
    num_finished = await check_all(decoder_engine, 1100)
    print(f"{num_finished} of 1100 answers finished, all valid")
    assert num_finished >= 1000


async def test_other_rows_say_what_they_say_alone(decoder_engine: Engine) -> None:
    plain = [asked(n, None, max_tokens=20) for n in range(6)]
    alone = [event.text for event in await last_events(decoder_engine, plain)]
    grammar = json_grammar(SCHEMAS["nested"])
    mixed = [asked(100 + n, grammar, temperature=1.0, seed=n) for n in range(6)]
    events = await last_events(
        decoder_engine, [r for p in zip(plain, mixed, strict=True) for r in p]
    )
    assert [event.text for event in events[::2]] == alone
    assert all(check(SCHEMAS["nested"], event) for event in events[1::2])


async def test_rows_that_leave_half_way(decoder_engine: Engine) -> None:
    """Their rows are taken by others at once, with other grammars and with none."""
    endless = json_grammar({"type": "array", "items": {"type": "string"}, "minItems": 1000})

    async def leaves(n: int) -> None:
        async for event in decoder_engine.generate(asked(n, endless, temperature=1.0, seed=n)):
            if event.num_tokens >= 5 + n:
                return

    async def stays(n: int) -> TokenEvent:
        schema = SCHEMAS["formats"]
        [event] = await last_events(decoder_engine, [asked(n, json_grammar(schema), seed=n)])
        return event

    found = await asyncio.gather(*(leaves(n) if n % 2 else stays(n) for n in range(24)))
    events = [event for event in found if event is not None]
    assert len(events) == 12
    assert all(check(SCHEMAS["formats"], event) for event in events)


async def test_what_never_ends_ends_at_its_length(decoder_engine: Engine) -> None:
    node = {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}, "required": ["c"]}
    grammar = json_grammar({"$defs": {"n": node}, "$ref": "#/$defs/n"})
    [event] = await last_events(decoder_engine, [asked(1, grammar, max_tokens=40)])
    assert (event.finish_reason, event.num_tokens) == (FinishReason.LENGTH, 40), event.error


async def test_a_grammar_that_nothing_keeps_to_is_refused(decoder_engine: Engine) -> None:
    for schema in ({"$ref": "#"}, {"type": "integer", "minimum": 5, "maximum": 3}):
        with pytest.raises(InvalidGrammar, match="no answer can keep to it"):
            await last_events(decoder_engine, [asked(1, json_grammar(schema))])


async def test_a_row_that_grows_too_complex_ends_alone(
    decoder_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder: Any = decoder_engine.core._decoder  # type: ignore[attr-defined]
    make, broken = decoder.grammars.fresh_matcher, json_grammar(SCHEMAS["enum"])

    def fresh_matcher(grammar: str) -> Any:
        found = make(grammar)
        if grammar == broken:
            found.matcher.consume_token(0)  # not allowed: an error that stays
            assert found.matcher.is_error()
        return found

    monkeypatch.setattr(decoder.grammars, "fresh_matcher", fresh_matcher)
    good = SCHEMAS["formats"]
    requests = [asked(1, broken), asked(2, json_grammar(good)), asked(3, None, max_tokens=9)]
    failed, valid, plain = await last_events(decoder_engine, requests)
    assert failed.error is not None
    assert failed.error.code == "structure_failed"
    assert check(good, valid)
    assert plain.error is None


async def test_who_waits_for_a_grammar_hears_that_the_engine_ends(
    tiny_catalogs: Catalogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One grammar is being compiled, others wait for it; a cancelled task would hear nothing."""
    engine = engine_of(tiny_catalogs)
    decoder: Any = engine.core._decoder  # type: ignore[attr-defined]
    make, begun, may_end = decoder.grammars.prepare, threading.Event(), threading.Event()

    def prepare(grammar: str) -> None:
        begun.set()
        may_end.wait(10)
        make(grammar)

    monkeypatch.setattr(decoder.grammars, "prepare", prepare)
    waiting = [
        asyncio.create_task(last_events(engine, [asked(n, json_grammar({"const": n}))]))
        for n in range(4)
    ]
    await asyncio.to_thread(begun.wait, 10)
    await asyncio.sleep(0.05)  # the others have asked by now
    engine.close()
    may_end.set()
    done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [type(each) for each in done] == [EngineStopped] * 4
    with pytest.raises(EngineStopped):
        await last_events(engine, [asked(9, json_grammar({"const": 9}))])


def test_what_is_compiled_for_answers_to_come_is_bounded(decoder_engine: Engine) -> None:
    grammars = decoder_engine.core._decoder.grammars  # type: ignore[attr-defined]
    for n in range(300):
        grammars.prepare(json_grammar({"const": n}))
    assert len(grammars._ready) == 256
    for n in range(4):
        grammars.prepare(json_grammar({"enum": [f"{n}-{m}" * 10 for m in range(9000)]}))
    assert len(grammars._ready) == 1
    assert grammars.fresh_matcher(grammars._ready[0][0]).first_bits
    assert not grammars._ready


def test_an_answer_that_grows_too_complex_ends_no_other(
    tiny_catalogs: Catalogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its grammar's answers beside it, nor those to come."""
    monkeypatch.setattr(grammar_module, "LIMITS", LLParserLimits(max_lexer_states=150))
    compiler = compiler_of(tiny_catalogs)
    grammar = json_grammar({"anyOf": [{"type": "string", "minLength": 220}, {"enum": ["a"]}]})
    long, beside = (compiler.fresh_matcher(grammar).matcher for _ in range(2))
    quote, letter, end = (compiler.tokenizer().tokenize_str(text) for text in '"x"')
    assert long.consume_tokens(quote)
    while not long.is_error():
        long.compute_bitmask()
        long.consume_tokens(letter)
    assert "too many states" in long.get_error()
    later = compiler.fresh_matcher(grammar).matcher
    for matcher in (beside, later):
        assert matcher.consume_tokens([*quote, *compiler.tokenizer().tokenize_str("a"), *end])
        assert matcher.is_accepting()


async def test_the_compiled_step(tiny_catalogs: Catalogs) -> None:
    engine = engine_of(tiny_catalogs, weights="int8")
    try:
        assert await check_all(engine, 20) >= 17
    finally:
        engine.close()


async def test_the_reference_decoder(tiny_catalogs: Catalogs) -> None:
    engine = engine_of(tiny_catalogs, kind="reference")
    try:
        made = [pair for pair in requests_of(24) if pair[1].sampling.logprobs is None]
        events = await last_events(engine, [request for _, request in made])
        pairs = zip(made, events, strict=True)
        assert sum(check(schema, event) for (schema, _), event in pairs if schema) >= 16
    finally:
        engine.close()


async def test_encoder_decoders(tiny_catalogs: Catalogs) -> None:
    """With a vocabulary that has every character; else it is refused by what is missing."""
    engine = engine_of(tiny_catalogs, "flan_t5")
    try:
        if "structure" in engine.info.refuses:
            with pytest.raises(NotForThisModel, match="structure: this model's tokenizer has no"):
                await last_events(engine, [asked(1, json_grammar({}))])
        else:
            assert await check_all(engine, 24) >= 16
    finally:
        engine.close()


@pytest.mark.parametrize("spare", [0, 1, 31, 32])
def test_the_first_mask_of_any_vocabulary(tiny_catalogs: Catalogs, spare: int) -> None:
    """A mask has a word for 32 tokens; the last may be whole or not."""
    size = 32 * 40 + spare
    compiler = compiler_of(tiny_catalogs, size)
    masks = GrammarMasks(compiler, 2, size, torch.device("cpu"))
    grammar = json_grammar({"enum": ["a", "b"]})
    masks.begin(1, grammar)
    logits = torch.zeros(1, size)
    assert masks.apply(logits, [1]) == {}
    allowed = numpy.unpackbits(
        numpy.frombuffer(compiler.fresh_matcher(grammar).matcher.compute_bitmask(), numpy.uint8),
        bitorder="little",
    )
    assert logits[0].isfinite().nonzero().flatten().tolist() == allowed.nonzero()[0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_before_the_first_answer(
    tiny_catalogs: Catalogs, dtype: torch.dtype
) -> None:
    compiler = compiler_of(tiny_catalogs)
    assert compiler._tokenizer is None
    masks = GrammarMasks(compiler, 2, 1000, torch.device("cpu"))
    before = masks._bits.copy()
    masks.warm_up(dtype)
    assert compiler._tokenizer is not None
    assert not masks.is_on
    assert (masks._bits == before).all()


def compiler_of(catalogs: Catalogs, vocab_size: int | None = None) -> GrammarCompiler:
    base_dir, _ = catalogs["llama"]
    base = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    size = vocab_size or base.model.config.vocab_size
    return GrammarCompiler(Vocabulary(base.tokenizer, size, base.eos_ids))


def masks_of(catalogs: Catalogs) -> tuple[GrammarMasks, int]:
    compiler = compiler_of(catalogs)
    size = compiler.tokenizer().vocab_size
    return GrammarMasks(compiler, 2, size, torch.device("cpu")), size


def test_what_a_row_picked_before_is_not_the_next_answers(tiny_catalogs: Catalogs) -> None:
    """On a GPU the last token of an answer arrives when the row has been given on."""
    masks, size = masks_of(tiny_catalogs)
    letters = json_grammar({"enum": ["a"]})
    masks.begin(0, letters)
    expected = torch.zeros(1, size)
    masks.apply(expected, [0])
    eos = masks._compiler.eos_ids[0]
    has_arrived = threading.Event()
    old, copied = masks._answers[0], Mock(synchronize=has_arrived.wait)
    masks._make([old], partial(masks._advance, [old], torch.tensor([eos]), copied))
    masks.free(0)
    masks.begin(0, letters)
    has_arrived.set()
    found = torch.zeros(1, size)
    assert masks.apply(found, [0]) == {}
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [61, 64, 128])
def test_bits_block_what_they_say(dtype: torch.dtype, size: int) -> None:
    masks = GrammarMasks(Mock(), 5, size, torch.device("cpu"))
    allowed = torch.rand(5, size, generator=torch.Generator().manual_seed(size)) < 0.3
    masks._bits[:5] = 0
    for row, token in allowed.nonzero().tolist():
        masks._bits.view("uint32")[row, token // 32] |= numpy.uint32(1 << token % 32)
    logits = torch.randn(4, size).to(dtype)
    rows, at = [3, 0, 4, 1], [0, 2]  # the second and the fourth ask for nothing
    masks._answers = {row: _Answer(row, Mock()) for row in (3, 4)}
    wanted = logits.clone()
    wanted[at] = wanted[at].masked_fill(~allowed[[3, 4]], -torch.inf)
    on_cpu, on_device = logits.clone(), logits.clone()
    assert masks.apply(on_cpu, rows) == {}
    masks._apply_on_device(on_device, [(0, 3), (2, 4)])
    assert torch.equal(on_cpu, wanted)
    assert torch.equal(on_device, wanted)


def test_after_a_failed_step_nothing_of_it_is_left(tiny_catalogs: Catalogs) -> None:
    masks, size = masks_of(tiny_catalogs)
    masks.begin(0, json_grammar({"enum": ["a"]}))
    broken: Future[None] = Future()
    broken.set_exception(RuntimeError("the mask's thread failed"))
    masks._making[0] = broken
    with pytest.raises(RuntimeError):
        masks.apply(torch.zeros(1, size), [0])
    masks.reset()
    assert not masks.is_on
    masks.begin(1, json_grammar({"enum": ["a"]}))
    assert masks.apply(torch.zeros(1, size), [1]) == {}
