"""The fast decoder: rows that join and leave at any step, each with its own adapter.

Implements StepDecoder (decoder.py) for any Model (network.py). It keeps what a row is between
two steps: its adapter's slot, how much of its memory is filled, its newest token, its sampling.
The newest token stays on the device and is fed back there.

The tokens of a step on their way from the device to the host.
"""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deployments.engine.adapter_probe import NOISE, AdapterProbe
from deployments.engine.attention.decode import DecodeBatch, TorchDecodeAttention
from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import prefill_inputs
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS, DecodeGraphs, PrefillGraphs, RowInputs
from deployments.engine.decoder import AdapterHasNoEffect, DecoderInfo
from deployments.engine.kernels.lora import are_fused
from deployments.engine.lora.peft_reader import PeftReader
from deployments.engine.lora.pool import BASE_SLOT, LoraPool, PackedLora
from deployments.engine.model_loader import Pretrained
from deployments.engine.models.base import Model
from deployments.engine.sampling import Sampler
from deployments.engine.scheduler import PrefillChunk, SchedulerOutput


class DeviceTokens:
    """Implements AsyncTokens (decoder.py) for `tokens` (B,) of `rows`; None: no tokens."""

    def __init__(self, rows: tuple[int, ...], tokens: torch.Tensor | None) -> None:
        self._rows = rows
        self._tokens = tokens
        self._copied: Any = None
        if tokens is not None and tokens.is_cuda:
            self._tokens = torch.empty_like(tokens, device="cpu", pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> Mapping[int, int]:
        if self._tokens is None:
            return {}
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._rows, self._tokens.tolist(), strict=True))


logger = logging.getLogger(__name__)

_PROMPTS_TOGETHER = 4  # on a GPU: a prefill reads all weights, whether for one short prompt or four


@dataclass(slots=True)
class _RowState:
    """What a row is between two steps."""

    slot: int = BASE_SLOT
    length: int = 0  # positions that its decoder has filled
    num_prompt_tokens: int = 0


class ModelRunner:
    """Not thread-safe: the engine's thread, or the loader's before the engine starts.

    Args:
        base: whose weights `network` has taken; tokenizer and special tokens are read from it.
        capacities: positions of each row (kv_cache.plan_rows).
        num_positions: of one answer at its longest; rows may be a little larger.
        reader: reads adapter folders of this base.
        max_adapters: adapters resident at the same time; one more slot is for replacing one.
        reason: why this decoder and this dtype, for /readyz.
    """

    def __init__(
        self,
        base: Pretrained,
        network: Model,
        *,
        capacities: Sequence[int],
        num_positions: int,
        reader: PeftReader,
        max_adapters: int,
        reason: str,
    ) -> None:
        self.tokenizer = base.tokenizer
        # Small bfloat16 products are slow on a CPU, and PEFT keeps adapters in float32 too.
        on_cpu = network.device.type == "cpu"
        dtype = torch.float32 if on_cpu else network.kv_shape.dtype
        self.bank = LoraPool(network.sites, max_adapters + 2, dtype=dtype, device=network.device)
        self._network = network
        self._num_positions = min(num_positions, max(capacities))
        self._reader = reader
        self._reason = reason
        self._eos_ids = base.eos_ids
        # What an encoder-decoder's answer begins with; None: the answer goes on from the prompt.
        self._start_id = base.decoder_start_id if base.family == "seq2seq" else None
        self._capacities = tuple(capacities)
        self._cache = self._new_cache([*capacities, SCRATCH_POSITIONS])
        self._states = [_RowState() for _ in capacities]
        self._tokens = torch.zeros(len(capacities) + 1, dtype=torch.long, device=network.device)
        self._graphs: DecodeGraphs | None = None
        self._prompt_graphs: PrefillGraphs | None = None
        if are_fused(network.device.type):
            self._graphs = DecodeGraphs(network, self._cache, self.bank, self._tokens)
            self._prompt_graphs = PrefillGraphs(network, self._cache, self.bank)
        graphs = (self._graphs, self._prompt_graphs)
        self._probe = AdapterProbe(
            network, self.bank, self._start_id, graphs, lambda size: self._new_cache([size])
        )
        self._sampler = Sampler(
            len(capacities), network.vocab_size, sorted(base.eos_ids), network.device
        )

    @property
    def info(self) -> DecoderInfo:
        return DecoderInfo(
            name="fast",
            reason=self._reason,
            device=str(self._network.device),
            dtype=str(self._network.kv_shape.dtype).removeprefix("torch."),
            num_positions=self._num_positions,
            eos_ids=self._eos_ids,
            adapters=self.bank.names,
        )

    @property
    def capacities(self) -> Sequence[int]:
        return self._capacities

    @property
    def can_split_prompts(self) -> bool:
        return self._network.can_split_prompts

    @property
    def num_steps_ahead(self) -> int:
        return 1 if self._network.device.type == "cuda" else 0

    @property
    def num_prompts_together(self) -> int:
        return _PROMPTS_TOGETHER if self._network.device.type == "cuda" else 1

    @property
    def num_kv_bytes(self) -> int:
        return self._cache.num_bytes

    @property
    def device(self) -> torch.device:
        return self._network.device

    @property
    def vocab_size(self) -> int:
        return self._network.vocab_size

    def warm_up(self) -> None:
        """Capture what would otherwise be captured by the first requests of each size."""
        if self._graphs is not None and self._prompt_graphs is not None:
            with torch.inference_mode():
                self._graphs.warm_up()
                self._prompt_graphs.warm_up()

    def set_adapter(self, row: int, name: str | None) -> None:
        state = self._states[row]
        slot = self.bank.acquire(name)
        self.bank.release(state.slot)
        self._states[row] = _RowState(slot=slot)

    def free(self, row: int) -> None:
        self.bank.release(self._states[row].slot)
        self._states[row] = _RowState()
        self._sampler.free(row)

    def reset(self) -> None:
        for row in range(len(self._states)):
            self.free(row)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @torch.inference_mode()
    def step(self, plan: SchedulerOutput) -> DeviceTokens:
        emitting: list[int] = []
        picked = []
        rows = list(plan.decode)
        for chunk in plan.prefill:
            self._begin_chunk(chunk)
        if plan.prefill:
            ended = [chunk.row for chunk in plan.prefill if chunk.is_last]
            states = self._prefill(plan.prefill)
            if self._network.keeps_prompts_at_end:
                rows += ended
            elif ended:
                last = _last_states(states, plan.prefill)
                picked.append(self._pick(self._network.logits(last), ended))
                emitting += ended
        rows.sort()
        if rows:
            picked.append(self._decode(rows) if self._graphs is None else self._replay(rows))
            emitting += rows
        if not picked:
            return DeviceTokens((), None)
        return DeviceTokens(tuple(emitting), torch.cat(picked))

    def load_adapter(self, name: str, directory: Path) -> None:
        """Read an adapter and make it resident under `name`, replacing an earlier version.

        Raises:
            EngineError: it is not supported, does not fit, or does not change the logits; an
                earlier version then stays.
        """
        self.install(name, self.read_adapter(directory))

    def read_adapter(self, directory: Path) -> PackedLora:
        """The first half of loading: files and PEFT. Any thread may call it while steps run."""
        return self.bank.pack(self._reader.read(directory))

    def num_host_bytes(self, weights: PackedLora) -> int:
        return weights.num_bytes

    @torch.inference_mode()
    def install(self, name: str, weights: PackedLora, *, probe: bool = True) -> None:
        """The second half of loading: between two steps. Rows in flight keep their version.

        Args:
            probe: False: these weights passed it before.
        """
        slot = self._probed_slot(name, weights) if probe else self.bank.place(name, weights)
        self.bank.assign(name, slot)

    def dry_run(self, name: str, weights: PackedLora) -> None:
        """Between two steps: raises what `install` would raise, and makes nothing resident."""
        self._probed_slot(name, weights)

    def evict(self, name: str) -> None:
        """Between two steps. Rows in flight keep it to their end; raises BankRefused."""
        self.bank.evict(name)

    @torch.inference_mode()
    def _probed_slot(self, name: str, weights: PackedLora) -> int:
        """A free slot that holds the weights, which change the logits."""
        slot = self.bank.place(name, weights)
        effect = self._probe.effect(slot)
        if not math.isfinite(effect):
            raise AdapterHasNoEffect(
                f"adapter '{name}' makes the logits infinite, or no numbers: train it again, or "
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

    def _begin_chunk(self, chunk: PrefillChunk) -> None:
        state = self._states[chunk.row]
        if chunk.start == 0:
            prompt = chunk.request.prompt_ids
            begin = prompt if self._start_id is None else (self._start_id,)
            self._sampler.begin(chunk.row, chunk.request.sampling, begin)
            state.num_prompt_tokens = len(prompt)
            if self._start_id is not None:
                self._tokens[chunk.row] = self._start_id
        if self._start_id is None:
            state.length = chunk.stop

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        """The states (T, d) behind the chunks' tokens, valid until the next prefill."""
        slots = [self._states[chunk.row].slot for chunk in chunks]
        at_end = self._network.keeps_prompts_at_end
        inputs = prefill_inputs(chunks, slots, self._cache, keeps_at_end=at_end)
        if self._prompt_graphs is not None and self._prompt_graphs.takes(inputs):
            return self._prompt_graphs.replay(inputs)
        route = self.bank.route(slots, [chunk.stop - chunk.start for chunk in chunks])
        return self._network.prefill(self._cache, inputs.on(self.device), route)

    def _decode(self, rows: Sequence[int]) -> torch.Tensor:
        """One step of these rows -> their tokens (B,)."""
        device = self._network.device
        states = [self._states[row] for row in rows]
        batch = DecodeBatch(
            self._tokens[torch.tensor(rows, device=device)],
            TorchDecodeAttention(
                self._cache,
                rows,
                [state.length for state in states],
                [state.num_prompt_tokens for state in states],
            ),
        )
        route = self.bank.route([state.slot for state in states])
        hidden = self._network.decode(self._cache, batch, route)
        for state in states:
            state.length += 1
        return self._pick(self._network.logits(hidden), rows)

    def _replay(self, rows: Sequence[int]) -> torch.Tensor:
        """As `_decode`, by a captured graph."""
        assert self._graphs is not None, "no graphs on this device"
        inputs = []
        for row in rows:
            state = self._states[row]
            inputs.append(RowInputs(row, state.length, state.num_prompt_tokens, state.slot))
            state.length += 1
        logits, tokens = self._graphs.replay(inputs)
        if self._sampler.is_argmax(rows):
            return tokens
        return self._pick(logits, rows)

    def _pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """logits (B, V) -> tokens (B,), which the rows' next steps begin with."""
        tokens = self._sampler.pick(logits, rows)
        self._tokens[torch.tensor(rows, device=self._network.device)] = tokens
        return tokens

    def _new_cache(self, capacities: Sequence[int]) -> KvCache:
        shape = self._network.kv_shape
        return KvCache(
            capacities,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype,
            device=self._network.device,
        )


def _last_states(states: torch.Tensor, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
    """Of the chunks that end their prompt: (n, d) of states (T, d)."""
    stops = itertools.accumulate(chunk.stop - chunk.start for chunk in chunks)
    last = [stop - 1 for stop, chunk in zip(stops, chunks, strict=True) if chunk.is_last]
    return states[torch.tensor(last, device=states.device)]
