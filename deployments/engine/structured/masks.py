"""Which tokens each row may pick next, found while the model computes its next step."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from deployments.engine.errors import EngineError, StructureFailed
from deployments.engine.host_memory import numbers_on, on_device, on_its_way
from deployments.engine.structured.grammar import GrammarCompiler

_Move = tuple[int, LLMatcher, int | None]  # a row, its matcher, and the token that it has picked
# For each byte of a mask the most that eight logits may be: anything where a token is allowed.
_MOST = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.inf,
    -np.inf,
).astype(np.float32)


class GrammarMasks:
    """Keep a matcher for each row that asks. One thread calls it, besides its own.

    A row's mask is made by a thread of its own (llguidance lets go of Python's lock), from when the
    row's token is known until the next step's logits are.
    """

    def __init__(
        self, compiler: GrammarCompiler, num_rows: int, vocab_size: int, device: torch.device
    ) -> None:
        self._compiler = compiler
        self._device = device
        self._matchers: dict[int, LLMatcher] = {}
        self._failed: dict[LLMatcher, str] = {}
        self._bits = allocate_token_bitmask(num_rows, vocab_size)
        self._most = np.empty((4 * self._bits.shape[1], 8), np.float32)  # of one row, on a CPU
        self._worker: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None
        self._making: list[Future[None]] = []
        self._unread: list[tuple[list[tuple[int, LLMatcher]], torch.Tensor, Any]] = []

    @property
    def is_on(self) -> bool:
        """Return whether a row asks."""
        return bool(self._matchers)

    def begin(self, row: int, grammar: str | None) -> None:
        self.free(row)
        if grammar is not None:
            self._matchers[row] = matcher = self._compiler.matcher(grammar)
            self._make([(row, matcher, None)])

    def free(self, row: int) -> None:
        matcher = self._matchers.pop(row, None)
        if matcher is not None:
            self._failed.pop(matcher, None)

    def reset(self) -> None:
        """Forget all rows, and what was on its way: a step failed."""
        for row in list(self._matchers):
            self.free(row)
        self._making, self._unread = [], []

    def apply(self, logits: torch.Tensor, rows: Sequence[int]) -> dict[int, EngineError]:
        """Set the logits (B, V) of tokens that may not come next to -inf, in place. Returns the
        rows that cannot go on, and why."""
        at = [i for i, row in enumerate(rows) if row in self._matchers]
        if not at:
            return {}
        self._read()
        making, self._making = self._making, []
        for made in making:
            made.result()
        if self._device.type == "cpu":
            for i in at:
                self._apply_on_cpu(logits[i], self._bits[rows[i]])
        else:
            self._apply_on_device(logits, at, [rows[i] for i in at])
        failed = {rows[i]: self._failed.get(self._matchers[rows[i]]) for i in at}
        return {row: StructureFailed(why) for row, why in failed.items() if why is not None}

    def _apply_on_cpu(self, logits: torch.Tensor, bits: np.ndarray) -> None:
        """Set logits (V,) to -inf where a bit is 0; `masked_fill_` takes five times as long."""
        np.take(_MOST, bits.view(np.uint8), axis=0, out=self._most, mode="clip")
        logits.clamp_(max=torch.from_numpy(self._most.reshape(-1)[: len(logits)]))

    def _apply_on_device(
        self, logits: torch.Tensor, at: Sequence[int], rows: Sequence[int]
    ) -> None:
        bits = on_device(torch.from_numpy(self._bits[list(rows)]), logits.device)
        shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
        allowed = ((bits[:, :, None] >> shifts) & 1).view(len(rows), -1)[:, : logits.shape[1]]
        index = numbers_on(logits.device, at)
        masked = logits.index_select(0, index).masked_fill_(allowed == 0, -torch.inf)
        logits.index_copy_(0, index, masked)

    def picked(self, rows: Sequence[int], tokens: torch.Tensor) -> None:
        """Take the tokens (B,) that were picked for `rows`."""
        at = [i for i, row in enumerate(rows) if row in self._matchers]
        if not at:
            return
        moves = [(rows[i], self._matchers[rows[i]]) for i in at]
        chosen = tokens[numbers_on(tokens.device, at)]
        if not tokens.is_cuda:
            self._advance_beside(moves, chosen)
            return
        on_host = on_its_way(chosen)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._unread.append((moves, on_host, copied))

    def _read(self) -> None:
        """Take the tokens of the step before, which a GPU has made by now or is about to."""
        unread, self._unread = self._unread, []
        for moves, tokens, copied in unread:
            copied.synchronize()
            self._advance_beside(moves, tokens)

    def _advance_beside(self, moves: Sequence[tuple[int, LLMatcher]], tokens: torch.Tensor) -> None:
        picked = zip(moves, tokens.tolist(), strict=True)
        # Where tokens arrive late, a row may be another request's by now.
        self._make([(r, m, token) for (r, m), token in picked if self._matchers.get(r) is m])

    def _make(self, moves: Sequence[_Move]) -> None:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")
            self._executor = LLExecutor(None if self._device.type == "cuda" else 1)
        self._making.append(self._worker.submit(self._advance, moves))

    # --- on the thread of its own ---

    def _advance(self, moves: Sequence[_Move]) -> None:
        assert self._executor is not None, "no worker yet"
        picked = [(m, token) for _, m, token in moves if token is not None and not m.is_stopped()]
        if picked:
            self._executor.consume_token_par(picked)
        going = [(matcher, row) for row, matcher, _ in moves if not matcher.is_stopped()]
        if going:
            fill_next_token_bitmask_par(self._executor, going, self._bits)
        for row, matcher, _ in moves:
            self._note(row, matcher)

    def _note(self, row: int, matcher: LLMatcher) -> None:
        if matcher.is_error():
            self._failed[matcher] = matcher.get_error().split("\n")[0]
        if matcher.is_stopped():
            self._bits[row] = 0
            for id_ in self._compiler.eos_ids:
                self._bits.view(np.uint32)[row, id_ // 32] |= np.uint32(1 << id_ % 32)
