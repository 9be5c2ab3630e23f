"""Send what the host has decided to the device, without waiting for what the device still does.

`torch.tensor(..., device="cuda")` and `.to("cuda")` from ordinary memory wait until every kernel
launched before them has ended: the host then hands out a step's tokens late, and the device idles
while the next step is launched.
"""

from collections.abc import Sequence

import torch


def on_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy of a tensor of the host on a device; on a CPU the tensor itself."""
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def numbers_on(
    device: torch.device, numbers: Sequence[float] | Sequence[Sequence[float]]
) -> torch.Tensor:
    """Return numbers as a tensor on a device, in torch's default dtype for them."""
    return on_device(torch.tensor(numbers), device)
