"""Copy the tokens of a step from the device to the host while the next step runs."""

from collections.abc import Mapping
from typing import Any

import torch


class DeviceTokens:
    """Implement AsyncTokens (decoder.py) for `tokens` (B,) of `rows`; None: no tokens."""

    def __init__(self, rows: tuple[int, ...], tokens: torch.Tensor | None) -> None:
        self._rows = rows
        self._tokens = tokens
        self._copied: Any = None
        if tokens is not None and tokens.is_cuda:
            self._tokens = torch.empty_like(tokens, device="cpu", pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> Mapping[int, int]:
        if self._tokens is None:
            return {}
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._rows, self._tokens.tolist(), strict=True))
