"""Run Llama-style models on a CPU with weights of eight or four bits, through one compiled step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.cpu import layout as at
from deployments.engine.cpu.layout import Step
from deployments.engine.cpu.products import PackedWeight, WeightMemory
from deployments.engine.cpu.step import compile_step, forward
from deployments.engine.cpu.thread_count import ThreadCount
from deployments.engine.cpu.threads import Threads
from deployments.engine.lora.layers import LoraLayer
from deployments.engine.lora.pool import LoraPool, SlotBatch
from deployments.engine.models.architectures import SHARED_ROPE
from deployments.engine.models.base import KvShape
from deployments.engine.models.stack import rope_table
from deployments.engine.models.weights import lora_modules, take_weight

_MOST_ROWS = 256  # tokens that go through the layers together


@dataclass(frozen=True, slots=True)
class CachePlaces:
    """Stand for the attention of a decode batch: where each row's keys begin, and its position."""

    positions: Sequence[int]
    starts: Sequence[int]


class CompiledLlama:
    """Implement Model (models/base.py). Takes the weights out of `model`.

    Products are of bytes, with one scale for each 64 inputs (products.py); the output layer keeps
    eight bits.
    Everything else is float32, but for keys and values in bfloat16. LoRA reads the inputs before
    they become bytes.

    Args:
        num_positions: positions of one answer, prompt included.
        num_threads: of a step, at most; may be lowered between two steps.
        bits: of the weights in the layers, 8 or 4.
        chooses_threads: whether it runs on fewer where that is faster.
    """

    can_split_prompts = True
    keeps_prompts_at_end = False
    is_invariant = True  # a row's bytes, sums and attention are its own

    def __init__(
        self,
        model: Any,
        num_positions: int,
        num_threads: int,
        *,
        bits: int = 8,
        chooses_threads: bool = False,
    ) -> None:
        config, inner = model.config, model.model
        self._eps = float(config.rms_norm_eps)
        head_dim: int = inner.layers[0].self_attn.head_dim
        self._scale = head_dim**-0.5
        self._embedding: torch.Tensor = inner.embed_tokens.weight.data
        head = model.lm_head
        self.vocab_size = len(head.weight)
        linear = [own for each in inner.layers for _, own in _projections(each)]
        shapes = [(own.weight.shape, bits) for own in linear]
        memory = WeightMemory([*shapes, (head.weight.shape, 8)])
        rope = rope_table(inner, SHARED_ROPE, torch.empty(1), num_positions)
        self._cos, self._sin = _floats(rope.cos), _floats(rope.sin)
        self._final_norm = _floats(inner.norm.weight.data)
        self._layers = [
            _Layer(f"model.layers.{i}", each, memory, bits) for i, each in enumerate(inner.layers)
        ]
        bias = None if head.bias is None else head.bias.data
        self._head = PackedWeight(head.weight.data, bias, memory)
        self.lora_layers = [adapted for layer in self._layers for adapted in layer.lora_layers]
        self.kv_shape = KvShape(
            len(self._layers), config.num_key_value_heads, head_dim, torch.bfloat16
        )
        self.device = torch.device("cpu")
        self._threads = Threads()
        self.num_threads = num_threads
        self._thread_count = ThreadCount(num_threads) if chooses_threads else None
        self._shape = self._numbers(config, head_dim)
        self._fields = np.zeros((len(self._layers), at.LAYER_FIELDS), np.int64)
        self._modules = np.zeros((len(self._layers), at.MODULES, at.MODULE_FIELDS), np.int64)
        for i, layer in enumerate(self._layers):
            self._fields[i, : at.KEYS_VALUES] = [norm.ctypes.data for norm in layer.norms]
            for module, weight in enumerate(layer.weights):
                self._modules[i, module, : at.NUMBER] = weight.fields
        numbers = np.arange(len(self.lora_layers)).reshape(-1, at.MODULES)
        self._modules[:, :, at.NUMBER] = numbers
        self._head_fields = np.zeros(at.MODULE_FIELDS, np.int64)
        self._head_fields[: at.NUMBER] = self._head.fields
        self._sync = np.zeros((len(self._layers) * at.PHASES + 2, 2), np.int64)
        self._arrays: dict[int, Any] = {}
        self._num_rows = 0
        self._buffers = np.zeros(at.NUM_BUFFERS, np.int64)
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None
        for number, array in (
            (at.COS, self._cos),
            (at.SIN, self._sin),
            (at.FINAL_NORM, self._final_norm),
        ):
            self._buffers[number] = array.ctypes.data
        self._make_room(16)
        most = max(num_threads, 8)
        self._room(at.SCRATCH, (most, self._shape[at.SCRATCH_SIZE]), np.float32)
        self._room(at.CURSORS, (most, at.CURSOR), np.int64)
        self._room(at.TAKEN, (len(self._sync), most), np.int64)
        compile_step()

    def lora_batch(
        self, pool: LoraPool, slots: Sequence[int], counts: Sequence[int] | None = None
    ) -> SlotBatch | None:
        return pool.slot_batch(slots, counts)

    def decode_batch(
        self,
        cache: KvCache,
        tokens: torch.Tensor,
        rows: Sequence[int],
        positions: Sequence[int],
        prompts: Sequence[int],
    ) -> DecodeBatch:
        places: Any = CachePlaces(positions, [cache.starts[row] for row in rows])
        return DecodeBatch(tokens, places)

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: SlotBatch | None) -> torch.Tensor:
        """Read the tokens of many prompts; returns the states (T, d) behind them."""
        starts = batch.where - batch.positions
        slots = torch.zeros_like(starts) if lora is None else torch.tensor(lora.slots)
        places = torch.stack([batch.positions, starts, slots], 1).numpy()
        pieces = [
            self._run(cache, batch.tokens[i : i + _MOST_ROWS], places[i : i + _MOST_ROWS], lora, 0)
            for i in range(0, len(places), _MOST_ROWS)
        ]
        return torch.cat(pieces)

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: SlotBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        attention: Any = batch.attention
        slots = [0] * len(batch.tokens) if lora is None else lora.slots
        places = np.array([attention.positions, attention.starts, slots]).T
        states = self._run(cache, batch.tokens, places, lora, len(batch.tokens))
        self._made = (states, self._logits(len(states)))
        return states

    def logits(self, hidden: torch.Tensor, lora: SlotBatch | None = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d), valid until the next step."""
        if self._made is not None and self._made[0] is hidden:
            return self._made[1]
        self._made = None
        rows = len(hidden)
        self._make_room(rows)
        self._array(at.STATES)[:rows, : hidden.shape[1]] = hidden.numpy()
        self._call(0, np.arange(rows), 0)
        return self._logits(rows)

    def _run(
        self, cache: KvCache, tokens: torch.Tensor, places: Any, lora: SlotBatch | None, emit: int
    ) -> torch.Tensor:
        """Take tokens through the layers; `emit` of them to their logits."""
        rows = len(tokens)
        self._made = None
        self._make_room(rows)
        self._set_lora(lora, places[:, 2])
        hidden = int(self._shape[at.HIDDEN])
        states = torch.from_numpy(self._array(at.STATES))[:rows, :hidden]
        states.copy_(self._embedding[tokens])
        self._array(at.ROWS)[:rows] = places
        self._fields[:, at.KEYS_VALUES] = [layer.data_ptr() for layer in cache.layers]
        chosen = self._thread_count if emit else None  # prompts have all lengths
        if chosen is not None:
            self.num_threads = chosen.begin(rows)
        started = time.perf_counter()
        self._call(rows, np.arange(emit), len(self._layers))
        if chosen is not None:
            chosen.end(time.perf_counter() - started)
        return states.clone()

    def _call(self, rows: int, emitting: Any, num_layers: int) -> None:
        self._sync.fill(0)
        self._array(at.TAKEN).fill(0)
        self._shape[at.THREADS] = self.num_threads
        step = Step(
            rows,
            len(emitting) > 0,
            self._eps,
            self._scale,
            self._sync.ctypes.data,
            self._shape,
            self._buffers,
        )
        arguments = (
            step,
            emitting,
            self._fields[:num_layers],
            self._modules[:num_layers],
            self._head_fields,
        )
        self._threads.run(lambda thread: forward(thread, *arguments), self.num_threads)

    def _logits(self, rows: int) -> torch.Tensor:
        return torch.from_numpy(self._array(at.LOGITS))[:rows, : self.vocab_size]

    def _array(self, number: int) -> Any:
        return self._arrays[number]

    def _set_lora(self, lora: SlotBatch | None, slots: Any) -> None:
        """Point at the table of adapters, put rows of one adapter side by side, and let the buffers
        hold the ranks. slots: int64 (rows,)"""
        self._shape[at.HAS_LORA] = lora is not None
        self._array(at.ORDER)[: len(slots)] = np.argsort(slots, kind="stable")
        if lora is None:
            return
        self._buffers[at.LORA] = lora.blocks.table.ctypes.data
        self._buffers[at.ADAPTED] = lora.blocks.adapted.ctypes.data
        if lora.blocks.rank > self._shape[at.LORA_RANK]:
            self._shape[at.LORA_RANK] = lora.blocks.rank
            self._room(at.SHRUNK, (self._num_rows, lora.blocks.rank), np.float32)

    def _make_room(self, rows: int) -> None:
        """Let the buffers hold this many rows."""
        if rows <= self._num_rows:
            return
        self._num_rows = rows
        shape = self._shape
        widths = {
            at.STATES: at.STATE_WIDTH,
            at.NORMED: at.STATE_WIDTH,
            at.QKV: at.QKV_WIDTH,
            at.ATTENDED: at.ATTENDED_WIDTH,
            at.GATES: at.INNER_WIDTH,
            at.GATED: at.INNER_WIDTH,
            at.LOGITS: at.VOCAB_WIDTH,
        }
        for number, width in widths.items():
            self._room(number, (rows, shape[width]), np.float32)
        self._room(at.BYTES, (rows, shape[at.WIDEST]), np.int8)
        self._room(at.SUMS, (rows, shape[at.GROUPS]), np.int32)
        self._room(at.ROW_SCALES, (rows, shape[at.GROUPS]), np.float32)
        self._room(at.HALF_SUMS, (rows, shape[at.GROUPS], 2), np.float32)
        self._room(at.SHRUNK, (rows, shape[at.LORA_RANK]), np.float32)
        self._room(at.ORDER, (rows,), np.int64)
        self._room(at.ROWS, (rows, at.ROW_FIELDS), np.int64)

    def _room(self, number: int, shape: Sequence[int], dtype: Any) -> None:
        self._arrays[number] = np.zeros(shape, dtype)
        self._buffers[number] = self._arrays[number].ctypes.data

    def _numbers(self, config: Any, head_dim: int) -> Any:
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        q, k = at.padded(heads * head_dim), at.padded(kv_heads * head_dim)
        hidden, inner = at.padded(config.hidden_size), at.padded(config.intermediate_size)
        shape = np.zeros(at.NUM_SHAPE, np.int64)
        numbers = {
            at.HIDDEN: config.hidden_size,
            at.STATE_WIDTH: hidden,
            at.HEADS: heads,
            at.KV_HEADS: kv_heads,
            at.HEAD_DIM: head_dim,
            at.Q_WIDTH: q,
            at.K_WIDTH: k,
            at.QKV_WIDTH: q + 2 * k,
            at.ATTENDED_WIDTH: q,
            at.INNER: config.intermediate_size,
            at.INNER_WIDTH: inner,
            at.VOCAB_WIDTH: at.padded(self.vocab_size),
            at.WIDEST: max(hidden, q, inner),
            at.GROUPS: max(hidden, q, inner) // at.GROUP,
            at.LORA_RANK: 8,
            at.LORA_MODULES: at.MODULES * config.num_hidden_layers,
            at.SCRATCH_SIZE: 4 * (len(self._cos) + 64),
        }
        for number, value in numbers.items():
            shape[number] = value
        return shape


class _Layer:
    def __init__(self, path: str, layer: Any, memory: WeightMemory, bits: int) -> None:
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self.norms = [_floats(norm.weight.data) for norm in norms]
        self.paths: list[str] = []
        self.weights: list[PackedWeight] = []
        self.lora_layers: list[LoraLayer] = []
        for name, linear in _projections(layer):
            own, weight = f"{path}.{name}", take_weight(linear)
            bias = None if linear.bias is None else linear.bias.data
            self.paths.append(own)
            self.weights.append(PackedWeight(weight, bias, memory, bits))
            self.lora_layers.append(
                LoraLayer(own, weight.shape[1], lora_modules([own], [len(weight)]))
            )


def _projections(layer: Any) -> list[tuple[str, Any]]:
    """Return the linear layers of a layer in the order of layout.py's modules."""
    names = [f"self_attn.{name}_proj" for name in "qkvo"]
    names += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return [(name, layer.get_submodule(name)) for name in names]


def _floats(values: torch.Tensor) -> Any:
    return np.ascontiguousarray(values.float().numpy())
