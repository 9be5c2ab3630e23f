"""Which weights a decoder is loaded with, and cards that cannot have them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.errors import FastDecoderImpossible
from deployments.engine_process.decoder_loading import DecoderSpec, load_decoder, require_fp8


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


def spec_of(folder: Path, **changed: Any) -> DecoderSpec:
    fields: dict[str, Any] = {
        "batch_invariant": "auto",
        "base_model": "tiny",
        "path": str(folder),
        "family": "causal",
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "choice": "auto",
        "max_rows": 2,
        "num_positions": 64,
        "max_adapters": 1,
        "prefill_tokens": 64,
        "kv_memory_bytes": None,
        "kv_cache_dtype": "auto",
        "cpu_threads": 1,
        "adapters": {},
    }
    return DecoderSpec(**fields | changed)


def test_rows_asked_for_and_given_are_said(tiny_llama_dir: Path) -> None:
    decoder = load_decoder(spec_of(tiny_llama_dir, max_rows=4))
    assert decoder.info.rows["given"] == decoder.info.rows["asked"] == 4
    position = 2 * 2 * 2 * 16 * 4  # bytes: two layers, two heads of 16, float32
    small = load_decoder(spec_of(tiny_llama_dir, max_rows=64, kv_memory_bytes=160 * position))
    assert small.info.rows["asked"] == 64
    assert small.info.rows["given"] == len(small.capacities) < 64
    with pytest.raises(ValueError, match="raise engine.kv_memory_mib"):
        load_decoder(spec_of(tiny_llama_dir, kv_memory_bytes=32 * position))


def test_a_gpu_too_small_for_the_weights(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 20 MiB")

    monkeypatch.setattr("deployments.engine.model_loader.load_pretrained", load)
    with pytest.raises(MemoryError, match=r"too small for the weights .*: set quantization: nf4"):
        load_decoder(spec_of(tiny_llama_dir))
