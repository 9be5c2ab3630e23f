"""Norms and activations, faster than torch's own, and the data that kernels of both backends take.

The PyTorch and the Triton backend share it.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deployments.engine.kernels.backend import are_fused

_tanh_gelu = functools.partial(F.gelu, approximate="tanh")
# The keys are transformers' names.
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}

GATED = ("silu", "gelu_new", "gelu_pytorch_tanh")  # those that kernels of ours apply to gates
BLOCK_M = 64  # queries of one program of the prefill kernel
_SHARE = 32_768  # at::internal::GRAIN_SIZE: what torch gives a thread at least
_ALONE = 16_384  # up to so many elements one thread computes, of gelu too
_VECTOR = 64  # elements of two vectors of bfloat16


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the RMS norm of x (T, d) with weight (d,); the mean square is taken in float32.

    On a GPU a kernel that begins while the one before it ends, and sums a row in one order. On a
    CPU this takes five small operations instead of the nine of torch's own.
    """
    if x.is_cuda and are_fused("cuda"):
        return _norm_kernel()(x, weight, eps)
    if x.is_cuda and weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, None, eps).mul_(weight)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = length.square_().div_(x.shape[1]).add_(eps).rsqrt_()
    normed: torch.Tensor = (x * inverse).to(x.dtype)
    return normed.mul_(weight)


def normalise_(x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Take the RMS norm of x (T, h, D) over all heads together, in place, with weight (h, D)."""
    if x.is_cuda and are_fused("cuda"):
        _heads_kernel()(x, weight, eps)
    else:
        normalise_torch_(x, weight, eps, (-2, -1))


def normalise_torch_(
    x: torch.Tensor, weight: torch.Tensor, eps: float, dims: tuple[int, ...]
) -> None:
    """Take the RMS norm of x (T, h, D) over `dims` in place, with weight (h, D)."""
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    size = math.prod(x.shape[dim] for dim in dims)
    x.mul_(length.square_().div_(size).add_(eps).rsqrt_()).mul_(weight)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Do torch's scaled_dot_product_attention; scores s may become softcap * tanh(s / softcap).

    Without a cap, each key head may serve several neighbouring heads of q.
    """
    if softcap is None:
        return F.scaled_dot_product_attention(
            q,
            keys,
            values,
            attn_mask=mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=q.shape[1] != keys.shape[1],
        )
    assert not is_causal, "capped scores take a mask"
    scores = torch.matmul(q, keys.transpose(-1, -2)).mul_(scale / softcap).tanh_().mul_(softcap)
    if mask is not None:
        hidden = mask.dtype == torch.bool
        scores = scores.masked_fill_(~mask, -torch.inf) if hidden else scores.add_(mask)
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype), values)


def gated_activation(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return act(gate) * value (T, F) of x (T, 2 F), which holds gate and value side by side."""
    gated = _gated_kernels() if are_fused(x.device.type) else {}
    if activation in gated:
        return gated[activation](x)
    return gated_activation_torch(x, activation)


def gated_activation_torch(x: torch.Tensor, activation: str) -> torch.Tensor:
    gate, value = x.chunk(2, -1)
    return activate(gate, activation).mul_(value)


def mask_logits_(logits: torch.Tensor, bits: torch.Tensor, places: torch.Tensor) -> None:
    """Set logits (B, V) to minus infinity where a bit is 0, in place.

    bits: (R, W) int32, each of 32 tokens, the lowest bit first.
    places: (2, n), rows of the logits and each one's row of bits.
    """
    if logits.is_cuda and are_fused("cuda"):
        _mask_kernel()(logits, bits, places)
    else:
        mask_logits_torch_(logits, bits, places)


def mask_logits_torch_(logits: torch.Tensor, bits: torch.Tensor, places: torch.Tensor) -> None:
    """Do what `mask_logits_` does in torch operations."""
    index, rows = places.unbind()
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((bits[rows][:, :, None] >> shifts) & 1).view(len(rows), -1)[:, : logits.shape[1]]
    masked = logits.index_select(0, index).masked_fill_(allowed == 0, -torch.inf)
    logits.index_copy_(0, index, masked)


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return act(x) of x (T, F), each row as if it were alone."""
    act = ACTIVATIONS[activation]
    pieces = [act(piece) for piece in whole_rows(x)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def whole_rows(x: torch.Tensor) -> Sequence[torch.Tensor]:
    """Cut x (T, F) into rows such that torch computes a row's elements by the same instructions
    whatever the other rows are.

    On a CPU it cuts many elements into shares for its threads, and takes those at the end of a
    share, fewer than _VECTOR, one by one: exp and tanh then round otherwise.
    """
    rows, columns = x.shape
    if x.device.type != "cpu" or rows == 1:
        return [x]
    x = x.contiguous()  # as a single row is: gelu has other code for what is not
    if columns > _ALONE or columns % _VECTOR:
        return torch.split(x, 1)
    if rows * columns <= _ALONE:
        return [x]
    threads = torch.get_num_threads()
    shared = rows // threads * threads  # whole rows for each thread
    if shared * columns < _SHARE * threads:
        shared = 0
    few = _ALONE // columns  # rows of one thread
    return [x[:shared], *torch.split(x[shared:], few)] if shared else torch.split(x, few)


@functools.cache
def _norm_kernel() -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]:
    from deployments.engine.kernels.triton_lora import rms_norm_rows

    return rms_norm_rows


@functools.cache
def _heads_kernel() -> Callable[[torch.Tensor, torch.Tensor, float], None]:
    from deployments.engine.kernels.triton_lora import normalise_

    return normalise_


@functools.cache
def _mask_kernel() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]:
    from deployments.engine.kernels.triton_mask import mask_logits_

    return mask_logits_


@functools.cache
def _gated_kernels() -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
    from deployments.engine.kernels.triton_lora import gated_activation

    return {name: functools.partial(gated_activation, activation=name) for name in GATED}


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Hold the rows of a batch by adapter, and what its shrinks write to.

    order: (B,) the rows, those of one slot side by side.
    tiles: (T, 3) slot, first place in `order` and number of rows, at most `tile_rows`; 0 for none.
    active: the number of adapters, then their slots.
    shrunk, partials: of one shrink after the other, each read before the next one writes.
    """

    order: torch.Tensor
    tiles: torch.Tensor
    active: torch.Tensor
    shrunk: torch.Tensor
    partials: torch.Tensor
    tile_rows: int


@dataclass(frozen=True, slots=True)
class Shrink:
    """Hold the first half of a LoRA product: by what a product by x multiplies x as well.

    stacks: A (N, R, in) of each of 1 to 3 modules.
    slots: (B,).
    active: the number of adapters in use, then their slots: of the N - 1, or of B rows.
    """

    stacks: Sequence[torch.Tensor]
    slots: torch.Tensor
    active: torch.Tensor

    @property
    def rank(self) -> int:
        return self.stacks[0].shape[1]

    @property
    def ranks(self) -> int:
        """Return the ranks of all modules of one adapter."""
        return len(self.stacks) * self.rank


@dataclass(frozen=True, slots=True)
class Expansion:
    """Hold the second half of a LoRA product: each row's shrunk x, not yet multiplied by its B.

    shrunk: (B, P, R); zeros for rows without an adapter.
    stacks: for each module, its first output column and its stack (N, R, columns); slot 0 is zeros.
    slots: (B,).
    groups: the rows by adapter; None where a kernel takes each row by itself.
    is_beside: `shrunk` may still be written while the product is launched.
    """

    shrunk: torch.Tensor
    stacks: Sequence[tuple[int, torch.Tensor]]
    slots: torch.Tensor
    groups: RowGroups | None = None
    is_beside: bool = False

    @property
    def rank(self) -> int:
        return self.shrunk.shape[2]


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Hold an RMS norm of each head of queries and keys.

    weight: (h, D) by head, those of the queries first.
    """

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Rope:
    """Hold a rotary position embedding: x * cos + (x with its halves swapped) * sin.

    cos, sin: (S, D), by position; the first half of sin carries the minus sign. D may be less than
    a head's: then only its first D dimensions are rotated.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def at(self, positions: torch.Tensor) -> "Rope":
        """Return the rows (T, D) of these positions (T,)."""
        return Rope(self.cos[positions], self.sin[positions])

    def apply_rotary_(self, x: torch.Tensor) -> None:
        """Rotate x (T, heads, >= D) in place; token t is at row t of this table."""
        if x.shape[-1] > self.cos.shape[-1]:
            x = x[..., : self.cos.shape[-1]]
        first, second = x.chunk(2, -1)
        swapped = torch.cat([second, first], -1).mul_(self.sin[:, None])
        x.mul_(self.cos[:, None]).add_(swapped)


def rotate_(x: torch.Tensor, norm: HeadNorm | None, rope: Rope | None) -> None:
    """Norm each head of x (T, h, D) and rotate it in place; token t is at row t of `rope`."""
    if are_fused(x.device.type):
        _rotate_kernel()(x, norm, rope)
        return
    if norm is not None:
        normalise_torch_(x, norm.weight, norm.eps, (-1,))
    if rope is not None:
        rope.apply_rotary_(x)


@functools.cache
def _rotate_kernel() -> Callable[[torch.Tensor, HeadNorm | None, Rope | None], None]:
    from deployments.engine.kernels.triton_prefill import rotate_

    return rotate_


@dataclass(frozen=True, slots=True)
class Segment:
    """Describe neighbouring query tokens of one prompt and the keys that they may attend to.

    first, count: the queries in the batch. position: of the first query among the keys.
    first_key, num_keys: in the tensor that holds the keys and values.
    """

    first: int
    count: int
    position: int
    first_key: int
    num_keys: int


def prompt_blocks(segments: Sequence[Segment], num_blocks: int | None = None) -> torch.Tensor:
    """Cut the segments into blocks of BLOCK_M queries, one for each program of the kernel.

    Returns:
        (n, 5) int32 on the host: first query, count, its position, first key, number of keys.
        Empty blocks are added up to `num_blocks`.
    """
    rows = BLOCK_M
    blocks = [
        (s.first + i, min(rows, s.count - i), s.position + i, s.first_key, s.num_keys)
        for s in segments
        for i in range(0, s.count, rows)
    ]
    if num_blocks is not None:
        blocks += [(0, 0, 0, 0, 0)] * (num_blocks - len(blocks))
    return torch.tensor(blocks, dtype=torch.int32)
