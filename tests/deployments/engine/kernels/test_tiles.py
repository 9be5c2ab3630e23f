"""Each block fits the shared memory of the GPUs that are sold; common ones stay as measured.

What the kernels really take is known from `triton.compile` for a GPU that need not be there.
"""

import pytest

from deployments.engine.kernels.ops import BLOCK_M
from deployments.engine.kernels.quantised_tiles import stages_that_fit, tile_of
from deployments.engine.kernels.tiles import decode_tile, padded, prefill_tile

SHARED = {"H100": 232_448, "A100": 166_912, "L4": 101_376}
# (dim of a head, bytes of a number, keys of a block) -> bytes, Triton 3.7 for sm_90 and sm_80.
DECODE = {
    (64, 2, 128): 71_680,
    (128, 2, 64): 69_632,
    (128, 2, 128): 139_264,
    (256, 2, 32): 73_728,
    (256, 2, 64): 141_312,
    (256, 2, 128): 274_432,
    (128, 4, 64): 143_424,
    (128, 4, 128): 278_528,
    (256, 4, 32): 149_568,
    (256, 4, 64): 282_624,
}
PREFILL = {
    (128, 2, 64): 114_688,
    (256, 2, 32): 131_072,
    (256, 2, 64): 229_376,
    (64, 4, 64): 98_304,
    (128, 4, 32): 106_752,
    (128, 4, 64): 180_480,
    (256, 4, 16): 135_424,
}


@pytest.mark.parametrize("gpu", SHARED)
@pytest.mark.parametrize(("dim", "itemsize", "keys"), DECODE)
def test_a_decode_block_that_is_chosen_fits(gpu: str, dim: int, itemsize: int, keys: int) -> None:
    for num_programs in (8, 600, 4096):
        chosen = decode_tile(num_programs, dim, itemsize, SHARED[gpu])["BLOCK_N"]
        assert DECODE.get((dim, itemsize, chosen), 0) <= SHARED[gpu]


@pytest.mark.parametrize(("dim", "itemsize", "keys"), PREFILL)
def test_a_prefill_block_that_is_chosen_fits(dim: int, itemsize: int, keys: int) -> None:
    for gpu, limit in SHARED.items():
        chosen = prefill_tile(dim, itemsize, BLOCK_M, limit)["BLOCK_N"]
        if (gpu, dim, itemsize) == ("L4", 256, 4):
            continue  # Gemma in float32: 64 queries and the fewest keys are too many
        assert PREFILL.get((dim, itemsize, chosen), 0) <= limit


def test_on_an_h100_the_tiles_are_those_that_were_measured() -> None:
    for dim in (64, 80, 96, 128):
        sizes = [decode_tile(n, dim, 2, SHARED["H100"]) for n in (8, 511, 512, 2047, 2048)]
        assert [(s["BLOCK_N"], s["num_warps"]) for s in sizes] == [
            *[(128, 4)] * 2,
            *[(64, 1)] * 2,
            (32, 1),
        ]
        assert prefill_tile(dim, 2, BLOCK_M, SHARED["H100"])["BLOCK_N"] == 64


def test_gemmas_heads_have_smaller_ones() -> None:
    assert decode_tile(8, 256, 2, SHARED["H100"])["BLOCK_N"] == 64
    assert decode_tile(4096, 256, 2, SHARED["H100"]) == {"BLOCK_N": 32, "num_warps": 4}
    assert prefill_tile(256, 2, BLOCK_M, SHARED["H100"])["BLOCK_N"] == 64
    assert prefill_tile(256, 2, BLOCK_M, SHARED["A100"])["BLOCK_N"] == 32


def test_there_is_always_a_block() -> None:
    assert decode_tile(8, 512, 4, 1_000)["BLOCK_N"] == 16
    assert prefill_tile(512, 4, BLOCK_M, 1_000)["BLOCK_N"] == 16
    assert decode_tile(8, 256, 4, None)["BLOCK_N"] == 128, "in Triton's interpreter"


@pytest.mark.parametrize(("dim", "size"), [(1, 16), (16, 16), (17, 32), (64, 64), (80, 128)])
def test_a_tile_is_a_power_of_two(dim: int, size: int) -> None:
    assert padded(dim) == size


# (kind, rows, outputs, inputs) -> stages on an H100, an A100 and an L4. As Triton 3.6 compiles them
# for sm_80, a program with all of an H100's took 172,032 bytes (the last one) and 143,360.
STAGES = {
    ("plain", 16, 6144, 2048): (8, 8, 4),
    ("plain", 64, 6144, 2048): (4, 4, 3),
    ("int8", 16, 2048, 2048): (8, 8, 8),
    ("nf4", 64, 10240, 2048): (3, 3, 3),
    ("int8", 64, 2048, 2048): (8, 6, 4),
}


@pytest.mark.parametrize(("product", "stages"), STAGES.items(), ids=str)
def test_stages_of_a_product_fit(
    product: tuple[str, int, int, int], stages: tuple[int, int, int]
) -> None:
    tile = tile_of(*product)
    assert tile is not None
    assert stages_that_fit(tile, product[0], 2, None) == tile.num_stages
    found = [stages_that_fit(tile, product[0], 2, limit) for limit in SHARED.values()]
    assert tuple(found) == stages
    assert 1 <= stages_that_fit(tile, product[0], 4, SHARED["L4"]) <= 4, "of float32, too"
