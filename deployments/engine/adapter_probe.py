"""Measure whether an adapter changes the model: its logits after a fixed probe against the base's.

A captured step runs the probe where there is one: kernels launched one by one would delay the
running answers by ten of their steps.
"""

from collections.abc import Callable

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache, TorchDecodeAttention
from deployments.engine.attention.prefill import PrefillInputs
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS, DecodeGraphs, PrefillGraphs
from deployments.engine.kernels.ops import Segment
from deployments.engine.lora.pool import BASE_SLOT, LoraPool
from deployments.engine.models.base import Model

NUM_TOKENS = SCRATCH_POSITIONS // 2  # so that it fits in the scratch row
# The same float32 step differs by up to 1e-6 of its largest logit from run to run: libraries choose
# their algorithm by alignment, and an adapter's columns are neighbours of other adapters'.
NOISE = 1e-5


class AdapterProbe:
    """Probe adapters between two steps, on the thread that runs them.

    Args:
        start_id: the token that an encoder-decoder's answer begins with; None for other models.
        graphs: of decode steps and of prompts, if the decoder has them.
        new_cache: makes a KV cache of one row with the given number of positions.
    """

    def __init__(
        self,
        model: Model,
        lora_pool: LoraPool,
        start_id: int | None,
        graphs: tuple[DecodeGraphs | None, PrefillGraphs | None],
        new_cache: Callable[[int], KvCache],
    ) -> None:
        self._model, self._lora_pool, self._start_id = model, lora_pool, start_id
        self._decode_graphs, self._prompt_graphs = graphs
        self._new_cache = new_cache
        self._base: torch.Tensor | None = None

    def effect(self, slot: int) -> float:
        """Return the largest difference from the base's logits, as a share of its largest logit.

        At most NOISE if the adapter does nothing; not finite if its logits are not.
        """
        if self._base is None:
            self._base = self._logits(BASE_SLOT)
        difference = (self._logits(slot) - self._base).abs().max()
        return float(difference / self._base.abs().max())

    def _logits(self, slot: int) -> torch.Tensor:
        """Return the logits (1, V) in float32."""
        if self._decode_graphs is None or self._prompt_graphs is None:
            return self._launched(slot)
        return self._replayed(slot, self._decode_graphs, self._prompt_graphs)

    def _launched(self, slot: int) -> torch.Tensor:
        """Run the probe uncaptured, in a new KV cache."""
        cache = self._new_cache(2 * NUM_TOKENS)
        inputs = self._inputs(0, slot)
        lora = self._lora_pool.torch_batch([slot], [NUM_TOKENS])
        prompt = inputs.on(self._model.device)
        hidden = self._model.prefill(cache, prompt, lora)[-1:]
        if self._start_id is not None:
            token = torch.tensor([self._start_id], device=self._model.device)
            batch = DecodeBatch(token, TorchDecodeAttention(cache, [0], [0], [NUM_TOKENS]))
            hidden = self._model.decode(cache, batch, self._lora_pool.torch_batch([slot]))
        return self._model.logits(hidden).float()

    def _replayed(self, slot: int, decode: DecodeGraphs, prompts: PrefillGraphs) -> torch.Tensor:
        """Run the probe by captured graphs, behind the padding in the scratch row."""
        states = prompts.replay(self._inputs(prompts.scratch_start, slot))
        if self._start_id is None:
            return self._model.logits(states[-1:]).float()
        logits = decode.replay_scratch(self._start_id, NUM_TOKENS, slot)
        return logits.to(torch.float32, copy=True)  # the next replay overwrites them

    def _inputs(self, row_start: int, slot: int) -> PrefillInputs:
        """Return the probe, to be cached at the end of a row of 2 * NUM_TOKENS positions."""
        begin = row_start + NUM_TOKENS
        numbers = torch.arange(NUM_TOKENS)
        lines = torch.stack(
            [
                (7 + 13 * numbers) % self._model.vocab_size,
                numbers,
                begin + numbers,
                torch.full_like(numbers, slot),
            ]
        )
        first_key = 0 if self._model.keeps_prompts_at_end else begin
        return PrefillInputs(lines, (Segment(0, NUM_TOKENS, 0, first_key, NUM_TOKENS),))
