"""Prompts of 8,192 tokens and more: PEFT's tokens, others go on, nothing grows by the square."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deployments.engine.attention.prefill import TorchPrefillAttention
from deployments.engine.decoder_factory import FastLimits, Weights, build_decoder
from deployments.engine.engine import Engine, EngineLimits
from deployments.engine.errors import PromptTooLong
from deployments.engine.kernels.backend import are_fused
from deployments.engine.kernels.ops import Segment
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from tests.deployments.engine.rows_by_hand import Run, run_rows
from tests.deployments.engine.test_parity import one_thread
from tests.oracle import Oracle
from tests.tiny_models import make_adapter, make_tiny_llama

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.skipif(are_fused("cpu"), reason="too long for Triton's interpreter")

LONG, PIECE = 8_300, 256
LIMITS = FastLimits(3, 9_000, max_adapters=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("long")
    base = make_tiny_llama(folder / "base", max_position_embeddings=9_216)
    ranks = {"a": 4, "b": 16}
    return base, {
        name: make_adapter(base, folder / name, base_name="b", seed=rank, rank=rank, std=0.3)
        for name, rank in ranks.items()
    }


def runner(folders: tuple[Path, dict[str, Path]], weights: Weights = "none") -> ModelRunner:
    loaded = load_pretrained(folders[0], "causal", device="cpu", dtype="float32")
    decoder = build_decoder(loaded, "fast", LIMITS, {}, weights=weights)
    assert isinstance(decoder, ModelRunner)
    for name, directory in folders[1].items():
        decoder.load_adapter(name, directory)
    return decoder


def asked(number: int, length: int, adapter: str | None, num_tokens: int) -> Request:
    rng = random.Random(number)
    ids = tuple(rng.randrange(3, 250) for _ in range(length))
    return Request(f"r{number}", ids, adapter, SamplingParams(num_tokens))


def mixed_run(decoder: ModelRunner) -> tuple[list[Request], Run]:
    """A short prompt whose answer runs all the while, and two long ones that come later."""
    requests = [asked(1, 30, "a", 200), asked(2, LONG, "b", 4), asked(3, 4_500, None, 4)]
    return requests, run_rows(decoder, requests, arrivals=[0, 2, 4], prefill_tokens=PIECE)


@pytest.mark.slow
def test_the_tokens_are_pefts_and_the_others_go_on(
    folders: tuple[Path, dict[str, Path]],
) -> None:
    requests, run = mixed_run(runner(folders))
    oracle = Oracle(*folders)
    for request, answer in zip(requests, run.answers, strict=True):
        expected = oracle.generate(request.prompt_ids, request.adapter, len(answer))
        assert answer == expected, request.request_id
    reading = [plan for plan in run.plans[2:] if plan.prefill]
    assert len(reading) > LONG / PIECE
    ends = len(run.answers[0])
    for number, plan in enumerate(run.plans[1:ends], start=1):
        assert plan.decode, f"nothing decodes in step {number}"
        work = sum((c.stop - c.start) * (1 + c.start / 4096) for c in plan.prefill)
        assert work <= 2 * PIECE, f"step {number} makes the others wait"


@pytest.mark.slow
def test_the_compiled_step_reads_them_alike_in_any_pieces(
    folders: tuple[Path, dict[str, Path]],
) -> None:
    decoder = runner(folders, "int8")
    requests = [asked(1, 30, "a", 40), asked(2, LONG, "b", 6)]
    answers = [run_rows(decoder, requests, prefill_tokens=n).answers for n in (PIECE, 1000, 10_000)]
    assert answers[0] == answers[1] == answers[2]


class Largest(TorchDispatchMode):
    """Note the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and not func.is_view:
                self.numel = max(self.numel, each.numel())
        return made


KINDS: dict[str, dict[str, Any]] = {
    "a prompt at once": {"is_causal": True},
    "behind a prefix": {"is_causal": True, "position": 64},
    "window": {"is_causal": True, "window": 100},
    "capped": {"is_causal": True, "softcap": 5.0},
    "encoder": {"is_causal": False},
    "encoder with a bias": {"is_causal": False, "bias": True},
    "encoder with a window": {"is_causal": False, "window": 100, "ahead": 70},
}


def attended(length: int, kind: str) -> tuple[torch.Tensor, int]:
    """Attend with a whole prompt at once: the result, and the elements of the largest tensor."""
    options = dict(KINDS[kind])
    position = options.pop("position", 0)
    torch.manual_seed(0)
    q, kv = torch.randn(length, 4, 16), torch.randn(length + position, 2, 4, 16)
    if not options["is_causal"]:
        options["bias"] = torch.randn(4, 2 * length - 1) if "bias" in options else None
    else:
        kv = kv[:, :, :2]
    segment = Segment(0, length, position, 0, length + position)
    with Largest() as largest:
        out = TorchPrefillAttention([segment])(q, kv, scale=0.25, **options)
    return out, largest.numel


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_tensor_grows_with_the_square_of_a_prompt(kind: str) -> None:
    _, short = attended(1024, kind)
    _, long = attended(2048, kind)
    assert long <= 2.2 * short


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_blocks_attend_as_the_whole_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks, _ = attended(700, kind)
    monkeypatch.setattr("deployments.engine.attention.prompt_masks._QUERIES", 10_000)
    whole, _ = attended(700, kind)
    torch.testing.assert_close(in_blocks, whole)


@pytest.fixture
def engine(folders: tuple[Path, dict[str, Path]]) -> Iterator[Engine]:
    engine = Engine.on_thread(runner(folders), EngineLimits(3, 8, max_input_tokens=100_000))
    yield engine
    engine.close()


async def test_the_refusal_names_the_base_models_positions(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="is 9001 tokens long; .* at most 9000 "):
        await anext(engine.generate(asked(1, 9_001, None, 1)))
