"""Every architecture through the kernels that multiply by bfloat16 weights, in float32, where each
token can be compared: on a GPU, or in Triton's interpreter.

Elsewhere these kernels see bfloat16 alone, and float32 weights go through torch's products. In the
interpreter the kernels are also watched: none reads too early what another one writes.
"""

import contextlib
from pathlib import Path

import pytest

from deployments.engine.kernels.backend import are_fused
from deployments.engine.models import linear, products
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_architectures import (
    DEVICE,
    assert_same,
    fast,
    modules_of,
    requests_of,
)
from tests.deployments.engine.test_parity import INTERPRETED, Case
from tests.oracle import Oracle
from tests.tiny_architectures import RECIPES, make_tiny
from tests.tiny_models import make_adapter

pytestmark = pytest.mark.skipif(
    not are_fused(DEVICE), reason="needs a GPU with Triton, or TRITON_INTERPRET=1 and Triton"
)
if INTERPRETED:
    from tests.deployments.engine.kernels.overlaps import watched_overlaps as watched
else:
    watched = contextlib.nullcontext
long_if_interpreted = pytest.mark.long if INTERPRETED else lambda test: test
RANKS = {"few": (4, 8), "grouped": (24, 7)}  # with the norm; rows by adapter


@long_if_interpreted
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_products_with_adapters_are_pefts(
    name: str, ranks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 64 tokens at a time, fewer, several rows, and a single one."""
    for module in (linear, products):
        monkeypatch.setattr(module, "plain_product", products.KernelProduct)
        monkeypatch.setattr(module, "packed", lambda weight: None)
    # As on a GPU, where sums in one order are asked for: other kernels.
    monkeypatch.setattr(products.KernelProduct, "in_order", lambda self: None)
    base = make_tiny(name, tmp_path / "base")
    every = [each for part in modules_of(name) for each in part]
    adapters = {
        f"rank{rank}": make_adapter(
            base, tmp_path / f"{rank}", base_name=str(base), seed=rank, rank=rank, targets=every,
            std=0.4 / rank**0.5,
        )
        for rank in RANKS[ranks]
    }  # fmt: skip
    decoder = fast(base, adapters)
    for adapter, folder in adapters.items():
        decoder.load_adapter(adapter, folder)
    products_of = {type(each._product) for each in decoder._model.products if each is not None}
    assert products_of == {products.KernelProduct}
    case = Case(name, base, adapters, decoder, Oracle(base, adapters))
    for lengths in ((40, 27, 9, 18), (20,)):
        requests = requests_of(case, lengths, 3)
        with watched() as watch:
            run = run_rows(decoder, requests, prefill_tokens=200)
        assert_same(case, requests, run.answers)
        if watch is not None:
            assert not watch.problems
            assert watch.num_early, "nothing was read before a kernel waits"
