"""Draw tokens from distributions, with temperature, top-k and top-p.

A token needs one random number, a hash of the row's seed and the token's number. So a seeded answer
is the same in every batch and on every device.
"""

from collections.abc import Sequence

import torch

from deployments.engine.host_memory import numbers_on
from deployments.engine.request import SamplingParams

_MASK_64 = (1 << 64) - 1


def draw(
    scores: torch.Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]
) -> torch.Tensor:
    """Draw one token for each row from its own distribution. scores (B, V) -> (B,)

    Args:
        numbers: a random one in [0, 1) for each row.
    """
    device = scores.device
    temperature = numbers_on(device, [p.temperature or 1.0 for p in params])
    ordered, ids = torch.sort(scores / temperature[:, None], dim=-1, descending=True)
    num_kept = numbers_on(device, [p.top_k or scores.shape[1] for p in params])
    smallest = ordered.gather(1, num_kept.clamp(max=scores.shape[1])[:, None] - 1)
    ordered = ordered.masked_fill(ordered < smallest, -torch.inf)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    top_p = numbers_on(device, [p.top_p for p in params])[:, None]
    # The most likely token stays whatever top_p is.
    outside = (before >= top_p) & (torch.arange(scores.shape[1], device=device) > 0)
    mass = probabilities.masked_fill(outside, 0.0).cumsum(-1)
    target = numbers_on(device, numbers)[:, None] * mass[:, -1:]
    at = torch.searchsorted(mass, target, right=True)
    last = (mass < mass[:, -1:]).sum(-1, keepdim=True)
    return ids.gather(1, torch.minimum(at, last)).squeeze(1)


def uniform(seed: int, number: int) -> float:
    """Return a number in [0, 1) for the `number`-th token of a seeded answer (splitmix64)."""
    z = (seed * 0xD1342543DE82EF95 + (number + 1) * 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
