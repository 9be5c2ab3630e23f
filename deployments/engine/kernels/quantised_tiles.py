"""Choose the tiles of a product with few rows, by measurement."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """Hold how a product is cut: rows, outputs and inputs of a tile, pieces of the inputs.

    bk is a multiple of 128, and bn of 16 for each warp.

    bm 0: a single row, without tensor cores (then there are neither pieces nor stages).
    """

    bm: int
    bn: int
    bk: int
    splits: int
    num_warps: int
    num_stages: int


def tile_of(kind: str, rows: int, outputs: int, inputs: int) -> Tile | None:
    """Return the tile for x (rows, inputs) and a weight (outputs, inputs).

    Returns None where torch is faster: many rows, which are bound by arithmetic.
    """
    if rows > 256:
        return None
    if rows == 1:
        return Tile(0, 4, 1024, 1, 4, 1)
    bm = 16 if rows <= 16 else 32 if rows <= 32 else 64
    bn, bk = 64, 128
    columns = -(-outputs // bn)
    splits = 1
    while columns * splits < 132 and splits < 8 and inputs >= bk * splits * 4:
        splits *= 2
    return Tile(bm, bn, bk, splits, 4, 4)
