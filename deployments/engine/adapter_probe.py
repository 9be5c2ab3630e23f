"""Does an adapter change what the model says? Its logits after a fixed probe against the base's.

A captured step serves the probe where there is one: launched one by one, its kernels would hold up
the answers that run for ten steps of theirs.
"""

from collections.abc import Callable

import torch

from deployments.engine.attention.decode import DecodeBatch, TorchDecodeAttention
from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import PrefillInputs
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS, DecodeGraphs, PrefillGraphs
from deployments.engine.kernels.attention import Segment
from deployments.engine.lora.pool import BASE_SLOT, LoraPool
from deployments.engine.models.base import Model

NUM_TOKENS = SCRATCH_POSITIONS // 2  # so that it has room in the scratch row
# The same float32 step differs by up to 1e-6 of its largest logit from run to run: libraries choose
# their ways by where the memory lies, and an adapter's columns stand beside others'.
NOISE = 1e-5


class AdapterProbe:
    """Between two steps, on the thread that runs them.

    Args:
        start_id: what an encoder-decoder's answer begins with; None: it is none.
        graphs: of decode steps and of prompts, if the decoder has them.
        new_cache: a memory of one row with so many positions.
    """

    def __init__(
        self,
        network: Model,
        bank: LoraPool,
        start_id: int | None,
        graphs: tuple[DecodeGraphs | None, PrefillGraphs | None],
        new_cache: Callable[[int], KvCache],
    ) -> None:
        self._network, self._bank, self._start_id = network, bank, start_id
        self._decode_graphs, self._prompt_graphs = graphs
        self._new_cache = new_cache
        self._base: torch.Tensor | None = None

    def effect(self, slot: int) -> float:
        """The largest difference from the base model's logits, as a share of the largest of these.

        Not above NOISE: the adapter does nothing. Not finite: its logits are not.
        """
        if self._base is None:
            self._base = self._logits(BASE_SLOT)
        difference = (self._logits(slot) - self._base).abs().max()
        return float(difference / self._base.abs().max())

    def _logits(self, slot: int) -> torch.Tensor:
        """(1, V) in float32."""
        if self._decode_graphs is None or self._prompt_graphs is None:
            return self._launched(slot)
        return self._replayed(slot, self._decode_graphs, self._prompt_graphs)

    def _launched(self, slot: int) -> torch.Tensor:
        """In a memory of its own."""
        cache = self._new_cache(2 * NUM_TOKENS)
        inputs = self._inputs(0, slot)
        route = self._bank.route([slot], [NUM_TOKENS])
        prompt = inputs.on(self._network.device)
        hidden = self._network.prefill(cache, prompt, route)[-1:]
        if self._start_id is not None:
            token = torch.tensor([self._start_id], device=self._network.device)
            batch = DecodeBatch(token, TorchDecodeAttention(cache, [0], [0], [NUM_TOKENS]))
            hidden = self._network.decode(cache, batch, self._bank.route([slot]))
        return self._network.logits(hidden).float()

    def _replayed(self, slot: int, decode: DecodeGraphs, prompts: PrefillGraphs) -> torch.Tensor:
        """The same in the scratch row: idle places write to its first position only, and no place
        of a decode step for one row is idle."""
        states = prompts.replay(self._inputs(prompts.scratch_start, slot))
        if self._start_id is None:
            return self._network.logits(states[-1:]).float()
        logits = decode.replay_scratch(self._start_id, NUM_TOKENS, slot)
        return logits.to(torch.float32, copy=True)  # the next replay writes over them

    def _inputs(self, row_start: int, slot: int) -> PrefillInputs:
        """The probe at the end of a row of 2 * NUM_TOKENS positions."""
        begin = row_start + NUM_TOKENS
        numbers = torch.arange(NUM_TOKENS)
        lines = torch.stack(
            [
                (7 + 13 * numbers) % self._network.vocab_size,
                numbers,
                begin + numbers,
                torch.full_like(numbers, slot),
            ]
        )
        first_key = 0 if self._network.keeps_prompts_at_end else begin
        return PrefillInputs(lines, (Segment(0, NUM_TOKENS, 0, first_key, NUM_TOKENS),))
