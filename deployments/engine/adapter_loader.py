"""Load adapters into the pool, each after a probe: do the logits differ from the base's?

A captured step runs the probe where there is one: kernels launched one by one would delay the
running answers by ten of their steps.
"""

import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import PrefillInputs
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS, DecodeGraphs, PrefillGraphs
from deployments.engine.errors import AdapterHasNoEffect
from deployments.engine.host_memory import numbers_on
from deployments.engine.kernels.ops import Segment
from deployments.engine.lora.peft_reader import PeftReader
from deployments.engine.lora.pool import BASE_SLOT, LoraPool
from deployments.engine.lora.stacks import PackedLora
from deployments.engine.models.base import Model
from deployments.engine.models.embedding import Embedding

logger = logging.getLogger(__name__)

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

    def effect(self, slot: int, last: int | None = None) -> float:
        """Return the largest difference from the base's logits, as a share of its largest logit.

        At most NOISE if the adapter does nothing; not finite if its logits are not.

        Args:
            last: the probe's last token, for an adapter that may change single tokens alone.
        """
        base = self._base if last is None else self._logits(BASE_SLOT, last)
        if base is None:
            base = self._base = self._logits(BASE_SLOT)
        difference = (self._logits(slot, last) - base).abs().max()
        return float(difference / base.abs().max())

    def most_embedded(self, weights: PackedLora) -> int | None:
        """Return the token whose embedding an adapter changes most; None if it changes none's."""
        ends = {own.base.path for own in self._model.lora_layers if isinstance(own.base, Embedding)}
        pieces = iter(weights.pieces())
        for path, rank, inner, _, magnitudes in weights.shapes:
            a, *_ = itertools.islice(pieces, 3 if magnitudes else 2)
            if path in ends:
                return int(a.view(rank, inner).float().abs().sum(0).argmax())
        return None

    def _logits(self, slot: int, last: int | None = None) -> torch.Tensor:
        """Return the logits (1, V) in float32."""
        if self._decode_graphs is None or self._prompt_graphs is None:
            return self._launched(slot, last)
        return self._replayed(slot, self._decode_graphs, self._prompt_graphs, last)

    def _launched(self, slot: int, last: int | None = None) -> torch.Tensor:
        """Run the probe uncaptured, in a new KV cache."""
        cache = self._new_cache(2 * NUM_TOKENS)
        inputs = self._inputs(0, slot, last)
        lora = self._model.lora_batch(self._lora_pool, [slot], [NUM_TOKENS])
        prompt = inputs.on(self._model.device, is_invariant=self._model.is_invariant)
        hidden = self._model.prefill(cache, prompt, lora)[-1:]
        if self._start_id is not None:
            token = numbers_on(self._model.device, [self._start_id])
            batch = self._model.decode_batch(cache, token, [0], [0], [NUM_TOKENS])
            one = self._model.lora_batch(self._lora_pool, [slot])
            hidden = self._model.decode(cache, batch, one)
        one = self._model.lora_batch(self._lora_pool, [slot])
        # The next step may overwrite them.
        return self._model.logits(hidden, one).to(torch.float32, copy=True)

    def _replayed(
        self, slot: int, decode: DecodeGraphs, prompts: PrefillGraphs, last: int | None
    ) -> torch.Tensor:
        """Run the probe by captured graphs, behind the padding in the scratch row."""
        states = prompts.replay(self._inputs(prompts.scratch_start, slot, last))
        if self._start_id is None:
            one = self._model.lora_batch(self._lora_pool, [slot])
            return self._model.logits(states[-1:], one).float()
        logits = decode.replay_scratch(self._start_id, NUM_TOKENS, slot)
        return logits.to(torch.float32, copy=True)  # the next replay overwrites them

    def _inputs(self, row_start: int, slot: int, last: int | None) -> PrefillInputs:
        """Return the probe, to be cached at the end of a row of 2 * NUM_TOKENS positions."""
        begin = row_start + NUM_TOKENS
        numbers = torch.arange(NUM_TOKENS)
        tokens = (7 + 13 * numbers) % self._model.vocab_size
        if last is not None:
            tokens[-1] = last
        lines = torch.stack([tokens, numbers, begin + numbers, torch.full_like(numbers, slot)])
        first_key = 0 if self._model.keeps_prompts_at_end else begin
        return PrefillInputs(lines, (Segment(0, NUM_TOKENS, 0, first_key, NUM_TOKENS),))


class AdapterLoader:
    """Load and evict adapters, for a decoder that sets `_probe` once it can run steps."""

    _probe: AdapterProbe

    def __init__(self, pool: LoraPool, reader: PeftReader) -> None:
        self.lora_pool = pool
        self._reader = reader

    def load_adapter(self, name: str, directory: Path) -> None:
        """Read an adapter and make it resident under `name`, replacing an earlier version.

        Raises:
            EngineError: it is not supported, does not fit, or does not change the logits. An
                earlier version then stays.
        """
        self.install(name, self.read_adapter(directory))

    def read_adapter(self, directory: Path) -> PackedLora:
        """Do the first half of loading: files and PEFT. Any thread may call it while steps run."""
        return self.lora_pool.pack(self._reader.read(directory))

    def num_host_bytes(self, weights: PackedLora) -> int:
        return weights.num_bytes

    @torch.inference_mode()
    def install(self, name: str, weights: PackedLora, *, probe: bool = True) -> None:
        """Do the second half of loading, between two steps. Rows in flight keep their version.

        Raises what `load_adapter` raises. `probe` is False if these weights passed it before.
        """
        slot = (
            self._probed_slot(name, weights) if probe else self.lora_pool.load_slot(name, weights)
        )
        self.lora_pool.activate(name, slot)

    def dry_run(self, name: str, weights: PackedLora) -> None:
        """Raise what `install` would raise, and make nothing resident. Between two steps."""
        self._probed_slot(name, weights)

    def evict(self, name: str) -> None:
        """Forget an adapter, between two steps; raises LoraPoolError if it is not resident."""
        self.lora_pool.evict(name)

    @torch.inference_mode()
    def _probed_slot(self, name: str, weights: PackedLora) -> int:
        """Load the weights into a free slot, check that they change the logits, return the slot."""
        slot = self.lora_pool.load_slot(name, weights)
        effect = self._probe.effect(slot, self._probe.most_embedded(weights))
        if not math.isfinite(effect):
            raise AdapterHasNoEffect(
                f"adapter '{name}' makes the logits infinite or NaN: train it again, or "
                "disable it in the catalogue"
            )
        if effect <= NOISE:
            raise AdapterHasNoEffect(
                f"adapter '{name}' does not change the base model's logits (by {effect:.1e} of the "
                f"largest; above {NOISE:g} is expected): train it again, or disable it in the "
                "catalogue"
            )
        logger.info("adapter %s fits; it moves the logits by %.3g of the largest", name, effect)
        return slot
