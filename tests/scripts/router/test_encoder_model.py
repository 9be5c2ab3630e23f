"""The encoder in PyTorch: 4-bit weights, masks, pooling."""

import pytest
import torch
from torch.nn import functional as F

from scripts.router.encoder_model import (
    GROUP,
    MAX_POSITIONS,
    Encoder,
    Linear,
    fake_quantised,
    quantise,
)


def tiny(num_pieces: int = 50, num_layers: int = 2) -> Encoder:
    torch.manual_seed(0)
    return Encoder(num_pieces, 3, hidden=GROUP, num_heads=4, num_layers=num_layers).eval()


def random_weight(rows: int = 40, columns: int = 4 * GROUP) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def restored(weight: torch.Tensor) -> torch.Tensor:
    codes, scales = quantise(weight)
    return ((codes.float() - 8) * scales[..., None]).reshape(weight.shape)


def test_codes_are_four_bits_with_a_scale_for_each_group() -> None:
    codes, scales = quantise(random_weight())
    assert codes.dtype == torch.uint8
    assert codes.shape == (40, 4, GROUP)
    assert scales.shape == (40, 4)
    assert (codes.min(), codes.max()) == (0, 15)


def test_the_error_is_at_most_half_a_step() -> None:
    """But for the largest value's opposite, which the range -8 .. 7 may cut by a whole step."""
    weight = random_weight()
    _, scales = quantise(weight)
    steps = scales.abs().repeat_interleave(GROUP, dim=1)
    errors = (restored(weight) - weight).abs()
    assert (errors <= steps * 1.001).all()
    assert (errors <= steps * 0.501).float().mean() > 0.99
    relative = (errors.square().sum() / weight.square().sum()).sqrt()
    assert 0.05 < relative < 0.11  # measured: 0.094


def test_values_that_four_bits_can_hold_are_exact() -> None:
    codes = torch.randint(0, 16, (8, 2 * GROUP), generator=torch.Generator().manual_seed(0))
    codes[:, ::GROUP] = 0  # each group holds -8
    weight = (codes.float() - 8) * 0.25
    assert torch.equal(restored(weight), weight)


def test_no_choice_of_scale_is_worse_than_the_plain_one() -> None:
    weight = random_weight()
    groups = weight.reshape(40, -1, GROUP)
    plain = groups.abs().amax(2, keepdim=True) / 7
    by_hand = ((groups / plain).round().clamp(-8, 7) * plain).reshape(weight.shape)
    assert (restored(weight) - weight).square().sum() <= (by_hand - weight).square().sum()


def test_zeros_stay_zero() -> None:
    assert torch.equal(restored(torch.zeros(2, GROUP)), torch.zeros(2, GROUP))


def test_fake_quantised_has_the_values_of_four_bits_and_the_gradient_of_the_identity() -> None:
    weight = random_weight().requires_grad_()
    rounded = fake_quantised(weight)
    assert torch.allclose(rounded, restored(weight.detach()), atol=1e-6)
    assert not torch.allclose(rounded, weight, atol=1e-3)
    outer = torch.randn_like(weight)
    torch.autograd.backward((rounded * outer).sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, outer)


def test_four_bits_are_switched_on_and_off_everywhere() -> None:
    encoder = tiny()
    ids = torch.tensor([[0, 5, 9, 2]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        before = encoder(ids, mask)["states"]
        encoder.set_quantised(True)
        quantised = encoder(ids, mask)["states"]
        assert all(m.is_quantised for m in encoder.modules() if isinstance(m, Linear))
        encoder.set_quantised(False)
        after = encoder(ids, mask)["states"]
    assert torch.equal(before, after)
    assert not torch.allclose(before, quantised, atol=1e-3)


def test_padding_changes_nothing() -> None:
    encoder = tiny()
    row = [0, 5, 9, 7, 2]
    short = torch.tensor([row])
    padded = torch.tensor([[*row, 1, 1, 1]])
    with torch.no_grad():
        one = encoder(short, torch.ones_like(short, dtype=torch.bool))
        other = encoder(padded, torch.arange(8)[None] < 5)
    assert torch.allclose(one["states"], other["states"][:, :5], atol=1e-5)
    for name in ("pooled", "specialty", "scope"):
        assert torch.allclose(one[name], other[name], atol=1e-5), name


def test_shapes_and_pooling() -> None:
    encoder = tiny()
    ids = torch.randint(0, 50, (3, MAX_POSITIONS))
    with torch.no_grad():
        out = encoder(ids, torch.ones_like(ids, dtype=torch.bool))
        scores = encoder.attention(out["states"]).squeeze(-1)
    assert out["states"].shape == (3, MAX_POSITIONS, GROUP)
    assert out["specialty"].shape == (3, 3)
    assert out["scope"].shape == (3,)
    pooled = (F.softmax(scores, -1)[..., None] * out["states"]).sum(1)
    assert torch.allclose(out["pooled"], pooled, atol=1e-5)


def test_the_order_of_tokens_matters() -> None:
    encoder = tiny()
    ids = torch.tensor([[0, 5, 9, 2], [0, 9, 5, 2]])
    with torch.no_grad():
        one, other = encoder(ids, torch.ones_like(ids, dtype=torch.bool))["pooled"]
    assert not torch.allclose(one, other, atol=1e-3)


def test_dropout_only_while_training() -> None:
    encoder = tiny()
    ids = torch.tensor([[0, 5, 9, 2]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(encoder(ids, mask)["scope"], encoder(ids, mask)["scope"])
        encoder.train()
        assert not torch.equal(encoder(ids, mask)["scope"], encoder(ids, mask)["scope"])


@pytest.mark.parametrize("columns", [GROUP // 2, GROUP + 1])
def test_rows_that_are_no_whole_groups_are_refused(columns: int) -> None:
    with pytest.raises(RuntimeError):
        quantise(torch.zeros(3, columns))
