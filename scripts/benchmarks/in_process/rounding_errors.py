"""How far bfloat16 moves the fast decoder's logits, and transformers', from float32's.

bfloat16 rounds each intermediate to 8 bits, so two right ways to compute the same thing differ:
the decoder's error is measured in units of transformers' own on the same tokens.
"""

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.model_loader import Dtype, Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.sampling import Sampler
from deployments.engine.scheduling.scheduler import Scheduler
from scripts.benchmarks.in_process.random_adapters import make_random_adapters

NUM_TOKENS = 12  # of each answer
NUM_ROWS = 3  # each with an adapter of its own
Prompt = tuple[int, ...]
Load = Callable[[Dtype], Pretrained]
"""Returns the same weights each time, in that dtype."""


@dataclass(frozen=True, slots=True)
class RoundingErrors:
    """Relative distances of one answer's logits: ||a - b|| / ||float32's||."""

    ours: float  # from float32
    theirs: float  # transformers' bfloat16 from float32
    between: float  # ours from transformers'
    to_another: float  # ours from another row's, of another prompt and adapter

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def rounding_errors(
    load: Load, scratch: Path, *, rank: int, targets: Sequence[str] | None
) -> list[RoundingErrors]:
    """Return the errors of NUM_ROWS greedy answers that decode together, each with an adapter."""
    base = load("bfloat16")
    vocab = base.model.config.get_text_config().vocab_size
    folders = make_random_adapters(base.model, scratch, num=NUM_ROWS, rank=rank, targets=targets)
    prompts = [tuple((7 + 31 * i + 13 * j) % vocab for j in range(11 + 20 * i)) for i in range(3)]
    answers, ours = _our_logits(base, folders, prompts)
    del base
    gc.collect()
    theirs = _their_logits(load("bfloat16").model, folders, prompts, answers)
    exact = _their_logits(load("bfloat16").model.float(), folders, prompts, answers)
    others = [*ours[1:], ours[0]]
    return [_distances(*each) for each in zip(ours, theirs, exact, others, strict=True)]


def _distances(
    ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, other: torch.Tensor
) -> RoundingErrors:
    pairs = ((ours, exact), (theirs, exact), (ours, theirs), (ours, other))
    return RoundingErrors(*(float((a - b).norm() / exact.norm()) for a, b in pairs))


def _our_logits(
    base: Pretrained, folders: Mapping[str, Path], prompts: Sequence[Prompt]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Return greedy answers, and the logits (tokens, V) that they were picked from."""
    limits = FastLimits(len(prompts), max(map(len, prompts)) + NUM_TOKENS + 4, len(folders))
    decoder = build_decoder(dataclasses.replace(base, eos_ids=frozenset()), "fast", limits, folders)
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    seen: dict[int, list[torch.Tensor]] = {row: [] for row in range(len(prompts))}
    decoder._sampler = Recorder(decoder._sampler, seen)  # type: ignore[assignment]
    answers = _answer(decoder, list(folders), prompts)
    return answers, [torch.stack(seen[row]) for row in range(len(prompts))]


def _answer(
    decoder: ModelRunner, adapters: Sequence[str], prompts: Sequence[Prompt]
) -> list[list[int]]:
    """Return the tokens of each row; rows are given out in the order of the prompts."""
    scheduler = Scheduler(
        decoder.capacities, prefill_tokens=4096, can_split_prompts=decoder.can_split_prompts
    )
    for prompt, adapter in zip(prompts, adapters, strict=True):
        scheduler.add(Request("r", prompt, adapter, SamplingParams(NUM_TOKENS)), 0.0)
    answers: list[list[int]] = [[] for _ in prompts]
    while any(len(answer) < NUM_TOKENS for answer in answers):
        plan = scheduler.schedule(0.0)
        for job in plan.admitted:
            assert job.row is not None, "admitted without a row"
            decoder.set_adapter(job.row, job.request.adapter)
        for row, token in decoder.step(plan).wait().items():
            answers[row].append(token)
    return answers


class Recorder:
    """A sampler that keeps the logits it is shown, in `seen` by row."""

    def __init__(self, sampler: Sampler, seen: Mapping[int, list[torch.Tensor]]) -> None:
        self._sampler, self._seen = sampler, seen

    def is_argmax(self, rows: Sequence[int], ahead: int = 0) -> bool:
        return False

    def pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        for row, line in zip(rows, logits, strict=True):
            self._seen[row].append(line.float().cpu())
        return self._sampler.pick(logits, rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)


@torch.inference_mode()
def _their_logits(
    model: Any,
    folders: Mapping[str, Path],
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
) -> list[torch.Tensor]:
    """Return the logits of transformers with PEFT's active adapter, fed with the same tokens."""
    if model.config.model_type == "umt5":
        # With any other attention 5.17's decoder looks ahead (mended by 5.23). Each half has a
        # configuration of its own.
        for half in (model.get_encoder(), model.get_decoder()):
            half.set_attn_implementation("eager")
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
