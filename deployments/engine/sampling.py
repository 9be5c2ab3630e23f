"""Pick one token for each row, on the device: greedy, or temperature, top-k, top-p, penalties.

draw.py draws those that are not greedy.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from deployments.engine.draw import draw, uniform
from deployments.engine.errors import EngineError
from deployments.engine.host_memory import numbers_on, on_device, on_its_way, set_at
from deployments.engine.request import ForcedTokens, SamplingParams, TokenScore
from deployments.engine.scores.scorer import Scored

_NOTHING_FORCED = ForcedTokens()


@dataclass(slots=True)
class _Row:
    params: SamplingParams
    seed: int
    num_context: int
    num_picked: int = 0


class Sampler:
    """Hold the sampling state of all rows and pick their tokens.

    Args:
        eos_ids: tokens that end an answer, not picked before `min_tokens`.
        forced: tokens that are picked whatever the logits are.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        eos_ids: Sequence[int],
        device: torch.device,
        forced: ForcedTokens = _NOTHING_FORCED,
    ) -> None:
        self._rows: dict[int, _Row] = {}
        self._eos_ids = list(eos_ids)
        self._forced = forced
        self._device = device
        self._shape = (num_rows, vocab_size)
        self._seen: torch.Tensor | None = None  # (rows, V) bool, made for the first penalty
        self._history: dict[int, torch.Tensor] = {}  # of rows with no_repeat_ngram_size: (T,) ids

    def begin(self, row: int, params: SamplingParams, context: Sequence[int]) -> None:
        """Begin a row; `context` are the tokens that count as said before the answer, in order."""
        seed = params.seed if params.seed is not None else random.getrandbits(62)
        self._rows[row] = _Row(params, seed, len(context))
        if params.no_repeat_ngram_size:
            history = torch.zeros(len(context) + params.num_steps, dtype=torch.long)
            history[: len(context)] = torch.tensor(list(context), dtype=torch.long)
            self._history[row] = on_device(history, self._device)
        if params.repetition_penalty != 1:
            if self._seen is None:
                self._seen = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._seen[row].zero_()
            said = torch.tensor(list(set(context)), dtype=torch.long)
            self._seen[row].index_fill_(0, on_device(said, self._device), True)

    def free(self, row: int) -> None:
        self._rows.pop(row, None)
        self._history.pop(row, None)

    def is_argmax(self, rows: Sequence[int], ahead: int = 0) -> bool:
        """Return whether `pick` would take the largest logit of each of these rows, apart from the
        end-of-sequence tokens where `blocks_eos` is true; `ahead`: after so many tokens more."""
        params = [self._rows[row].params for row in rows]
        is_free = all(self._forced_token(row, ahead) is None for row in rows)
        return is_free and all(p.is_greedy and not p.has_penalty for p in params)

    def _forced_token(self, row: int, ahead: int = 0) -> int | None:
        """Return the token that the row's next one must be, if there is one."""
        state = self._rows[row]
        is_last = state.num_picked + ahead == state.params.max_tokens - 1
        if self._forced.last is not None and is_last and state.params.grammar is None:
            return self._forced.last
        return self._forced.first if state.num_picked + ahead == 0 else None

    def blocks_eos(self, row: int, ahead: int = 0) -> bool:
        """Return whether the row's next token, or the one `ahead` tokens later, may not end its
        answer yet."""
        state = self._rows[row]
        return state.num_picked + ahead < state.params.min_tokens

    def count(self, rows: Sequence[int], num_tokens: int = 1) -> None:
        """Count tokens of each row that were picked elsewhere, without a penalty."""
        for row in rows:
            self._rows[row].num_picked += num_tokens

    def pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return the next tokens (B,) of `rows`, given their logits (B, V), which may change."""
        states = [self._rows[row] for row in rows]
        self._block_eos(logits, rows)
        tokens = _largest(logits)
        special = [i for i, row in enumerate(rows) if not self.is_argmax([row])]
        if special:
            index = numbers_on(self._device, special)
            chosen = [states[i] for i in special]
            scores = logits.index_select(0, index).float()
            scores = self._penalised(scores, chosen, [rows[i] for i in special])
            picked = scores.argmax(-1)
            if any(not state.params.is_greedy for state in chosen):
                greedy = [state.params.is_greedy for state in chosen]
                numbers = [uniform(state.seed, state.num_picked) for state in chosen]
                drawn = draw(scores, [state.params for state in chosen], numbers)
                picked = torch.where(numbers_on(self._device, greedy), picked, drawn)
            forced = [self._forced_token(rows[i]) for i in special]
            if any(token is not None for token in forced):
                kept = numbers_on(self._device, [-1 if t is None else t for t in forced])
                picked = torch.where(kept < 0, picked, kept)
            tokens = tokens.index_copy(0, index, picked)
        self._count(states, rows, tokens)
        return tokens

    def _penalised(
        self, scores: torch.Tensor, states: Sequence[_Row], rows: Sequence[int]
    ) -> torch.Tensor:
        """Apply penalties as transformers does. (B, V)"""
        penalties = [state.params.repetition_penalty for state in states]
        if self._seen is not None and any(penalty != 1 for penalty in penalties):
            penalty = numbers_on(self._device, penalties)[:, None]
            lowered = torch.where(scores < 0, scores * penalty, scores / penalty)
            seen = self._seen[numbers_on(self._device, rows)] & (penalty != 1)
            scores = torch.where(seen, lowered, scores)
        for i, (state, row) in enumerate(zip(states, rows, strict=True)):
            if state.params.no_repeat_ngram_size:
                self._ban_repetitions(scores[i], state, row)
        return scores

    def _ban_repetitions(self, scores: torch.Tensor, state: _Row, row: int) -> None:
        """Set to -inf, in `scores` (V,), what would end a sequence of n tokens that was there."""
        size = state.params.no_repeat_ngram_size
        said = self._history[row][: state.num_context + state.num_picked]
        if len(said) < size:
            return
        sequences = said.unfold(0, size, 1)  # (N, n)
        is_repeated = (sequences[:, :-1] == said[len(said) - size + 1 :]).all(dim=1)
        limit = torch.where(is_repeated, -torch.inf, torch.inf).to(scores.dtype)
        scores.scatter_reduce_(0, sequences[:, -1], limit, "amin")

    def _block_eos(self, logits: torch.Tensor, rows: Sequence[int]) -> None:
        """Set the end-of-sequence logits of rows below their minimum length to -inf, in place."""
        blocked = [i for i, row in enumerate(rows) if self.blocks_eos(row)]
        if blocked:
            at = numbers_on(self._device, blocked)[:, None]
            set_at(logits, (at, numbers_on(self._device, self._eos_ids)), -torch.inf)

    def _count(self, states: Sequence[_Row], rows: Sequence[int], tokens: torch.Tensor) -> None:
        penalised = []
        for i, state in enumerate(states):
            if state.params.no_repeat_ngram_size:
                self._history[rows[i]][state.num_context + state.num_picked] = tokens[i]
            state.num_picked += 1
            if state.params.repetition_penalty != 1:
                penalised.append(i)
        if penalised and self._seen is not None:
            index = numbers_on(self._device, penalised)
            at = numbers_on(self._device, [rows[i] for i in penalised])
            set_at(self._seen, (at, tokens[index]), True)


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """Return where each row (B, V) is largest. NumPy takes a tenth of torch's time on a CPU."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


class DeviceTokens:
    """Implement AsyncTokens (decoder.py) for `tokens` (B,) of `rows`; None: no tokens.

    Args:
        scored: what was scored for the rows that ask.
        failures: rows that cannot go on.
    """

    def __init__(
        self,
        rows: tuple[int, ...],
        tokens: torch.Tensor | None,
        scored: Sequence[Scored] = (),
        failures: Mapping[int, EngineError] = MappingProxyType({}),
    ) -> None:
        self.failures = failures
        self.scores: dict[int, list[TokenScore]] = {}
        self._rows = rows
        self._tokens = tokens
        self._scored = scored
        self._copied: Any = None
        if tokens is not None and tokens.is_cuda:
            self._tokens = on_its_way(tokens)
            self._scored = [each.moved(on_its_way) for each in scored]
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> Mapping[int, int]:
        if self._tokens is None:
            return {}
        if self._copied is not None:
            self._copied.synchronize()
        for each in self._scored:
            each.add_to(self.scores)
        self._scored = ()
        return dict(zip(self._rows, self._tokens.tolist(), strict=True))
