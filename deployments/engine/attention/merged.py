"""Find what a row attends to where its answer and its prompt are under one softmax."""

from collections.abc import Iterator, Sequence

import torch

from deployments.engine.host_memory import numbers_on


class MergedPositions:
    """Know each row's cache positions: its newest ones, then its prompt's at the end of the row.

    Args:
        starts, capacities: of every row of the cache.
        rows, positions, prompts: of TorchDecodeAttention.
    """

    def __init__(
        self,
        starts: Sequence[int],
        capacities: Sequence[int],
        rows: Sequence[int],
        positions: Sequence[int],
        prompts: Sequence[int],
        device: torch.device,
    ) -> None:
        self._starts, self._capacities, self._device = starts, capacities, device
        self._rows, self._positions, self._prompts = rows, positions, prompts
        # The first layer that needs them builds these, for all layers of its window.
        self._padded: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = {}

    def padded(self, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows' positions (B, L), and how many each row has (B,).

        window: of how many of its own positions a row sees, the newest among them; None: of all.
        """
        if window not in self._padded:
            of_rows = list(self._of_rows(window))
            where = torch.nn.utils.rnn.pad_sequence(of_rows, batch_first=True)
            counts = numbers_on(self._device, [len(own) for own in of_rows])
            self._padded[window] = where, counts
        return self._padded[window]

    def _of_rows(self, window: int | None) -> Iterator[torch.Tensor]:
        for row, filled, prompt in zip(self._rows, self._positions, self._prompts, strict=True):
            start, end = self._starts[row], self._starts[row] + self._capacities[row]
            stop = start + filled + 1
            first = start if window is None else max(start, stop - window)
            spans = ((first, stop), (end - prompt, end))
            yield torch.cat([torch.arange(*span, device=self._device) for span in spans])
