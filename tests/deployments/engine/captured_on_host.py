"""Stands in for captured decode steps on a CPU: what the host does around them can be tested there.

A token of a row is a row of the step, as in cuda_graphs.py, so sums must keep one order.
"""

from collections.abc import Sequence

import pytest
import torch

from deployments.engine.cuda_graphs import RowInputs
from deployments.engine.model_runner import ModelRunner


class HostGraphs:
    """Does what DecodeGraphs does, without kernels. What it says is undefined is wrong."""

    def __init__(self, decoder: ModelRunner) -> None:
        self._decoder = decoder

    def replay(self, rows: Sequence[RowInputs]) -> tuple[torch.Tensor, torch.Tensor]:
        newest = self._decoder._tokens
        at = torch.tensor([own.row for own in rows])
        logits, tokens = self._step(rows, newest[at])
        newest[at] = tokens
        return logits, tokens

    def replay_drafts(self, inputs: Sequence[RowInputs]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, tokens = self._step(inputs, torch.tensor([own.token for own in inputs]))
        self._decoder._tokens[torch.tensor([own.row for own in inputs])] = 7
        return logits, tokens

    def _step(
        self, inputs: Sequence[RowInputs], tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        decoder = self._decoder
        model, cache = decoder._model, decoder._cache
        batch = model.decode_batch(
            cache,
            tokens,
            [own.row for own in inputs],
            [own.position for own in inputs],
            [own.num_prompt_tokens for own in inputs],
        )
        lora = model.lora_batch(decoder.lora_pool, [own.slot for own in inputs])
        logits = model.logits(model.decode(cache, batch, lora), lora)
        for line, own in zip(logits, inputs, strict=True):
            if own.blocks_eos:
                line[sorted(decoder.info.eos_ids)] = -torch.inf
        return logits, logits.argmax(-1)


def captured(decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a decoder on a CPU step as one on a GPU does."""
    assert decoder.info.batch_invariant
    monkeypatch.setattr(decoder, "_graphs", HostGraphs(decoder))
    monkeypatch.setattr(decoder, "num_steps_ahead", 1)
    monkeypatch.setattr(decoder, "drafted_rows", 4)
    monkeypatch.setattr(decoder, "draft_tokens", 32)
