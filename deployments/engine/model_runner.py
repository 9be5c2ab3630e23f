"""Run the fast decoder: rows that join and leave at any step, each with its own adapter.

ModelRunner implements StepDecoder (decoder.py) for any Model (models/base.py). Between two steps it
keeps each row's adapter slot, how much of its cache is filled, its newest token and its sampling.
The newest token stays on the device and is fed back there.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from deployments.engine.adapter_loader import AdapterLoader, AdapterProbe
from deployments.engine.attention.kv_cache import KvCache, are_aligned
from deployments.engine.attention.memory_plan import KEPT_MIXTURES
from deployments.engine.attention.prefill import Chunk, Draft, last_states, prefill_inputs
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS, DecodeGraphs, PrefillGraphs, RowInputs
from deployments.engine.decoder import DecoderInfo
from deployments.engine.detokenizer import text_decoder, token_bytes
from deployments.engine.errors import EngineError
from deployments.engine.host_memory import numbers_on
from deployments.engine.kernels.backend import are_fused
from deployments.engine.lora.peft_reader import PeftReader
from deployments.engine.lora.pool import BASE_SLOT, LoraPool
from deployments.engine.model_loader import Pretrained
from deployments.engine.models.base import Model, TorchBatches
from deployments.engine.models.linear import HEAD
from deployments.engine.request import PrefillChunk, SchedulerOutput
from deployments.engine.sampling import DeviceTokens, Sampler
from deployments.engine.scheduling.drafts import agreeing
from deployments.engine.scores.scorer import Scorer
from deployments.engine.structured.grammar import GrammarCompiler
from deployments.engine.structured.masks import GrammarMasks
from deployments.engine.structured.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

SPARE_SLOTS = 2  # beside those of the adapters: the base's, and one for replacing an adapter
_PROMPTS_TOGETHER = 4  # on a GPU a prefill reads all weights, for one short prompt or for four
# Rows and tokens of a step in which some are guessed. On a CPU as many as a block of products has
# (cpu/layout.py); on a GPU a step reads the weights, for one token or for thirty-two.
_DRAFTED_ON_CPU = (2, 8)
_DRAFTED_ROWS = 4


@dataclass(slots=True)
class _RowState:
    """Hold the state of a row between two steps."""

    slot: int = BASE_SLOT
    length: int = 0  # positions filled in the cache
    num_reused: int = 0  # of these, at its beginning, without reading them
    num_prompt_tokens: int = 0


class ModelRunner(AdapterLoader):
    """Hold the model, its KV cache, its adapters and its rows. Not thread-safe.

    Args:
        base: `model` has taken its weights; tokenizer and special tokens are read from it.
        info: without adapters.
        capacities: positions of each row (attention/row_plan.py).
        reader: reads adapter folders of this base.
        max_adapters: adapters resident at the same time; one more slot is for replacing one.
        num_mixtures: of adapters that stay copied side by side.
        prefill_tokens: of the longest prefill that the scheduler may ask for.
    """

    def __init__(
        self,
        base: Pretrained,
        model: Model,
        *,
        info: DecoderInfo,
        capacities: Sequence[int],
        reader: PeftReader,
        max_adapters: int,
        num_mixtures: int = KEPT_MIXTURES,
        prefill_tokens: int = 0,
    ) -> None:
        self.tokenizer = base.tokenizer
        self.decode = text_decoder(base.tokenizer)
        on_cpu, in_torch = model.device.type == "cpu", isinstance(model, TorchBatches)
        # Torch's small bfloat16 products are slow on a CPU, and PEFT keeps adapters in float32 too.
        dtype = torch.float32 if on_cpu and in_torch else model.kv_shape.dtype
        pool = LoraPool(
            model.lora_layers,
            max_adapters + SPARE_SLOTS,
            dtype=dtype,
            device=model.device,
            in_blocks=on_cpu and not in_torch,
            kept_mixtures=num_mixtures,
        )
        super().__init__(pool, reader)
        self._model = model
        self._info = info
        # The token that an encoder-decoder's answer begins with; None: it continues the prompt.
        self._start_id = base.decoder_start_id if base.family == "seq2seq" else None
        self.capacities, self._prefill_tokens = tuple(capacities), prefill_tokens
        self.can_split_prompts = model.can_split_prompts
        # An encoder's states depend on the whole prompt, so none of them serves another one.
        self.can_reuse_prefixes = model.can_split_prompts and are_aligned(capacities)
        # On a GPU what a decode step writes is not, to the bit, what reading the same tokens gives.
        self.can_reuse_answers = on_cpu or not model.is_invariant
        self.num_steps_ahead = 0 if on_cpu else 1
        self.num_prompts_together = 1 if on_cpu else _PROMPTS_TOGETHER
        self.device, self.vocab_size = model.device, model.vocab_size
        self._cache = self._new_cache([*capacities, SCRATCH_POSITIONS])
        self._states = [_RowState() for _ in capacities]
        self._tokens = torch.zeros(len(capacities) + 1, dtype=torch.long, device=model.device)
        eos_ids = sorted(base.eos_ids)
        self._graphs: DecodeGraphs | None = None
        self._prompt_graphs: PrefillGraphs | None = None
        self.drafted_rows, self.draft_tokens = _DRAFTED_ON_CPU
        if are_fused(model.device.type):
            self._graphs = DecodeGraphs(model, self._cache, pool, self._tokens, eos_ids)
            self._prompt_graphs = PrefillGraphs(model, self._cache, pool)
            self.drafted_rows, self.draft_tokens = _DRAFTED_ROWS, DecodeGraphs.max_draft_tokens
        self.can_try_drafts = self._graphs is not None or _gives_the_same_in_one_step(model)
        self._untold: dict[int, int] = {}  # rows whose newest token only the host has
        graphs = (self._graphs, self._prompt_graphs)
        self._probe = AdapterProbe(
            model, pool, self._start_id, graphs, lambda size: self._new_cache([size])
        )
        self.token_bytes = token_bytes(base.tokenizer)
        self._sampler = Sampler(
            len(capacities), model.vocab_size, eos_ids, model.device, base.forced
        )
        self._scorer = Scorer()
        vocabulary = Vocabulary(base.tokenizer, model.vocab_size, base.eos_ids)
        self.grammars = GrammarCompiler(vocabulary)
        self._masks = GrammarMasks(self.grammars, len(capacities), model.vocab_size, model.device)
        self._failures: dict[int, EngineError] = {}

    @property
    def info(self) -> DecoderInfo:
        if self._info.adapters is not self.lora_pool.names:
            self._info = dataclasses.replace(self._info, adapters=self.lora_pool.names)
        return self._info

    @property
    def num_kv_bytes(self) -> int:
        return self._cache.num_bytes

    def warm_up(self) -> None:
        """Capture the CUDA graphs that the first requests of each size would capture otherwise, and
        read the longest prompts once, so that their memory is there before the first request.

        Raises:
            MemoryError: the GPU has less than was planned; says what to do.
        """
        if self._graphs is None or self._prompt_graphs is None:
            return
        try:
            with torch.inference_mode():
                self._graphs.warm_up()
                self._prompt_graphs.warm_up()
                self._read_longest()
                if "structure" not in self.info.refuses:
                    self._masks.warm_up(getattr(torch, self.info.dtype))
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                "the GPU has less free memory than when its rows were planned "
                f"({self._info.rows.get('reason')}): end what else runs on it, or set "
                f"engine.kv_memory_mib below {self.num_kv_bytes // 2**20} ({error})"
            ) from None

    def _read_longest(self) -> None:
        """Read as many tokens at once as a step may, with every resident adapter."""
        left, chunks = self._prefill_tokens, []
        for row, capacity in enumerate(self.capacities):
            if count := min(left, capacity):
                chunks.append(Draft(row, 0, (0,) * count))
                left -= count
        if not chunks:
            return
        names = [None, *sorted(self.lora_pool.names)]
        for chunk in chunks:
            self.set_adapter(chunk.row, names[-1 - chunk.row % len(names)])
        self._prefill(chunks)
        self.reset()

    def set_adapter(self, row: int, name: str | None) -> None:
        state = self._states[row]
        slot = self.lora_pool.acquire(name)
        self.lora_pool.release(state.slot)
        self._states[row] = _RowState(slot=slot)

    def generation(self, adapter: str | None) -> int:
        return self.lora_pool.generation(adapter)

    @torch.inference_mode()
    def reuse_prefix(self, row: int, source: int, num_tokens: int) -> None:
        if source != row:
            self._cache.copy(source, row, num_tokens)
        self._states[row].num_reused = num_tokens

    def free(self, row: int) -> None:
        self.lora_pool.release(self._states[row].slot)
        self._states[row] = _RowState()
        self._untold.pop(row, None)
        self._sampler.free(row)
        self._scorer.free(row)
        self._masks.free(row)

    def reset(self) -> None:
        for row in range(len(self._states)):
            self.free(row)
        self._failures = {}
        self._scorer.take()  # what the failed step scored is nobody's
        self._masks.reset()

    @torch.inference_mode()
    def step(self, scheduled: SchedulerOutput) -> DeviceTokens:
        emitting: list[int] = []
        picked = []
        rows = list(scheduled.decode)
        self._tell_tokens()
        for chunk in scheduled.prefill:
            self._begin_chunk(chunk)
        if scheduled.prefill:
            ended = [chunk.row for chunk in scheduled.prefill if chunk.is_last]
            states = self._prefill(scheduled.prefill)
            if self._scorer.is_on:
                self._score_prompts(states, scheduled.prefill)
            if self._model.keeps_prompts_at_end:
                rows += ended
            elif ended:
                last = last_states(states, scheduled.prefill)
                logits = self._model.logits(last, self._head_lora(ended))
                picked.append(self._pick(logits, ended))
                emitting += ended
        rows.sort()
        if rows:
            picked.append(self._decode(rows) if self._graphs is None else self._replay(rows))
            for row in rows:
                self._states[row].length += 1
            emitting += rows
        if not picked:
            return DeviceTokens((), None)
        failures, self._failures = self._failures, {}
        return DeviceTokens(tuple(emitting), torch.cat(picked), self._scorer.take(), failures)

    @torch.inference_mode()
    def step_drafts(self, lines: Mapping[int, Sequence[int]]) -> Mapping[int, list[int]]:
        drafts = [Draft(row, self._states[row].length, lines[row]) for row in sorted(lines)]
        for row in lines:  # what follows is newer
            self._untold.pop(row, None)
        if self._graphs is None:
            found = self._pick_drafts(drafts, self._draft_logits(drafts))
        else:
            found = self._replay_drafts(self._graphs, drafts)
        for row, tokens in found.items():
            self._states[row].length += len(tokens)
        return found

    def _draft_logits(self, drafts: Sequence[Draft]) -> torch.Tensor:
        """Return the logits (n, V) behind each token of the drafts, on a CPU."""
        of_token = [draft.row for draft in drafts for _ in draft.token_ids]
        if not self._model.keeps_prompts_at_end:
            return self._model.logits(self._prefill(drafts), self._head_lora(of_token))
        # What follows a prompt that an encoder read is written token by token, so each is a row.
        tokens = torch.tensor([token for draft in drafts for token in draft.token_ids])
        positions = [at for draft in drafts for at in range(draft.start, draft.stop)]
        return self._decoded_logits(of_token, tokens, positions)

    def _replay_drafts(self, graphs: DecodeGraphs, drafts: Sequence[Draft]) -> dict[int, list[int]]:
        """Do what `_draft_logits` and `_pick_drafts` do with a captured graph."""
        inputs = []
        picking = set()  # rows whose tokens depend on more than a graph knows
        for draft in drafts:
            for ahead, token in enumerate(draft.token_ids):
                inputs.append(self._row_inputs(draft.row, ahead, token))
                if self._needs_logits or not self._sampler.is_argmax([draft.row], ahead):
                    picking.add(draft.row)
        logits, largest = graphs.replay_drafts(inputs)
        # One wait for all of them: each token that is picked here is another one.
        known = largest.tolist() if len(picking) < len(drafts) else []
        found = self._pick_drafts(drafts, logits, known, picking)
        for row in found.keys() - picking:
            self._sampler.count([row], len(found[row]))
            self._untold[row] = found[row][-1]
        return found

    def _pick_drafts(
        self,
        drafts: Sequence[Draft],
        logits: torch.Tensor,
        known: Sequence[int] = (),
        picking: Collection[int] | None = None,
    ) -> dict[int, list[int]]:
        """Pick each row's tokens from logits (n, V) as step after step would.

        Args:
            known: the largest of each; of the rows `picking` (None: all) they are not the tokens.
        """

        def pick(row: int, at: int) -> int:
            if picking is not None and row not in picking:
                return known[at]
            return int(self._pick(logits[at : at + 1], [row]))

        return agreeing(drafts, pick)

    def _tell_tokens(self) -> None:
        """Give the device the newest tokens that only the host has."""
        if self._untold:
            told = numbers_on(self.device, [*self._untold.items()])
            self._tokens[told[:, 0]] = told[:, 1]
            self._untold = {}

    def _begin_chunk(self, chunk: PrefillChunk) -> None:
        state = self._states[chunk.row]
        if chunk.start == state.num_reused:
            prompt = chunk.request.prompt_ids
            begin = prompt if self._start_id is None else (self._start_id,)
            self._sampler.begin(chunk.row, chunk.request.sampling, begin)
            self._scorer.begin(chunk.row, chunk.request.sampling)
            self._masks.begin(chunk.row, chunk.request.sampling.grammar)
            state.num_prompt_tokens = len(prompt)
            if self._start_id is not None:
                self._tokens[chunk.row].fill_(self._start_id)
        if self._start_id is None:
            state.length = chunk.stop

    def _prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Return the states (T, d) behind the chunks' tokens, valid until the next prefill."""
        slots = [self._states[chunk.row].slot for chunk in chunks]
        at_end = self._model.keeps_prompts_at_end
        inputs = prefill_inputs(chunks, slots, self._cache, keeps_at_end=at_end)
        if self._prompt_graphs is not None and self._prompt_graphs.takes(inputs):
            return self._prompt_graphs.replay(inputs)
        counts = [chunk.stop - chunk.start for chunk in chunks]
        lora = self._model.lora_batch(self.lora_pool, slots, counts)
        batch = inputs.on(self.device, is_invariant=self._model.is_invariant)
        return self._model.prefill(self._cache, batch, lora)

    def _score_prompts(self, states: torch.Tensor, chunks: Sequence[PrefillChunk]) -> None:
        """Score prompts where asked for, given the states (T, d) behind the chunks' tokens."""
        sizes = [chunk.stop - chunk.start for chunk in chunks]
        for chunk, own in zip(chunks, torch.split(states[: sum(sizes)], sizes), strict=True):
            self._scorer.read(chunk, own, partial(self._logits_of, chunk.row))

    def _logits_of(self, row: int, states: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d) that are all of this row."""
        return self._model.logits(states, self._head_lora([row] * len(states)))

    def _head_lora(self, rows: Sequence[int]) -> Any:
        """Return the adapters of these rows for the output layer, which few adapters change."""
        if not self.lora_pool.adapts(HEAD):
            return None
        return self._model.lora_batch(self.lora_pool, [self._states[row].slot for row in rows])

    def _decode(self, rows: Sequence[int]) -> torch.Tensor:
        """Take these rows one step further and return their tokens (B,)."""
        tokens = self._tokens[numbers_on(self.device, rows)]
        logits = self._decoded_logits(rows, tokens, [self._states[row].length for row in rows])
        return self._pick(logits, rows)

    def _decoded_logits(
        self, rows: Sequence[int], tokens: torch.Tensor, positions: Sequence[int]
    ) -> torch.Tensor:
        """Write tokens (B,) at these positions of their rows; returns the logits (B, V) behind."""
        states = [self._states[row] for row in rows]
        prompts = [state.num_prompt_tokens for state in states]
        batch = self._model.decode_batch(self._cache, tokens, rows, positions, prompts)
        lora = self._model.lora_batch(self.lora_pool, [state.slot for state in states])
        return self._model.logits(self._model.decode(self._cache, batch, lora), lora)

    def _row_inputs(self, row: int, ahead: int = 0, token: int = 0) -> RowInputs:
        """Return what a captured step takes of a row's next token, or of one `ahead` of it."""
        state = self._states[row]
        blocks_eos = self._sampler.blocks_eos(row, ahead) and not self._needs_logits
        position = state.length + ahead
        return RowInputs(row, position, state.num_prompt_tokens, state.slot, blocks_eos, token)

    def _replay(self, rows: Sequence[int]) -> torch.Tensor:
        """Do what `_decode` does with a captured graph."""
        assert self._graphs is not None, "no graphs on this device"
        logits, tokens = self._graphs.replay([self._row_inputs(row) for row in rows])
        if not self._needs_logits and self._sampler.is_argmax(rows):
            self._sampler.count(rows)
            return tokens
        return self._pick(logits, rows)

    @property
    def _needs_logits(self) -> bool:
        """Return whether a row's token depends on more than a graph knows, or its logits are asked
        for as the model made them."""
        return self._scorer.is_on or self._masks.is_on

    def _pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Pick tokens (B,) from logits (B, V) and store them as the input of the next step."""
        found = self._scorer.logprobs(logits, rows) if self._scorer.is_on else None
        if self._masks.is_on:
            self._failures |= self._masks.apply(logits, rows)
        tokens = self._sampler.pick(logits, rows)
        if self._masks.is_on:
            self._masks.picked(rows, tokens)
        if found is not None:
            self._scorer.picked(found, rows, tokens)
        self._tokens[numbers_on(self.device, rows)] = tokens
        return tokens

    def _new_cache(self, capacities: Sequence[int]) -> KvCache:
        return self._model.kv_shape.new_cache(capacities, self._model.device)


def _gives_the_same_in_one_step(model: Model) -> bool:
    """Return whether several tokens of a row have, on a CPU, the same logits in one step: bfloat16
    of torch rounds by the number of rows, and its attention takes one token of an answer."""
    is_float32 = model.kv_shape.dtype == torch.float32
    return model.is_invariant or (is_float32 and not model.keeps_prompts_at_end)
