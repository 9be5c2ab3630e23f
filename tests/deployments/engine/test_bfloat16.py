"""bfloat16: our logits against transformers' on the same tokens, and both against float32.

On the answer's tokens our distance from float32 is at most 1.5 times that of transformers'
bfloat16. At full size, on a GPU: `python -m scripts.benchmark tolerance --device cuda`.
"""

from pathlib import Path

import pytest
import torch

from scripts.benchmarks.bases.models import load_base
from scripts.benchmarks.in_process.rounding_errors import rounding_errors
from scripts.benchmarks.tolerance import TOLERANCE
from tests.tiny_architectures import make_tiny

pytestmark = pytest.mark.slow  # whole runs: seconds together

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(model_name: str, tmp_path: Path) -> None:
    rows = rounding_errors(
        lambda dtype: load_base(model_name, DEVICE, dtype),
        tmp_path / "adapters",
        rank=8,
        targets=None,
    )
    for errors in rows:
        print(f"{model_name.rpartition('/')[2]}: {errors}")
        assert 0 < errors.ours <= TOLERANCE * errors.theirs
    assert rows[0].to_another > 10 * rows[0].between, "all alike"


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3", "granite", "olmo2"])
def test_tiny_architectures(name: str, tmp_path: Path) -> None:
    check(str(make_tiny(name, tmp_path / "base")), tmp_path)


@pytest.mark.parametrize("base", ["tiny_llama_dir", "tiny_flan_t5_dir"])
def test_tiny_models(base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    check(str(request.getfixturevalue(base)), tmp_path)


@pytest.mark.long
@pytest.mark.skipif(DEVICE == "cpu", reason="the full size needs a GPU")
@pytest.mark.parametrize("shape", ["flan-t5-xl-shape", "llama-1b-shape"])
def test_full_size(shape: str, tmp_path: Path) -> None:
    check(shape, tmp_path)
