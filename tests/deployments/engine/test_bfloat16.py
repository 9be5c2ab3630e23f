"""bfloat16: our logits against transformers' on the same tokens, and both against float32.

bfloat16 rounds each intermediate to 8 bits, so two right ways to compute the same thing differ.
The tolerance is therefore stated in units of transformers' own error: on the answer's tokens our
distance from float32 is at most 1.5 times that of transformers' bfloat16. At full size, on a GPU:
`python -m pytest -s tests/deployments/engine/test_bfloat16.py -m long`.
"""

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.sampling import Sampler
from scripts.benchmarks.in_process.random_adapters import make_random_adapters
from scripts.benchmarks.models import load_base
from tests.deployments.engine.rows_by_hand import run_rows
from tests.tiny_architectures import make_tiny

pytestmark = pytest.mark.slow  # whole runs: seconds together

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 1.5  # times transformers' own error
NUM_TOKENS = 12


def our_logits(
    base: Any, folders: dict[str, Path], prompts: Sequence[tuple[int, ...]]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Greedy answers, and the logits (tokens, V) that they were picked from."""
    limits = FastLimits(len(prompts), max(map(len, prompts)) + NUM_TOKENS + 4, len(folders))
    decoder = build_decoder(dataclasses.replace(base, eos_ids=frozenset()), "fast", limits, folders)
    assert isinstance(decoder, ModelRunner)
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    seen: dict[int, list[torch.Tensor]] = {row: [] for row in range(len(prompts))}
    decoder._sampler = Recorder(decoder._sampler, seen)  # type: ignore[assignment]
    requests = [
        Request(f"r{i}", prompt, name, SamplingParams(NUM_TOKENS))
        for i, (prompt, name) in enumerate(zip(prompts, folders, strict=True))
    ]
    run = run_rows(decoder, requests, prefill_tokens=4096)
    order = [job.row for job in run.plans[0].admitted]
    assert order == list(range(len(prompts))), "rows are given out in the order of the requests"
    return run.answers, [torch.stack(seen[row]) for row in range(len(prompts))]


class Recorder:
    """A sampler that keeps the logits it is shown."""

    def __init__(self, sampler: Sampler, seen: dict[int, list[torch.Tensor]]) -> None:
        self._sampler, self._seen = sampler, seen

    def is_argmax(self, rows: Sequence[int]) -> bool:
        return False

    def pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        for row, line in zip(rows, logits, strict=True):
            self._seen[row].append(line.float().cpu())
        return self._sampler.pick(logits, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


@torch.inference_mode()
def their_logits(
    model: Any, folders: dict[str, Path], prompts: Sequence[tuple[int, ...]], answers: Any
) -> list[torch.Tensor]:
    """transformers with PEFT's active adapter, fed with the same tokens."""
    names = list(folders)
    peft = PeftModel.from_pretrained(model, str(folders[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(str(folders[name]), adapter_name=name)
    peft.eval()
    logits = []
    for name, prompt, answer in zip(names, prompts, answers, strict=True):
        peft.set_adapter(name)
        ids = torch.tensor([prompt], device=model.device)
        if model.config.is_encoder_decoder:
            start = [model.config.decoder_start_token_id, *answer[:-1]]
            fed = torch.tensor([start], device=model.device)
            out = peft(input_ids=ids, decoder_input_ids=fed).logits[0]
        else:
            ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
            out = peft(input_ids=ids).logits[0, len(prompt) - 1 :]
        logits.append(out.float().cpu())
    return logits


def check(model_name: str, tmp_path: Path) -> None:
    base = load_base(model_name, DEVICE, "bfloat16")
    vocab = base.model.config.get_text_config().vocab_size
    folders = make_random_adapters(base.model, tmp_path / "adapters", num=3, rank=8, targets=None)
    prompts = [tuple((7 + 31 * i + 13 * j) % vocab for j in range(11 + 20 * i)) for i in range(3)]
    answers, ours = our_logits(base, folders, prompts)
    del base
    gc.collect()
    theirs = their_logits(
        load_base(model_name, DEVICE, "bfloat16").model, folders, prompts, answers
    )
    wide = load_base(model_name, DEVICE, "bfloat16").model.float()
    exact = their_logits(wide, folders, prompts, answers)
    for name, own, other, true in zip(folders, ours, theirs, exact, strict=True):
        our_error = float((own - true).norm() / true.norm())
        their_error = float((other - true).norm() / true.norm())
        between = float((own - other).norm() / true.norm())
        print(
            f"{model_name.rpartition('/')[2]} {name}: from float32 ours {our_error:.4f}, "
            f"transformers' {their_error:.4f}; from each other {between:.4f}"
        )
        assert own.shape == true.shape
        assert 0 < our_error <= TOLERANCE * their_error
    assert (ours[0][:5] - ours[1][:5]).norm() > 10 * (ours[0] - theirs[0])[:5].norm(), "all alike"


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
