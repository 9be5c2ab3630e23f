"""Which tokens each row may pick next, found while the model computes its next step."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from deployments.engine.errors import EngineError, StructureFailed
from deployments.engine.host_memory import numbers_on, on_device, on_its_way
from deployments.engine.kernels.ops import mask_logits_
from deployments.engine.structured.grammar import GrammarCompiler

# For each byte of a mask the most that eight logits may be: anything where a token is allowed.
_MOST = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
    np.inf,
    -np.inf,
).astype(np.float32)


@dataclass(eq=False, slots=True)
class _Answer:
    row: int
    matcher: LLMatcher
    failed: str | None = None  # why it cannot go on


class GrammarMasks:
    """Keep a matcher for each row that asks. One thread calls it, besides its own.

    A thread of its own waits for the tokens that a step has picked and makes the masks of the next
    one, while the model computes it: llguidance lets go of Python's lock.
    """

    def __init__(
        self, compiler: GrammarCompiler, num_rows: int, vocab_size: int, device: torch.device
    ) -> None:
        self._compiler = compiler
        self._device, self._vocab_size = device, vocab_size
        self._answers: dict[int, _Answer] = {}
        # A GPU copies them without waiting, so from pinned memory: a row's bits change when the
        # step that reads them has picked its token.
        bits = torch.from_numpy(allocate_token_bitmask(num_rows, vocab_size))
        self._host_bits = bits.pin_memory() if device.type == "cuda" else bits
        self._bits = self._host_bits.numpy()
        self._most = np.empty((4 * self._bits.shape[1], 8), np.float32)  # of one row, on a CPU
        self._worker: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None
        self._making: dict[int, Future[None]] = {}  # of rows whose bits are not known to be made

    @property
    def is_on(self) -> bool:
        """Return whether a row asks."""
        return bool(self._answers)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Load what the first answer with a grammar needs on a GPU, for logits of this dtype; the
        tokenizer takes seconds for which Python runs nothing else."""
        self._compiler.tokenizer()
        logits = torch.zeros(1, self._vocab_size, dtype=dtype, device=self._device)
        self._apply_on_device(logits, [(0, 0)])

    def begin(self, row: int, grammar: str | None) -> None:
        self.free(row)
        if grammar is not None:
            matcher, bits = self._compiler.fresh_matcher(grammar)
            self._answers[row] = answer = _Answer(row, matcher)
            self._make([answer], functools.partial(self._begin, answer, bits))

    def free(self, row: int) -> None:
        self._making.pop(row, None)
        self._answers.pop(row, None)

    def reset(self) -> None:
        """Forget all rows, and what was on its way: a step failed."""
        self._answers, self._making = {}, {}

    def apply(self, logits: torch.Tensor, rows: Sequence[int]) -> dict[int, EngineError]:
        """Set the logits (B, V) of tokens that may not come next to -inf, in place. Returns the
        rows that cannot go on, and why."""
        asking = [(i, row) for i, row in enumerate(rows) if row in self._answers]
        if not asking:
            return {}
        for made in {self._making.pop(row) for _, row in asking if row in self._making}:
            made.result()
        if self._device.type == "cpu":
            for i, row in asking:
                self._apply_on_cpu(logits[i], self._bits[row])
        else:
            self._apply_on_device(logits, asking)
        failed = {row: self._answers[row].failed for _, row in asking}
        return {row: StructureFailed(why) for row, why in failed.items() if why is not None}

    def _apply_on_cpu(self, logits: torch.Tensor, bits: np.ndarray) -> None:
        """Set logits (V,) to -inf where a bit is 0; `masked_fill_` takes ten times as long."""
        np.take(_MOST, bits.view(np.uint8), axis=0, out=self._most, mode="clip")
        most = self._most.reshape(-1)[: len(logits)]
        if logits.dtype == torch.float32:
            np.minimum(logits.numpy(), most, out=logits.numpy())
        else:
            logits.clamp_(max=torch.from_numpy(most))

    def _apply_on_device(self, logits: torch.Tensor, asking: Sequence[tuple[int, int]]) -> None:
        """Do the same for rows of logits (B, V), each with its row of the bits."""
        places = [*zip(*asking, strict=True)]
        bits = on_device(self._host_bits[: max(places[1]) + 1], logits.device)
        mask_logits_(logits, bits, numbers_on(logits.device, places))

    def picked(self, rows: Sequence[int], tokens: torch.Tensor) -> None:
        """Take the tokens (B,) that were picked for `rows`."""
        at = [i for i, row in enumerate(rows) if row in self._answers]
        if not at:
            return
        chosen = tokens if len(at) == len(rows) else tokens[numbers_on(tokens.device, at)]
        copied = None
        if tokens.is_cuda:
            chosen = on_its_way(chosen)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        answers = [self._answers[rows[i]] for i in at]
        self._make(answers, functools.partial(self._advance, answers, chosen, copied))

    def _make(self, answers: Sequence[_Answer], make: Callable[[], None]) -> None:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")
            self._executor = LLExecutor(None if self._device.type == "cuda" else 1)
        made = self._worker.submit(make)
        self._making |= {answer.row: made for answer in answers}

    # --- on the thread of its own ---

    def _begin(self, answer: _Answer, bits: bytes) -> None:
        words = np.frombuffer(bits, self._bits.dtype)  # llguidance adds one to whole words
        self._bits[answer.row] = words[: self._bits.shape[1]]
        self._note(answer)

    def _advance(self, answers: Sequence[_Answer], tokens: torch.Tensor, copied: Any) -> None:
        """Take the tokens of answers, once a GPU has `copied` them, and make their next masks.

        A row may be another answer's by now. Its mask is made after this one, on this thread.
        """
        assert self._executor is not None, "no worker yet"
        if copied is not None:
            copied.synchronize()
        going = [answer for answer in answers if not answer.matcher.is_stopped()]
        if going:
            picked = dict(zip(answers, tokens.tolist(), strict=True))
            self._executor.consume_token_par([(each.matcher, picked[each]) for each in going])
            going = [answer for answer in going if not answer.matcher.is_stopped()]
        if going:
            asked = [(answer.matcher, answer.row) for answer in going]
            fill_next_token_bitmask_par(self._executor, asked, self._bits)
        for answer in answers:
            self._note(answer)

    def _note(self, answer: _Answer) -> None:
        if answer.matcher.is_error():
            answer.failed = answer.matcher.get_error().split("\n")[0]
        if answer.matcher.is_stopped():
            self._bits[answer.row] = 0
            for id_ in self._compiler.eos_ids:
                self._bits.view(np.uint32)[answer.row, id_ // 32] |= np.uint32(1 << id_ % 32)
