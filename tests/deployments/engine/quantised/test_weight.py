"""The formats against bitsandbytes' own values, and the products' twins."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from deployments.engine.quantised import formats
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.weight import (
    KINDS,
    Fp8Weight,
    Int8Weight,
    Kind,
    Nf4Weight,
    quantise,
    stacked,
)

# Relative distance of a normal weight from itself quantised, as papers and libraries report them.
ERROR: dict[Kind, float] = {"int8": 0.012, "fp8": 0.03, "nf4": 0.1}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.fixture(scope="module")
def bitsandbytes() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("bitsandbytes")


def with_edges(dtype: torch.dtype) -> torch.Tensor:
    """Rows of zeros, of one large value, of ties, of tiny numbers."""
    weight = normal(512, 256, dtype=dtype)
    weight[3] = 0
    weight[4, 7] = 900
    weight[5] = 0.5
    weight[6] *= 1e-6
    weight[7, :64] = 0
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_bitsandbytes_own(bitsandbytes: Any, dtype: torch.dtype) -> None:
    weight = with_edges(dtype)
    ours = quantise(weight, "int8")
    assert isinstance(ours, Int8Weight)
    rows = weight.half()
    rows[3, 0] = 1  # bitsandbytes divides by zero for a row of zeros
    values, absmax, _ = bitsandbytes.functional.int8_vectorwise_quant(rows)
    values[3], absmax[3] = 0, 0
    assert torch.equal(ours.values, values)
    assert torch.equal(ours.absmax, absmax)
    there = torch.ops.bitsandbytes.int8_vectorwise_dequant(values, absmax)
    assert torch.equal(ours.dequantised(torch.float32), there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_bitsandbytes_own(bitsandbytes: Any, dtype: torch.dtype) -> None:
    """float64 takes bitsandbytes' exact search; its compiled one for float32 on a CPU gives a
    value within 1e-5 of a middle the next entry now and then."""
    weight = with_edges(dtype)
    there = bitsandbytes.functional
    packed, state = there.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    offset, table = state.absmax.mean(), there.create_dynamic_map()
    nested, scale = torch.ops.bitsandbytes.quantize_blockwise(
        (state.absmax - offset).double(), table, 256
    )
    values, absmax = formats.quantise_nf4(weight)
    assert torch.equal(values, packed.view(-1))
    assert torch.equal(absmax, table[nested.int()] * scale.repeat_interleave(256) + offset)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_of_a_checkpoint_is_read_to_the_bit(bitsandbytes: Any, dtype: torch.dtype) -> None:
    weight = with_edges(dtype)[:100]  # its last block of 256 absmax is short
    there = bitsandbytes.functional
    packed, state = there.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    nested = state.state2
    absmax = formats.nested_absmax(state.absmax, nested.code, nested.absmax, state.offset)
    ours = Nf4Weight.from_bitsandbytes(packed, absmax, (100, 256))
    assert torch.equal(ours.dequantised(dtype), there.dequantize_4bit(packed, state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_weight_is_near_its_own(kind: Kind, dtype: torch.dtype) -> None:
    weight = normal(96, 128, dtype=dtype)
    before = weight.clone()
    ours = quantise(weight, kind)
    assert torch.equal(weight, before), "the weight itself was changed"
    again = ours.dequantised(torch.float32)
    assert 0 < (again - weight.float()).norm() / weight.float().norm() < ERROR[kind]
    assert ours.shape == (96, 128)
    assert ours.num_bytes <= weight.numel() * {"int8": 1.1, "fp8": 1.1, "nf4": 0.57}[kind]
    moved = ours.to("cpu")
    assert torch.equal(moved.dequantised(dtype), ours.dequantised(dtype))
    x = normal(5, 128, seed=1, dtype=dtype)
    torch.testing.assert_close(ours.product(x), x @ ours.dequantised(dtype).T)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_weights_are_their_rows(kind: Kind) -> None:
    parts = [quantise(normal(rows, 128, seed=rows), kind) for rows in (64, 32, 7)]
    whole = stacked(parts)
    assert whole.shape == (103, 128)
    wanted = torch.cat([part.dequantised(torch.float32) for part in parts])
    assert torch.equal(whole.dequantised(torch.float32), wanted)
    assert stacked(parts[:1]) is parts[0]


@pytest.mark.parametrize(("first", "second"), [("int8", "fp8"), ("nf4", "int8"), ("fp8", "nf4")])
def test_kinds_are_not_mixed_in_one_product(first: Kind, second: Kind) -> None:
    parts = [quantise(normal(64, 64), kind) for kind in (first, second)]
    with pytest.raises(ValueError, match=f"several kinds: {first}, {second}"):
        stacked(parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_quantised(kind: Kind, bad: float) -> None:
    weight = normal(4, 64)
    weight[2, 5] = bad
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        quantise(weight, kind)


def test_int8_begins_with_float16() -> None:
    with pytest.raises(ValueError, match="in float16"):
        quantise(normal(4, 64) * 1e6, "int8")


@pytest.mark.parametrize("columns", [1, 63, 96, 100])
def test_nf4_takes_whole_blocks(columns: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 64 inputs, and one has {columns}"):
        quantise(normal(64, columns), "nf4")
    with pytest.raises(ValueError, match=f"one has {columns}"):
        Nf4Weight.from_bitsandbytes(torch.zeros(8, 1).byte(), torch.zeros(1), (2, columns))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Int8Weight(torch.zeros(4, 64), torch.zeros(4)), "int8 values are torch.int8"),
        (lambda: Int8Weight(torch.zeros(4, 64).char(), torch.zeros(3)), "4 rows .* 3 factors"),
        (lambda: Int8Weight(torch.zeros(4, 64).char(), torch.zeros(4).half()), "torch.float16"),
        (lambda: Fp8Weight(torch.zeros(4, 64).char(), torch.zeros(4)), "float8_e4m3fn"),
        (lambda: Nf4Weight(torch.zeros(4, 32).byte(), torch.zeros(4, 2)), r"absmax \(4, 2\)"),
        (lambda: Nf4Weight(torch.zeros(4, 32).byte(), torch.zeros(4)), "of 2 dimensions"),
        (
            lambda: Nf4Weight.from_bitsandbytes(torch.zeros(99).byte(), torch.zeros(4), (4, 64)),
            "has 128 bytes and 4 absmax; found 99 and 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_quantised_layer_is_a_linear_layer(kind: Kind, has_bias: bool) -> None:
    weight, bias = quantise(normal(24, 64), kind), normal(24, seed=2) if has_bias else None
    layer = QuantisedLinear(weight, bias, torch.float32)
    assert (layer.in_features, layer.out_features) == (64, 24)
    assert layer.weight.dtype == torch.float32
    x = normal(2, 3, 64, seed=1)
    wanted = F.linear(x, weight.dequantised(torch.float32), bias)
    torch.testing.assert_close(layer(x), wanted)


def test_peft_adapts_a_quantised_layer() -> None:
    """The reference decoder's way: the layer below is asked for its own product."""
    weight = quantise(normal(24, 64), "int8")
    base = torch.nn.Sequential(QuantisedLinear(weight, None, torch.float32))
    peft = get_peft_model(base, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    x = normal(3, 64, seed=1)
    adapted = dict(peft.named_parameters())
    a, b = (adapted[f"base_model.model.0.lora_{half}.default.weight"] for half in "AB")
    wanted = x @ weight.dequantised(torch.float32).T + 2 * (x @ a.T) @ b.T
    torch.testing.assert_close(peft(x), wanted)
