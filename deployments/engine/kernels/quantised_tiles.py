"""Choose how products with few rows are cut, as measured on an H200 (docs/engine.md)."""

from dataclasses import dataclass

DEQUANTISED = 1 << 25  # elements of the copy that torch multiplies by, at most
_MANY_ROWS = 192  # are bound by arithmetic: torch, from a dequantised copy
_PLAIN_ROWS = 64  # more are as fast with torch
_SHORTEST = 512  # inputs of a piece, at least
# Programs below which the inputs are cut into pieces. NF4's take longer for each weight.
_PROGRAMS = {"int8": 128, "fp8": 128, "nf4": 200, "plain": 96}
_WEIGHT_BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5}  # of plain ones: those of x
_FLOAT32_STAGES = 4
SHRINK_INPUTS = 128  # of a step of a product with an adapter's A
_PART = 1024  # inputs of it that one program takes, about
_MOST_PARTS = 16
_FEWER_PARTS = 4  # of a large tile: one part where small ones have so many
_MULTIPROCESSORS = 132  # programs beyond share one's memory, so they have fewer stages


@dataclass(frozen=True, slots=True)
class Tile:
    """Hold how a product is cut: rows, outputs and inputs of a tile, pieces of the inputs.

    bk is a multiple of 128 (plain weights: of 64), and bn of 16 for each warp.
    bm 0: a single row, without tensor cores; then there are no pieces of the inputs, and num_stages
    tiles of them are asked for before earlier kernels end.
    """

    bm: int
    bn: int
    bk: int
    splits: int
    num_warps: int
    num_stages: int


def tile_of(kind: str, rows: int, outputs: int, inputs: int, more: int = 0) -> Tile | None:
    """Return the tile for x (rows, inputs) and a weight (outputs, inputs).

    more: outputs by adapters' A beside those; they change no sum.

    From two rows on, the order of a row's sum does not depend on their number. Returns None where
    torch is faster.
    """
    if rows > (_PLAIN_ROWS if kind == "plain" else _MANY_ROWS):
        return None
    if rows == 1:
        return _row_tile(kind, outputs, inputs)
    bm = 16 if rows <= 16 else 32 if rows <= 32 else 64
    columns, fewest = -(-outputs // 64), _PROGRAMS[kind]
    splits = 1
    while columns * splits < fewest and inputs >= 2 * splits * _SHORTEST:
        splits *= 2
    programs = (columns + -(-more // 64)) * splits
    shares = programs * -(-rows // bm) > _MULTIPROCESSORS
    bk, stages = 128, 8 if bm == 16 or not shares else 4
    if kind == "nf4":
        stages = 6 if bm == 16 else 3 if shares else 4
    elif kind == "plain" and programs > _MULTIPROCESSORS:
        bk, stages = 64, 6
        if bm == 64 and 2 * _MULTIPROCESSORS < programs <= 3 * _MULTIPROCESSORS:
            stages = 4  # so that three share a multiprocessor, and all begin at once
    elif kind == "plain" and bm > 16:
        stages = 4
    return Tile(bm, 64, bk, splits, 4, stages)


def stages_that_fit(tile: Tile, kind: str, itemsize: int, shared_bytes: int | None) -> int:
    """Return how many stages of a tile lie in shared memory at a time: its own number, or fewer on
    a GPU with less of it than the H200. No sum depends on that.

    Args:
        itemsize: bytes of a number of x.
        shared_bytes: of one program on this GPU; None: any number.
    """
    if shared_bytes is None:
        return tile.num_stages
    weights = int(tile.bk * tile.bn * _WEIGHT_BYTES.get(kind, itemsize))
    stage = weights + tile.bk * tile.bm * itemsize
    most = tile.num_stages
    if itemsize > 2:  # weights in float32 go through shared memory once more
        shared_bytes -= tile.bk * tile.bn * itemsize
        most = min(most, _FLOAT32_STAGES)
    return max(1, min(most, shared_bytes // stage))


def _row_tile(kind: str, outputs: int, inputs: int) -> Tile:
    is_wide, is_long = outputs > 2 * inputs, inputs > 2048
    if kind == "plain":
        return Tile(0, 4, 1024, 1, 4, 1) if is_wide else Tile(0, 2, 1024, 1, 4, 3)
    if kind == "nf4":
        if is_long:
            return Tile(0, 8, 1024, 1, 8, 3)
        return Tile(0, 16, 512, 1, 4, 2) if is_wide else Tile(0, 8, 1024, 1, 8, 1)
    return Tile(0, 8, 1024, 1, 4, 5) if is_long else Tile(0, 8, 2048, 1, 4, 1)


def most_parts(inputs: int) -> int:
    """Return into how many parts a product with an adapter's A is cut at most, for so many inputs
    or fewer."""
    return max(1, min(_MOST_PARTS, inputs // _PART))


def parts_of(inputs: int, *, is_large: bool = False) -> tuple[int, int]:
    """Return into how many parts its sum over the inputs is cut, and how many each takes: by their
    number alone, so that no row's sum depends on the others.

    is_large: of a large tile of rows, whose sums need not have the order of small ones'.
    """
    parts = most_parts(inputs)
    if is_large:
        parts = -(-parts // _FEWER_PARTS)
    length = -(-inputs // (parts * SHRINK_INPUTS)) * SHRINK_INPUTS
    return -(-inputs // length), length
