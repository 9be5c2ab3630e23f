"""Which weights a decoder is loaded with, and cards that cannot have them."""

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.engine.errors import FastDecoderImpossible
from deployments.engine_process.decoder_loading import require_fp8


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0), (12, 0)])
def test_cards_with_fp8(capability: tuple[int, int]) -> None:
    require_fp8(capability, "a card")


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 6), (8, 7)])
def test_cards_without_fp8_are_refused_by_name(capability: tuple[int, int]) -> None:
    said = rf"'fp8' needs .* and NVIDIA A100 has {capability[0]}\.{capability[1]}: set quantization"
    with pytest.raises(FastDecoderImpossible, match=said):
        require_fp8(capability, "NVIDIA A100")


@pytest.mark.slow
def test_loading_quantised_imports_no_bitsandbytes(tiny_llama_dir: Path) -> None:
    """In a process of its own, as it is served."""
    code = f"""
import sys
from pathlib import Path
from deployments.engine_process.decoder_loading import _leave_out_bitsandbytes
_leave_out_bitsandbytes()
from deployments.engine.model_loader import load_pretrained
base = load_pretrained(Path({str(tiny_llama_dir)!r}), "causal", device="cpu", quantization="int8")
print(base.quantization, sys.modules["bitsandbytes"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "int8 None"
