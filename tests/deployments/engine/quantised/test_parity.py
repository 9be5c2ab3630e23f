"""The fast decoder over a quantised base against PEFT over the same weights dequantised.

The same tokens in float32, adapters of ranks 3 to 64 mixed, as in test_parity.py of the engine.
"""

import random
import shutil
from pathlib import Path

import pytest
import torch

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.kernels.backend import are_fused
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.weight import KINDS, Kind
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_parity import (
    BASES,
    DEVICE,
    INTERPRETED,
    MAX_TOKENS,
    NUM_ROWS,
    Case,
    assert_parity,
    family_of,
    make_adapters,
    one_thread,
    prompt,
    request,
)
from tests.oracle import Oracle
from tests.tiny_models import load_model

pytestmark = pytest.mark.slow

__all__ = ["one_thread"]  # a fixture

CASES = [
    *[(name, kind) for name in ("llama", "flan_t5") for kind in KINDS],
    ("qwen2", "int8"),
    ("relu_t5", "nf4"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, kind = request.param
    folder = tmp_path_factory.mktemp(f"quantised-{name}-{kind}")
    base = BASES[name](folder / "base")
    adapters = make_adapters(name, base, folder)
    dequantised = write_dequantised(name, base, kind, folder / "dequantised")
    loaded = load_pretrained(
        base, family_of(name), device=DEVICE, dtype="float32", quantization=kind
    )
    decoder = build_decoder(loaded, "fast", FastLimits(NUM_ROWS, 96, max_adapters=8), adapters)
    assert isinstance(decoder, ModelRunner)
    for adapter, directory in adapters.items():
        decoder.load_adapter(adapter, directory)
    return Case(f"{name} {kind}", base, adapters, decoder, Oracle(dequantised, adapters))


def write_dequantised(name: str, base: Path, kind: Kind, folder: Path) -> Path:
    """The base as a folder of plain weights: those that the quantised one stands for.

    It is quantised where the decoder is: int8 divides otherwise on a GPU.
    """
    options = {"device": DEVICE, "dtype": "float32"}
    quantised = load_pretrained(base, family_of(name), quantization=kind, **options).model  # type: ignore[arg-type]
    plain = load_model(base)
    changed = 0
    for path, module in quantised.named_modules():
        if isinstance(module, QuantisedLinear):
            weight = plain.get_parameter(f"{path}.weight")
            own = module.quantised.dequantised(torch.float32).cpu()
            assert 0 < (weight - own).norm() < 0.12 * weight.norm()
            weight.data.copy_(own)
            changed += 1
    assert changed >= 2 * 7 - 1, "most layers are quantised"
    shutil.copytree(base, folder)
    plain.save_pretrained(folder)
    return folder


def test_the_adapters_differ_from_the_base_and_from_each_other(case: Case) -> None:
    ids = prompt(random.Random(1), case)
    answers = [tuple(case.oracle.generate(ids, side, MAX_TOKENS)) for side in case.sides]
    assert len(set(answers)) == len(case.sides), "nothing would be tested"


def test_the_quantised_base_is_another_base(case: Case) -> None:
    """Else an answer of the plain weights would pass."""
    plain = Oracle(case.base, case.adapters)
    rng = random.Random(4)
    asked = [(prompt(rng, case), side) for side in case.sides for _ in range(2)]
    assert any(
        plain.generate(ids, side, MAX_TOKENS) != case.oracle.generate(ids, side, MAX_TOKENS)
        for ids, side in asked
    )


def test_all_adapters_in_one_batch(case: Case) -> None:
    rng = random.Random(3)
    requests = [request(prompt(rng, case), side) for side in case.sides for _ in range(2)]
    run = run_rows(case.decoder, requests, prefill_tokens=400)
    assert run.most_rows == NUM_ROWS
    assert run.most_adapters >= 4
    assert_parity(case, requests, run)


def test_any_composition_at_any_time(case: Case) -> None:
    rng = random.Random(100)
    requests = [
        request(prompt(rng, case), rng.choice(case.sides), rng.randint(1, MAX_TOKENS))
        for _ in range(14)
    ]
    arrivals = [rng.randint(0, 20) for _ in requests]
    run = run_rows(case.decoder, requests, arrivals=arrivals, prefill_tokens=16)
    assert run.most_adapters > 1
    assert_parity(case, requests, run)


@pytest.mark.long
@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 and Triton")
def test_the_kernels_in_tritons_interpreter(case: Case) -> None:
    assert are_fused("cpu")
    rng = random.Random(5)
    requests = [request(prompt(rng, case, 6), side, 4) for side in case.sides[:NUM_ROWS]]
    run = run_rows(case.decoder, requests)
    assert run.most_adapters >= 4
    assert_parity(case, requests, run)
