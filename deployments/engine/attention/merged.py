"""Find what a row attends to where its answer and its prompt are under one softmax."""

from collections.abc import Sequence

import torch


class MergedPositions:
    """Know each row's cache positions: its newest ones, then its prompt's at the end of the row.

    Args:
        ranges: where each row begins and ends in the cache.
        positions, prompts: of TorchDecodeAttention.
    """

    def __init__(
        self,
        ranges: Sequence[tuple[int, int]],
        positions: Sequence[int],
        prompts: Sequence[int],
        device: torch.device,
    ) -> None:
        self._device = device
        self._rows = [
            (start, filled + 1, end, prompt)
            for (start, end), filled, prompt in zip(ranges, positions, prompts, strict=True)
        ]
        # The first layer that needs them builds these, for all layers of its window.
        self._flat: dict[int | None, tuple[torch.Tensor, list[int]]] = {}
        self._padded: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}

    def flat(self, window: int | None) -> tuple[torch.Tensor, list[int]]:
        """Return all rows' positions, one row behind the other, and how many each row has.

        window: of how many of its own positions a row sees, the newest among them; None: of all.
        """
        if window not in self._flat:
            of_rows = self._of_rows(window)
            self._flat[window] = torch.cat(of_rows), [len(own) for own in of_rows]
        return self._flat[window]

    def padded(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows' positions (B, L), and which of them are theirs (B, 1, 1, L)."""
        if window not in self._padded:
            of_rows = self._of_rows(window)
            where = torch.nn.utils.rnn.pad_sequence(of_rows, batch_first=True)
            sizes = torch.tensor([len(own) for own in of_rows], device=self._device)[:, None]
            seen = torch.arange(where.shape[1], device=self._device) < sizes
            self._padded[window] = where, seen[:, None, None]
        return self._padded[window]

    def _of_rows(self, window: int | None) -> list[torch.Tensor]:
        own = [
            (start + max(0, seen - (window or seen)), start + seen)
            for start, seen, _, _ in self._rows
        ]
        prompts = [(end - prompt, end) for _, _, end, prompt in self._rows]
        return [
            torch.cat([torch.arange(*span, device=self._device) for span in both])
            for both in zip(own, prompts, strict=True)
        ]
