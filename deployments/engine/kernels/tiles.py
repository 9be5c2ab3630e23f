"""Choose how many keys the attention kernels take at a time.

Their blocks of keys and values lie in shared memory, of which a GPU gives one program 99 KiB (L4)
to 227 KiB (H100).
"""

_FEWEST_KEYS = 16  # tl.dot takes no fewer
_FEW_PROGRAMS, _SOME_PROGRAMS = 16, 64
_MANY_PROGRAMS = 512
_MULTIPROCESSORS = 132  # of an H100 or H200
_MOST_SPLITS = 8  # parts of the keys of one program
_FEWEST_BLOCKS = 4  # of a part, where programs are not few
_MANY_MORE = 2048
# Shared memory over the bytes of one block of keys, as Triton 3.6 and 3.7 compile the kernels for
# sm_80 and sm_90: two blocks of keys and two of values are under way, beside smaller things.
_DECODE_BLOCKS = 4.6
_PREFILL_BLOCKS = 6  # three of each
_PREFILL_KEYS = 64
_WIDE_WARPS = 4  # of heads with 256 dimensions: one warp has too few registers (docs/engine.md)


def padded(dim: int) -> int:
    """Return the size of a tile for `dim`: a power of two for tl.arange, at least 16 for tl.dot."""
    return max(16, 1 << (dim - 1).bit_length())


def decode_tile(
    num_programs: int | None, dim: int, itemsize: int, shared_bytes: int | None
) -> dict[str, int]:
    """Return the decode kernels' tile sizes, measured on an H100 (docs/engine.md): small tiles for
    many programs.

    Args:
        num_programs: None: any number, with one order of sums.
        dim: of a head.
        itemsize: bytes of a number in the cache.
        shared_bytes: of one program on this GPU; None: any number.
    """
    keys, warps, num_programs = 128, 4, num_programs or _MANY_PROGRAMS
    if num_programs >= _MANY_PROGRAMS:
        keys, warps = (64 if num_programs < _MANY_MORE else 32), 1
    if dim > 128:
        warps = _WIDE_WARPS
    key_bytes = padded(dim) * itemsize
    return {"BLOCK_N": _fewer(keys, _DECODE_BLOCKS * key_bytes, shared_bytes), "num_warps": warps}


def rope_decode_tile(
    num_programs: int | None, dim: int, itemsize: int, shared_bytes: int | None
) -> dict[str, int]:
    """Return the tile sizes of the decode kernel for grouped queries, measured on an H200
    (docs/engine.md): also into how many parts it cuts the keys of each program at most, and the
    fewest blocks of a part.

    Args: those of `decode_tile`.
    """
    keys, warps, most = 128, 4, _MULTIPROCESSORS
    if num_programs is None:
        keys, warps, num_programs = 64, 2 if dim <= 128 else _WIDE_WARPS, most
    elif dim > 128:
        keys = 64 if num_programs < _MANY_MORE else 32
    elif dim <= 64 and num_programs >= _SOME_PROGRAMS:
        keys, warps, most = 32, 1, 8 * most
    elif num_programs >= _MANY_PROGRAMS:
        keys, warps = 64, 2
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits * num_programs <= most:
        splits *= 2
    key_bytes = padded(dim) * itemsize
    return {
        "BLOCK_N": _fewer(keys, _DECODE_BLOCKS * key_bytes, shared_bytes),
        "num_warps": warps,
        "SPLITS": splits,
        "FEWEST": 1 if num_programs <= _FEW_PROGRAMS else _FEWEST_BLOCKS,
    }


def prefill_tile(
    dim: int, itemsize: int, num_queries: int, shared_bytes: int | None
) -> dict[str, int]:
    """Return the prefill kernel's tile sizes; the other arguments are those of `decode_tile`.

    Args:
        num_queries: of one program; they lie in shared memory too.
    """
    key_bytes = padded(dim) * itemsize
    left = None if shared_bytes is None else shared_bytes - num_queries * key_bytes
    return {"BLOCK_N": _fewer(_PREFILL_KEYS, _PREFILL_BLOCKS * key_bytes, left), "num_warps": 4}


def _fewer(keys: int, bytes_of_each: float, shared_bytes: int | None) -> int:
    while shared_bytes is not None and keys > _FEWEST_KEYS and keys * bytes_of_each > shared_bytes:
        keys //= 2
    return keys
