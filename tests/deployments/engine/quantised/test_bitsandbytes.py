"""Our logits against those of bitsandbytes' own layers under PEFT's `set_adapter`.

NF4 is the same weights; LLM.int8() also rounds the layer's inputs to eight bits. On a CPU in
float32 (bitsandbytes itself multiplies in bfloat16 or less there), on a GPU in bfloat16.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.model_loader import load_pretrained
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.weight import Kind
from scripts.benchmarks.in_process.rounding_errors import _our_logits, _their_logits
from tests.deployments.engine.test_parity import ATTENTION, BASES, MLP, family_of, one_thread
from tests.tiny_models import make_adapter

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE: Any = "bfloat16" if DEVICE == "cuda" else "float32"
PROMPTS = [tuple(3 + (7 * i + 5 * j) % 60 for j in range(9 + 8 * i)) for i in range(4)]
# Relative distance of the logits; int8: of inputs in eight bits, layer after layer.
TOLERANCE: dict[Kind, float] = {"nf4": 0.05, "int8": 0.1}


def calmer(base: Path) -> None:
    """Attention of the tiny T5 is so sharp that 0.3 % of a layer's product change all logits."""
    weights = base / "model.safetensors"
    state = load_file(weights)
    for name, tensor in state.items():
        if name.endswith(("Attention.q.weight", "Attention.k.weight")):
            state[name] = tensor * 0.1
    save_file(state, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["llama", "flan_t5"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_our_logits_are_near_theirs(name: str, kind: Kind, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if DEVICE == "cpu" and (name, kind) == ("flan_t5", "nf4"):
        pytest.skip(
            "on a CPU its first product makes the weight uint8, to which T5 casts wo's inputs"
        )
    base = BASES[name](tmp_path / "base")
    if name == "flan_t5":
        calmer(base)
    targets = [*ATTENTION[family_of(name)], *MLP[name]]
    folders = {
        f"rank {rank}": make_adapter(
            base, tmp_path / str(rank), base_name=str(base), seed=rank, rank=rank,
            targets=targets, std=0.3 / rank**0.5,
        )
        for rank in (4, 8, 16, 64)
    }  # fmt: skip
    options: dict[str, Any] = {"device": DEVICE, "dtype": DTYPE, "quantization": kind}
    family = family_of(name)
    answers, ours = _our_logits(load_pretrained(base, family, **options), folders, PROMPTS)
    loaded = load_pretrained(base, family, **options, with_bitsandbytes=True)
    assert not any(isinstance(layer, QuantisedLinear) for layer in loaded.model.modules())
    theirs = _their_logits(loaded.model, folders, PROMPTS, answers)
    others = [*ours[1:], ours[0]]
    for adapter, own, their, other in zip(folders, ours, theirs, others, strict=True):
        distance = float((own - their).norm() / their.norm())
        apart = float((own - other).norm() / their.norm())
        print(f"{name} {kind} {adapter}: {distance:.4f}, from another answer {apart:.3f}")
        assert distance < TOLERANCE[kind]
        assert apart > 5 * TOLERANCE[kind], "all answers are alike"
