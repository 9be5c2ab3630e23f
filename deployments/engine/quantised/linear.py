"""Be a linear layer of the base model whose weight is quantised."""

import torch

from deployments.engine.quantised.weight import QuantisedWeight


class QuantisedLinear(torch.nn.Linear):
    """Stand where the base model has a torch.nn.Linear; PEFT wraps it as one.

    `weight` is empty: it tells libraries the device and the dtype of x, nothing else.

    Args:
        quantised: (out, in).
        bias: (out,), or None.
        dtype: of x and of the result.
        device: of x, if the weight waits elsewhere until `take` or `settle`; None: the weight's.
    """

    def __init__(
        self,
        quantised: QuantisedWeight,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = quantised.shape
        self.quantised = quantised
        empty = torch.empty(0, dtype=dtype, device=device or quantised.device)
        self.weight = torch.nn.Parameter(empty, requires_grad=False)
        own = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) of x (..., in)."""
        y = self.quantised.product(x.reshape(-1, self.in_features)).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def settle(self) -> None:
        """Move the weight to the device of x."""
        self.quantised = self.quantised.to(self.weight.device)

    def take(self) -> QuantisedWeight:
        """Return the weight; the layer is left without one, so that it is in memory once."""
        taken = self.quantised
        del self.quantised
        return taken
