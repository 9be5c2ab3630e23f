"""Answers over int8 keys and values: those of a cache that rounds as int8 does, and near those of
a plain one."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from deployments.engine.attention.int8_kv_cache import Int8KvCache, dequantise, quantise
from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import Draft
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.kernels.backend import are_fused
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.lora.pool import LoraPool
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models import kv_cache_dtype
from deployments.engine.request import Request, SamplingParams
from scripts.benchmarks.in_process.rounding_errors import Recorder
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_parity import INTERPRETED, one_thread
from tests.tiny_architectures import family_of, make_tiny
from tests.tiny_models import make_adapter

pytestmark = pytest.mark.slow

__all__ = ["one_thread"]  # an autouse fixture

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TARGETS = {"llama": ["q_proj", "k_proj", "v_proj"], "t5": ["q", "k", "v"]}
TARGETS |= dict.fromkeys(("gemma2", "bart", "t5gemma", "t5gemma2"), TARGETS["llama"])
LIMITS = FastLimits(max_rows=4, num_positions=96, max_adapters=2)
TOLERANCE = 0.05  # of the logits' norm: two layers whose keys and values are off by 0.4 % of a head
CASES = sorted(TARGETS)


@dataclasses.dataclass
class Case:
    base: Path
    name: str
    adapter: Path

    def decoder(self, kind: Any) -> ModelRunner:
        loaded = load_pretrained(self.base, family_of(self.name), device=DEVICE, dtype="float32")
        loaded = dataclasses.replace(loaded, eos_ids=frozenset())
        folders = {"adapter": self.adapter}
        made = build_decoder(
            loaded, "fast", LIMITS, folders, batch_invariant=False, kv_cache_dtype=kind
        )
        assert isinstance(made, ModelRunner)
        made.load_adapter("adapter", self.adapter)
        return made


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    name: str = request.param
    base = make_tiny(name, tmp_path / "base")
    adapter = make_adapter(
        base, tmp_path / "adapter", base_name="tiny", seed=1, rank=8, targets=TARGETS[name], std=0.3
    )
    return Case(base, name, adapter)


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve int8 keys and values with torch too."""
    if DEVICE == "cpu" and not are_fused("cpu"):
        monkeypatch.setattr(kv_cache_dtype, "are_fused", lambda kind: True)


class RoundedKvCache(KvCache):
    """Keeps what int8 would give back, in the dtype of the activations."""

    def write(self, layer: int, positions: torch.Tensor, kv: torch.Tensor) -> None:
        super().write(layer, positions, dequantise(*quantise(kv), kv.dtype))


def torch_batch(pool: LoraPool, slots: Sequence[int], counts: Any = None) -> LoraBatch | None:
    return pool.torch_batch(slots, counts)


def reference(case: Case) -> ModelRunner:
    """A decoder that computes with torch over rounded keys and values."""
    decoder = case.decoder("auto")
    shape = decoder._model.kv_shape
    decoder._graphs = decoder._prompt_graphs = None
    decoder._model.lora_batch = torch_batch  # type: ignore[method-assign]
    decoder._cache = RoundedKvCache(
        [*decoder.capacities, SCRATCH_POSITIONS],
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        head_dim=shape.head_dim,
        dtype=shape.dtype,
        device=decoder.device,
    )
    return decoder


def requests(decoder: ModelRunner, count: int, longest: int, tokens: int) -> list[Request]:
    rng = random.Random(3)
    prompts = [
        tuple(rng.randrange(3, decoder.vocab_size) for _ in range(rng.randint(2, longest)))
        for _ in range(count)
    ]
    return [
        Request("r", prompt, [None, "adapter"][number % 2], SamplingParams(tokens))
        for number, prompt in enumerate(prompts)
    ]


def assert_same_answers(case: Case, count: int, longest: int, tokens: int) -> None:
    """Prompts in pieces, rows that join later and are taken over."""
    decoder = case.decoder("int8")
    assert isinstance(decoder._cache, Int8KvCache)
    assert decoder.info.kv_cache_dtype == "int8"
    asked = requests(decoder, count, longest, tokens)
    options: dict[str, Any] = {"arrivals": [n // 2 for n in range(count)], "prefill_tokens": 7}
    run = run_rows(decoder, asked, **options)
    assert run.answers == run_rows(reference(case), asked, **options).answers
    assert len({tuple(answer) for answer in run.answers}) > count // 2, "nothing would be tested"


@pytest.mark.usefixtures("in_torch")
@pytest.mark.skipif(INTERPRETED, reason="takes minutes in Triton's interpreter")
def test_answers_are_those_of_a_cache_that_rounds_as_int8_does(case: Case) -> None:
    assert_same_answers(case, 9, 40, 16)


@pytest.mark.long
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 and Triton")
def test_the_kernels_answers_in_tritons_interpreter(case: Case) -> None:
    assert_same_answers(case, 3, 9, 4)


@pytest.mark.usefixtures("in_torch")
@pytest.mark.skipif(INTERPRETED, reason="takes minutes in Triton's interpreter")
def test_logits_are_near_those_of_plain_keys_and_values(case: Case) -> None:
    seen: list[dict[int, list[torch.Tensor]]] = []
    for kind in ("auto", "int8"):
        decoder = case.decoder(kind)
        seen.append({row: [] for row in range(4)})
        decoder._sampler = Recorder(decoder._sampler, seen[-1])  # type: ignore[assignment]
        run_rows(decoder, requests(decoder, 4, 40, 1), prefill_tokens=400)
    distances = [
        float((ours[0] - plain[0]).norm() / plain[0].norm())
        for ours, plain in zip(seen[1].values(), seen[0].values(), strict=True)
    ]
    print(case.name, distances)
    assert min(distances) > 0
    assert max(distances) < TOLERANCE


@pytest.mark.usefixtures("in_torch")
def test_a_prefix_is_reused_with_its_scales(tmp_path: Path) -> None:
    base = make_tiny("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "a", base_name="tiny", seed=1, rank=8, std=0.3)
    decoder = Case(base, "llama", adapter).decoder("int8")
    (asked,) = requests(decoder, 1, 40, 4)
    prompt = (asked.prompt_ids * 40)[:36]
    _read(decoder, 0, prompt, 0)
    decoder.set_adapter(2, None)
    decoder.reuse_prefix(2, 0, 32)
    reused = _read(decoder, 2, prompt, 32)
    again = _read(decoder, 1, prompt, 0)[-4:]
    assert torch.allclose(again, reused, atol=1e-3)  # pieces of other lengths, other tiles


def _read(decoder: ModelRunner, row: int, prompt: tuple[int, ...], start: int) -> torch.Tensor:
    """The states behind a prompt's tokens from `start` on."""
    with torch.inference_mode():
        return decoder._prefill([Draft(row, start, prompt[start:])]).clone()


def test_a_cpu_refuses_it_by_name(case: Case) -> None:
    if are_fused(DEVICE):
        pytest.skip("the kernels run here")
    with pytest.raises(FastDecoderImpossible, match=r"kv_cache_dtype: int8 .* CPU: set it to auto"):
        case.decoder("int8")
    assert case.decoder("auto").info.kv_cache_dtype == "float32"


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_the_reference_decoder_refuses_it_by_name(choice: Any, tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64)
    tokenizer_dir = make_tiny("llama", tmp_path / "llama")
    loaded = load_pretrained(tokenizer_dir, "causal", device=DEVICE, dtype="float32")
    other = dataclasses.replace(loaded, model=GPT2LMHeadModel(config).eval())
    with pytest.raises(FastDecoderImpossible, match="int8 is the fast decoder's.*set it to auto"):
        build_decoder(other, choice, LIMITS, {}, kv_cache_dtype="int8")
