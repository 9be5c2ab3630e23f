"""Guess an answer's next tokens from its prompt: where it quotes, several come from one step.

Pure Python. What followed the answer's last tokens when they came before, in the prompt or in the
answer, is proposed; the decoder picks each token as ever and keeps the guesses that agree, so the
answer stays the same (prompt-lookup decoding; Saxena 2023). A step with a few positions of one row
costs little more than with one, as long as few rows run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from deployments.engine.decoder import DraftDecoder
from deployments.engine.request import Request, SequenceState

_NGRAM = 3  # tokens that must have come before
_FEW = 7  # tokens of a guess, or twice as many as were right in the last one
# A guess of seven costs less than half a step (docs/engine.md); that many must be right on average.
_PAYS = 0.75
_MEMORY = 0.7  # weight of the guesses before in that average
_PAUSE = 32  # tokens without a guess once it does not pay


class PromptLookup:
    """Find what followed the last tokens of one sequence when they came before."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # tokens -> where what followed them begins
        self._right = 2.0 * _PAYS  # guesses that were right, of each step lately
        self._longest = _FEW
        self._resumes_at = 0
        self._extend(prompt_ids)
        self._num_prompt = len(prompt_ids)

    def guess(self, answer: Sequence[int], count: int) -> list[int]:
        """Return at most `count` tokens that may follow the answer; [] while it does not pay."""
        self._extend(answer[len(self._tokens) - self._num_prompt :])
        if len(self._tokens) < self._resumes_at or count < 1:
            return []
        begin = self._after.get(tuple(self._tokens[-_NGRAM:]))
        if begin is None:
            return []
        return self._tokens[begin : begin + min(count, self._longest)]

    def saw(self, num_right: int) -> None:
        """Note how many tokens of the last guess were right."""
        self._longest = max(_FEW, 2 * num_right)
        self._right = _MEMORY * self._right + (1 - _MEMORY) * num_right
        if self._right < _PAYS:
            self._resumes_at = len(self._tokens) + _PAUSE
            self._right = _PAYS

    def _extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens. The newest ones end nothing yet: what follows them is not known."""
        tokens, start = self._tokens, len(self._tokens)
        tokens.extend(token_ids)
        for end in range(max(start, _NGRAM), len(tokens)):
            self._after[tuple(tokens[end - _NGRAM : end])] = end


class Drafter:
    """Propose tokens for the rows of a step, and learn which rows it pays for.

    Args:
        decoder: says how many rows and tokens a step may have; None: nothing is proposed.
    """

    def __init__(self, decoder: DraftDecoder | None) -> None:
        self._max_rows = 0 if decoder is None else decoder.drafted_rows
        self._max_tokens = 0 if decoder is None else decoder.draft_tokens
        self._lookups: dict[SequenceState, PromptLookup] = {}

    def propose(self, sequences: Sequence[SequenceState]) -> dict[int, list[int]]:
        """Return row -> tokens that may follow, for the rows that have some, if few run.

        Args:
            sequences: all that decode in this step, each with a token of this step counted.
        """
        if len(sequences) > self._max_rows or any(map(_needs_single_steps, sequences)):
            return {}
        most = self._max_tokens // max(1, len(sequences)) - 1
        drafts = {}
        for sequence in sequences:
            if sequence.row is None or not _is_drafted(sequence.request):
                continue
            if sequence not in self._lookups:
                self._lookups[sequence] = PromptLookup(sequence.request.prompt_ids)
            left = sequence.request.sampling.num_steps - sequence.num_scheduled
            if guess := self._lookups[sequence].guess(sequence.answer, min(most, left)):
                drafts[sequence.row] = guess
        return drafts

    def learn(
        self,
        sequences: Sequence[SequenceState],
        drafts: Mapping[int, Sequence[int]],
        tokens: Mapping[int, Sequence[int]],
    ) -> None:
        """Note which guesses were right, given the tokens that each row got."""
        for sequence in sequences:
            row, lookup = sequence.row, self._lookups.get(sequence)
            if row is not None and row in drafts and lookup is not None:
                lookup.saw(len(tokens[row]) - 1)

    def forget(self, sequence: SequenceState) -> None:
        self._lookups.pop(sequence, None)


def _needs_single_steps(sequence: SequenceState) -> bool:
    """Return whether more than tokens comes of its steps, or a structure looks at each token."""
    sampling = sequence.request.sampling
    return sampling.logprobs is not None or sampling.grammar is not None


def _is_drafted(request: Request) -> bool:
    """Return whether guesses may agree often: not where tokens are drawn."""
    return request.sampling.is_greedy


class _Draft(Protocol):
    @property
    def row(self) -> int: ...

    @property
    def token_ids(self) -> Sequence[int]:
        """Return the row's newest token and those that were guessed."""


def agreeing(drafts: Sequence[_Draft], pick: Callable[[int, int], int]) -> dict[int, list[int]]:
    """Return each row's tokens up to the first that is not the one that was guessed.

    Args:
        pick: row, position among the tokens of all drafts -> the token that follows it.
    """
    found: dict[int, list[int]] = {}
    first = 0
    for draft in drafts:
        picked = found[draft.row] = []
        for at, guessed in enumerate((*draft.token_ids[1:], None), first):
            picked.append(pick(draft.row, at))
            if picked[-1] != guessed:
                break
        first += len(draft.token_ids)
    return found
