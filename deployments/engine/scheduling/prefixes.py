"""Know which rows hold the keys and values of which tokens, so that a shared prefix is read once.

Pure Python. A row keeps what it holds after its answer has ended, until another answer needs the
row. A prompt that begins with the same tokens, for the same weights and the same tenant, goes on
behind them: in that row, or in a copy of its first positions. What is compared is the tokens
themselves, so nothing is shared by accident.
"""

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from deployments.engine.request import Prefix, Request, SequenceState

# Fewer are read again: at 16, a copied prefix took 0.7 to 0.8 of reading it (docs/engine.md).
MIN_TOKENS = 16
_INT = "q"
_WIDTH = array(_INT).itemsize

Identity = tuple[int, str | None]  # whose prefix it is: generation of the weights, and tenant


@dataclass(slots=True)
class _Entry:
    """Hold what a row holds. known: the ids of the sequence's tokens, as bytes."""

    identity: Identity
    sequence: SequenceState
    known: bytearray

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.sequence.request.prompt_ids)

    def learn(self) -> None:
        """Take in the answer's tokens that came since the last call."""
        answer, num_known = self.sequence.answer, len(self.known) // _WIDTH
        if num_known < self.num_prompt_tokens + len(answer):
            self.known += _packed(answer[num_known - self.num_prompt_tokens :])

    @property
    def num_written(self) -> int:
        """Return the positions that the steps so far write: the newest token has none yet."""
        sequence = self.sequence
        return sequence.num_prefilled + max(0, sequence.num_scheduled - 1)


class PrefixCache:
    """Hold what each row holds, the least recently used first.

    Args:
        generation: adapter -> a number that no other weights have or had; None is the base model.
        reuses_answers: whether a prefix may reach into what decode steps wrote.
    """

    def __init__(
        self, generation: Callable[[str | None], int], *, reuses_answers: bool = True
    ) -> None:
        self._generation = generation
        self._reuses_answers = reuses_answers
        self._entries: dict[int, _Entry] = {}

    def find(
        self, request: Request, reading: Mapping[int, int], slow: Collection[int | None] = ()
    ) -> tuple[Prefix | None, int]:
        """Return the longest prefix of a prompt that a row holds, if it is worth it, and how many
        tokens of it the rows whose prompts are being read will hold.

        The prompt's last token is never part of it: reading it gives the first token.

        Args:
            reading: row -> the positions that it held before this step, where the step reads more.
            slow: rows whose prompts take too long to be waited for.
        """
        wanted, identity = _packed(request.prompt_ids), self._identity(request)
        limit, best, coming = len(request.prompt_ids) - 1, Prefix(-1, MIN_TOKENS - 1), 0
        for row, entry in self._entries.items():
            needed = (best.num_tokens + 1) * _WIDTH
            if entry.identity != identity or best.num_tokens >= limit:
                continue
            entry.learn()
            if not entry.known.startswith(wanted[:needed]):
                continue
            shared = min(limit, _num_common(wanted, entry.known))
            if not self._reuses_answers:
                shared = min(shared, entry.num_prompt_tokens)
            held = min(shared, reading.get(row, entry.num_written))
            if held > best.num_tokens:
                best = Prefix(row, held)
            if entry.sequence.holds_row and row not in slow:
                coming = max(coming, min(shared, entry.num_prompt_tokens))
        return (None if best.row < 0 else best), coming

    def place(self, rows: Sequence[int], prefix: Prefix | None) -> int:
        """Return which of these free rows a sequence gets: that of its prefix if hardly more than
        the prefix is lost, else the one that was not used for the longest time."""
        if prefix is not None and prefix.row in rows:
            num_lost = self._entries[prefix.row].num_prompt_tokens - prefix.num_tokens
            if num_lost < MIN_TOKENS:
                return prefix.row
        age = {row: number for number, row in enumerate(self._entries)}
        return min(rows, key=lambda row: (age.get(row, -1), row))

    def begin(self, row: int, sequence: SequenceState) -> None:
        """Note that a sequence has the row from now on; what was there is lost."""
        if sequence.prefix is not None:
            self.touch(sequence.prefix.row)
        self._entries.pop(row, None)
        request = sequence.request
        known = bytearray(_packed(request.prompt_ids))
        self._entries[row] = _Entry(self._identity(request), sequence, known)

    def touch(self, row: int) -> None:
        """Note that the row was used now."""
        if row in self._entries:
            self._entries[row] = self._entries.pop(row)

    def clear(self) -> None:
        """Forget everything: a step failed, and nobody knows what the rows hold."""
        self._entries.clear()

    def _identity(self, request: Request) -> Identity:
        return self._generation(request.adapter), request.tenant


def _packed(token_ids: Sequence[int]) -> bytes:
    return array(_INT, token_ids).tobytes()


def _num_common(a: bytes, b: bytearray) -> int:
    """Return how many tokens the two begin with in common."""
    low, high = 0, min(len(a), len(b)) // _WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        if a[low * _WIDTH : middle * _WIDTH] == b[low * _WIDTH : middle * _WIDTH]:
            low = middle
        else:
            high = middle - 1
    return low
