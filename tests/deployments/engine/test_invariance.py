"""A sequence's logits are, to the bit, those that it has alone: whatever runs beside it, in what
pieces its prompt is read, whatever is reused or guessed.

On a GPU too: `python -m pytest tests/deployments/engine/test_invariance.py`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.kernels import ops
from deployments.engine.kernels.backend import are_fused
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.models import invariance, products
from deployments.engine.models.weights import has_blocks
from deployments.engine.peft_decoder import PeftDecoder
from scripts.benchmarks.in_process.mixtures import Mixture, differing, random_mixture
from tests.tiny_architectures import family_of, make_tiny
from tests.tiny_models import make_adapter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    are_fused("cpu"), reason="the interpreter's products are numpy's, which choose by shape"
)
# Wide enough for the libraries to choose: a sum of 1,152 is cut, one of 64 is not.
WIDE: dict[str, dict[str, Any]] = {
    "causal": {
        "hidden_size": 192,
        "intermediate_size": 1152,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
    },
    "seq2seq": {"d_model": 192, "d_ff": 1152, "d_kv": 32},
    "bart": {
        "d_model": 192,
        "encoder_ffn_dim": 1152,
        "decoder_ffn_dim": 1152,
        "max_position_embeddings": 256,
    },
    **dict.fromkeys(("t5gemma", "t5gemma2"), {}),  # its halves have configurations of their own
}
TARGETS = {
    "causal": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "seq2seq": ["q", "v", "o", "wo"],
    "bart": ["q_proj", "v_proj", "out_proj", "fc2"],
    "t5gemma": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "t5gemma2": ["q_proj", "k_proj", "o_proj", "down_proj"],
}
RANKS = {"narrow": 3, "plain": 8, "wide": 64, "dora": 4}
VOCABULARY = 60
LIMITS = FastLimits(max_rows=5, num_positions=160, max_adapters=5)
CASES = ["llama", "gemma2", "t5", "bart", "t5gemma", "t5gemma2"]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(previous)


def build(folder: Path, name: str, dtype: str, **options: Any) -> ModelRunner:
    """A decoder with adapters of ranks 3 to 64 on several layers, one of them DoRA; no token ends
    an answer."""
    base_dir = make_tiny(name, folder / "base", **WIDE.get(name, WIDE[family_of(name)]))
    base = load_pretrained(base_dir, family_of(name), device=DEVICE, dtype=dtype)  # type: ignore[arg-type]
    base = dataclasses.replace(base, eos_ids=frozenset())
    targets = TARGETS.get(name, TARGETS[family_of(name)])
    folders = {
        adapter: make_adapter(
            base_dir,
            folder / adapter,
            base_name="tiny",
            seed=rank,
            rank=rank,
            targets=targets[i % 3 :],
            std=0.2,
            use_dora=adapter == "dora",
        )
        for i, (adapter, rank) in enumerate(RANKS.items())
        if adapter != "dora" or "weights" not in options
    }
    decoder = build_decoder(base, "fast", LIMITS, folders, **options)
    assert isinstance(decoder, ModelRunner)
    for adapter, weights in folders.items():
        decoder.load_adapter(adapter, weights)
    return decoder


HAS_BFLOAT16 = DEVICE == "cuda" or has_blocks(torch.bfloat16)
FAST = (("llama", "bfloat16" if HAS_BFLOAT16 else "float32"),)  # the others are long
needs_bfloat16 = pytest.mark.skipif(
    not HAS_BFLOAT16, reason="this processor lacks the instructions for bfloat16"
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            case,
            marks=[
                *([] if case in FAST else [pytest.mark.long]),
                *([needs_bfloat16] if case[1] == "bfloat16" else []),
            ],
        )
        for case in itertools.product(CASES, ("float32", "bfloat16"))
    ],
)
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModelRunner:
    folder = tmp_path_factory.mktemp("invariant")
    return build(folder, *request.param, batch_invariant=True)


def mixture(seed: int, adapters: Sequence[str] = tuple(RANKS), **options: bool) -> Mixture:
    return random_mixture(
        seed,
        VOCABULARY,
        [None, *adapters],
        num_requests=6,
        prompt_tokens=(1, 90),
        output_tokens=5,
        **options,
    )


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 20), reuses=st.booleans(), guesses=st.booleans())
def test_logits_are_those_of_a_sequence_alone(
    decoder: ModelRunner, seed: int, reuses: bool, guesses: bool
) -> None:
    assert decoder.info.batch_invariant
    asked = mixture(seed, reuses_prefixes=reuses, tries_drafts=guesses)
    assert differing(decoder, asked) == []


@pytest.mark.skipif(DEVICE == "cpu", reason="a GPU keeps keys and values in int8")
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_int8_keys_and_values_are_their_rows_own(name: str, tmp_path: Path) -> None:
    decoder = build(tmp_path, name, "bfloat16", batch_invariant=True, kv_cache_dtype="int8")
    assert decoder.info.kv_cache_dtype == "int8"
    assert differing(decoder, mixture(2, reuses_prefixes=True)) == []


@pytest.mark.long
@pytest.mark.skipif(DEVICE == "cuda", reason="of a CPU")
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_product_that_chooses_by_its_rows_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same test fails with a planted product, and so does the start."""
    decoder = build(tmp_path, name, "float32", batch_invariant=True)
    asked = mixture(1)
    assert differing(decoder, asked) == []
    sound = products._of_blocks

    def by_rows(x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if len(x) < 4:
            return sound(x, blocks, bias)
        half = x.clone()
        half[:, x.shape[1] // 2 :] = 0
        return sound(half, blocks, bias) + sound(x - half, blocks, None)

    monkeypatch.setattr(products, "_of_blocks", by_rows)
    assert differing(decoder, asked)
    again = tmp_path / "again"
    with pytest.raises(FastDecoderImpossible, match="depends on the number of rows"):
        build(again, name, "float32", batch_invariant=True)
    left = build(tmp_path / "left", name, "float32", batch_invariant="auto")
    assert not left.info.batch_invariant
    assert "depends on the number of rows" in left.info.batch_invariant_reason


@needs_bfloat16
@pytest.mark.skipif(DEVICE == "cuda", reason="of a CPU")
def test_what_is_exact_is_reused_and_guessed(tmp_path: Path) -> None:
    """bfloat16 in one order of sums reads what it writes; in torch's it does not."""
    for wanted in (True, False):
        decoder = build(tmp_path / str(wanted), "llama", "bfloat16", batch_invariant=wanted)
        assert decoder.info.batch_invariant is wanted
        assert decoder.can_try_drafts is wanted
        assert decoder.can_reuse_answers


@pytest.mark.long
@pytest.mark.skipif(DEVICE == "cuda", reason="of a CPU")
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_compiled_step_always_is(bits: str, tmp_path: Path) -> None:
    decoder = build(tmp_path, "mistral", "float32", weights=bits, batch_invariant=False)
    assert decoder.info.batch_invariant
    adapters = [name for name in RANKS if name != "dora"]
    asked = mixture(3, adapters, reuses_prefixes=True, tries_drafts=True)
    assert differing(decoder, asked) == []


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_dir = make_tiny("qwen3", tmp_path / "base")
    base = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    with pytest.raises(FastDecoderImpossible, match="heads have 24 dimensions"):
        build_decoder(base, "auto", LIMITS, {}, batch_invariant=True)
    base = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    left = build_decoder(base, "auto", LIMITS, {})
    assert not left.info.batch_invariant
    with pytest.raises(FastDecoderImpossible, match="reference decoder pads"):
        build_decoder(base, "reference", LIMITS, {}, batch_invariant=True)
    other = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    with pytest.raises(FastDecoderImpossible, match=r"reference decoder pads.*auto or false"):
        build_decoder(
            dataclasses.replace(other, quantization="nf4", with_bitsandbytes=True),
            "auto",
            LIMITS,
            {},
            batch_invariant=True,
        )
    served = build_decoder(base, "reference", LIMITS, {})
    assert isinstance(served, PeftDecoder)
    assert not served.info.batch_invariant
    assert "pads" in served.info.batch_invariant_reason
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    llama = make_tiny("llama", tmp_path / "bfloat16")
    base = load_pretrained(llama, "causal", device="cpu", dtype="bfloat16")
    with pytest.raises(FastDecoderImpossible, match=r"lacks .* bfloat16 \(float32 keeps"):
        build_decoder(base, "fast", LIMITS, {}, batch_invariant=True)
    monkeypatch.setattr(invariance.importlib.util, "find_spec", lambda name: None)
    base = load_pretrained(
        make_tiny("llama", tmp_path / "llama"), "causal", device="cpu", dtype="float32"
    )
    with pytest.raises(FastDecoderImpossible, match="numba is not installed"):
        build_decoder(base, "fast", LIMITS, {}, batch_invariant=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu_new", "silu", "gelu"])
@pytest.mark.parametrize("width", [30, 100, 1100, 1536, 20_001])
def test_activations_are_those_of_a_row_alone(
    width: int, activation: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 2 * width, generator=generator).to(dtype)
    gated = ops.gated_activation_torch(x, activation)
    plain = ops.activate(x, activation)
    for row in (0, 1, 29, 68, 69):
        alone = x[row : row + 1].clone()
        assert torch.equal(ops.gated_activation_torch(alone, activation)[0], gated[row])
        assert torch.equal(ops.activate(alone, activation)[0], plain[row])
    for count in (2, 7, 33):
        some = x[-count:].clone()
        assert torch.equal(ops.gated_activation_torch(some, activation), gated[-count:])
