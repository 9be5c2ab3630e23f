"""One row's LoRA products against torch's."""

import pytest
import torch

from deployments.engine.cpu.kernels import compiled
from deployments.engine.cpu.lora import expand, shrink

pytestmark = pytest.mark.slow  # compiles


@compiled
def adapt(
    x: int, inputs: int, a: int, rank: int, b: int, outputs: int, shrunk: int, y: int
) -> None:
    shrink(x, inputs, a, rank, shrunk)
    expand(shrunk, rank, b, outputs, y)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 7, 8, 9, 11, 19])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(8, 5), (16, 16), (72, 100), (576, 192), (1536, 577)]
)
def test_a_row_gets_what_its_adapter_adds(rank: int, inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(inputs, generator=generator), torch.randn(outputs, generator=generator)
    a = torch.randn(rank, inputs, generator=generator).bfloat16()
    b = torch.randn(rank, outputs, generator=generator).bfloat16()
    shrunk = torch.full((rank,), 7.0)
    expected = y + x @ a.float().T @ b.float()
    adapt(
        x.data_ptr(), inputs, a.data_ptr(), rank, b.data_ptr(), outputs, shrunk.data_ptr(),
        y.data_ptr(),
    )  # fmt: skip
    assert (y - expected).norm() < 1e-5 * (expected.norm() + a.float().norm() * b.float().norm())
