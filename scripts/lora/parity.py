"""Check that a merged model is its base plus adapter: finite weights, logits, greedy answers."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.bases.models import Family, family_of
from scripts.lora.base_model import load_base
from scripts.lora.errors import MergeError

# Largest relative error of the logits (norm of the difference over the norm) that merging may
# cause. float32 leaves rounding; in the 16-bit types each merged weight is rounded once (2**-9 and
# 2**-12 relative), which adds up over the layers: SmolLM2-135M shows 0.02 and 0.003.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.06, "float16": 0.01}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a model does with the prompts."""

    answers: list[list[int]]  # greedy ids of each prompt
    logits: list[torch.Tensor]  # of each prompt's own answer, (answer tokens, vocabulary), float32
    tokens_per_s: float  # one prompt at a time, median over the repeats


@dataclass(slots=True)
class Probe:
    """Run the same prompts on every model that is compared."""

    prompts: Sequence[list[int]]  # ids of each
    family: Family
    num_tokens: int  # of a greedy answer, which is generated to this length
    device: str
    _answers: list[list[int]] | None = None  # of the first model

    @torch.inference_mode()
    def run(self, model: Any, repeats: int) -> ProbeResult:
        """Return answers, speed, and the logits on the answers that the first model gave."""
        answers = [self._answer(model, prompt) for prompt in self.prompts]
        if self._answers is None:
            self._answers = answers
        pairs = zip(self.prompts, self._answers, strict=True)
        logits = [self._logits(model, prompt, answer) for prompt, answer in pairs]
        return ProbeResult(answers, logits, self._speed(model, repeats))

    def _answer(self, model: Any, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=self.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.num_tokens,
            min_new_tokens=self.num_tokens,
            do_sample=False,
            pad_token_id=model.config.pad_token_id or 0,
        )
        start = len(prompt) if self.family == "causal" else 0
        found: list[int] = output[0, start:].tolist()
        return found

    def _logits(self, model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Return (answer tokens, vocabulary): each position's prediction of the next."""
        if self.family == "causal":
            ids = torch.tensor([prompt + answer], device=self.device)
            rows = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        else:
            ids = torch.tensor([prompt], device=self.device)
            decoder = torch.tensor([answer], device=self.device)  # begins with the start id
            rows = model(input_ids=ids, decoder_input_ids=decoder).logits[0]
        return torch.as_tensor(rows).float().cpu()

    def _speed(self, model: Any, repeats: int) -> float:
        speeds = []
        for repeat in range(repeats):
            started = time.perf_counter()
            self._answer(model, self.prompts[repeat % len(self.prompts)])
            speeds.append(self.num_tokens / (time.perf_counter() - started))
        return round(statistics.median(speeds), 2)


def check_finite(model: Any) -> None:
    """Refuse a model with NaN or infinity. Raises MergeError: names the first tensor."""
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise MergeError(
            f"{len(bad)} merged tensors hold NaN or infinity, the first is {bad[0]}: the adapter "
            "is damaged, or --dtype is too narrow for it; try float32"
        )


def check_parity(before: ProbeResult, after: ProbeResult, dtype: str) -> dict[str, Any]:
    """Return the report's figures: relative error of the logits, equality of the answers.

    Raises:
        MergeError: the error is above the tolerance of `dtype`; in float32 also when a greedy
            answer differs.
    """
    error = relative_error(before.logits, after.logits)
    allowed = TOLERANCE[dtype]
    if not error <= allowed:
        raise MergeError(
            f"the merged model's logits differ from base plus adapter by {error:.2g} (relative), "
            f"and {allowed:.2g} is allowed in {dtype}; merge in float32"
        )
    pairs = list(zip(before.answers, after.answers, strict=True))
    same = [i for i, (one, other) in enumerate(pairs) if one == other]
    if dtype == "float32" and len(same) < len(pairs):
        first = next(i for i in range(len(pairs)) if i not in same)
        raise MergeError(f"the merged model's greedy answer to prompt {first + 1} differs")
    return {
        "logits_relative_error": float(f"{error:.3g}"),
        "logits_tolerance": allowed,
        "equal_answers": f"{len(same)} of {len(pairs)}",
    }


def relative_error(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Return the norm of the difference over the norm, the largest over the prompts."""
    return max(float((a - b).norm() / a.norm()) for a, b in zip(expected, found, strict=True))


def read_back(folder: Path, merged: Any, probe: Probe, dtype: str, device: str) -> dict[str, Any]:
    """Load the written folder as serving would and compare it with the model in memory.

    Raises:
        MergeError: its logits differ in any bit.
    """
    loaded = load_base(folder, family_of(folder), dtype).to(device).eval()
    error = relative_error(probe.run(merged, 1).logits, probe.run(loaded, 1).logits)
    if error != 0:
        raise MergeError(
            f"the written model's logits differ from the merged one's by {error:.2g}: a weight is "
            "not saved as it is (tied or scaled on load); this base can't be merged into a folder"
        )
    return {"logits_equal": True}
