"""Log-probabilities of tokens, for the rows that ask: of what was picked, and of prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deployments.engine.host_memory import numbers_on
from deployments.engine.request import PrefillChunk, SamplingParams, TokenScore

_AT_ONCE = 64  # positions of a prompt whose logits are held at the same time


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens of some rows with their log-probabilities, on the device or on their way.

    rows: of each of the n tokens.
    counts: how many of the k most likely tokens each row asks for.
    tokens, own: (n,). top_ids, top: (n, k)
    """

    rows: Sequence[int]
    counts: Sequence[int]
    tokens: torch.Tensor
    own: torch.Tensor
    top_ids: torch.Tensor
    top: torch.Tensor

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Scored":
        tensors = (self.tokens, self.own, self.top_ids, self.top)
        return Scored(self.rows, self.counts, *map(move, tensors))

    def add_to(self, scores: dict[int, list[TokenScore]]) -> None:
        """Append each token's score to its row's, once the tensors have arrived."""
        columns = (self.tokens, self.own, self.top_ids, self.top)
        found = zip(self.rows, self.counts, *(column.tolist() for column in columns), strict=True)
        for row, count, token, own, ids, top in found:
            likely = tuple(zip(ids[:count], top[:count], strict=True))
            scores.setdefault(row, []).append(TokenScore(token, own, likely))


def scored(
    logprobs: torch.Tensor, tokens: torch.Tensor, rows: Sequence[int], counts: Sequence[int]
) -> Scored:
    """Look tokens (n,) up in log-probabilities (n, V)."""
    top = logprobs.topk(min(max(counts), logprobs.shape[1]), dim=-1)
    own = logprobs.gather(1, tokens[:, None]).squeeze(1)
    return Scored(rows, counts, tokens, own, top.indices, top.values)


class Scorer:
    """Know which rows ask, and score their tokens. One step at a time."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # rows that ask -> most likely tokens
        self._prompts: dict[int, list[Scored]] = {}  # read, and not yet handed out
        self._made: list[Scored] = []

    @property
    def is_on(self) -> bool:
        """Return whether a row asks."""
        return bool(self._counts)

    def begin(self, row: int, params: SamplingParams) -> None:
        self.free(row)
        if params.logprobs is not None:
            self._counts[row] = params.logprobs

    def free(self, row: int) -> None:
        self._counts.pop(row, None)
        self._prompts.pop(row, None)

    def read(
        self,
        chunk: PrefillChunk,
        states: torch.Tensor,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Score the prompt tokens that follow those of `chunk`, whose states (n, d) these are."""
        if chunk.row not in self._counts or not chunk.request.sampling.echo:
            return
        prompt, made = chunk.request.prompt_ids, self._prompts.setdefault(chunk.row, [])
        stop = min(chunk.stop, len(prompt) - 1)
        for start in range(chunk.start, stop, _AT_ONCE):
            end = min(start + _AT_ONCE, stop)
            logits = logits_of(states[start - chunk.start : end - chunk.start])
            following = numbers_on(logits.device, prompt[start + 1 : end + 1])
            size = len(following)
            counts = [self._counts[chunk.row]] * size
            logprobs = logits.float().log_softmax(-1)
            made.append(scored(logprobs, following, [chunk.row] * size, counts))

    def logprobs(
        self, logits: torch.Tensor, rows: Sequence[int]
    ) -> tuple[list[int], torch.Tensor] | None:
        """Return the positions in `rows` of those that ask, and their log-probabilities, from the
        logits (B, V) as the model made them; None if no row asks."""
        asking = [i for i, row in enumerate(rows) if row in self._counts]
        if not asking:
            return None
        chosen = logits[numbers_on(logits.device, asking)]
        return asking, chosen.float().log_softmax(-1)

    def picked(
        self, found: tuple[list[int], torch.Tensor], rows: Sequence[int], tokens: torch.Tensor
    ) -> None:
        """Score the tokens (B,) that were picked for `rows`. found: what `logprobs` returned."""
        asking, logprobs = found
        of_rows = [rows[i] for i in asking]
        for row in of_rows:
            self._made += self._prompts.pop(row, [])
        picked = tokens[numbers_on(tokens.device, asking)]
        self._made.append(scored(logprobs, picked, of_rows, [self._counts[r] for r in of_rows]))

    def take(self) -> list[Scored]:
        """Return what was scored since the last call."""
        made, self._made = self._made, []
        return made
