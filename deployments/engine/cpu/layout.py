"""Where the compiled step finds what: the columns of its tables of numbers and addresses."""

from typing import Any, NamedTuple

TILE = 32  # columns of one tile of a packed weight
GROUP = 64  # inputs of a row that have one scale, and of a weight of eight bits
HALF = GROUP // 2  # inputs of a weight of four bits that have one step and one least value

# A table (layers, MODULES, MODULE_FIELDS) of addresses, one line for each linear layer.
Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741
MODULES = 7
WEIGHT, BIAS, BITS, OUTPUTS, INPUTS, NUMBER = range(6)  # numbers from BITS on
MODULE_FIELDS = 6

# A table (layers, LAYER_FIELDS) of addresses.
NORM_1, NORM_2, KEYS_VALUES = range(3)
LAYER_FIELDS = 3

# The numbers of a model. A width is a size in whole tiles.
(
    HIDDEN,
    STATE_WIDTH,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    Q_WIDTH,
    K_WIDTH,
    QKV_WIDTH,
    ATTENDED_WIDTH,
    INNER,
    INNER_WIDTH,
    VOCAB_WIDTH,
    WIDEST,
    LORA_RANK,  # the largest
    LORA_MODULES,
    THREADS,
    SCRATCH_SIZE,
    GROUPS,  # of the widest inputs
    HAS_LORA,  # whether any row has an adapter
) = range(19)
NUM_SHAPE = 19

# Addresses of what a step works on.
(
    STATES,  # float32 (rows, STATE_WIDTH)
    NORMED,  # float32 (rows, STATE_WIDTH)
    QKV,  # float32 (rows, QKV_WIDTH)
    ATTENDED,  # float32 (rows, ATTENDED_WIDTH)
    GATES,  # float32 (rows, INNER_WIDTH)
    GATED,  # float32 (rows, INNER_WIDTH)
    BYTES,  # int8 (rows, WIDEST)
    SUMS,  # int32 (rows, GROUPS)
    ROW_SCALES,  # float32 (rows, GROUPS)
    HALF_SUMS,  # float32 (rows, GROUPS, 2)
    SHRUNK,  # float32 (rows, LORA_RANK)
    SCRATCH,  # float32 (THREADS, SCRATCH_SIZE)
    ROWS,  # int64 (rows, ROW_FIELDS)
    LORA,  # int64 (slots, LORA_MODULES, FIELDS), as lora/blocks.py says
    COS,  # float32 (positions, HEAD_DIM)
    SIN,
    FINAL_NORM,  # float32 (HIDDEN,)
    LOGITS,  # float32 (rows, VOCAB_WIDTH)
    ORDER,  # int64 (rows,): the rows, those of one adapter side by side
    ADAPTED,  # int64 (LORA_MODULES,): whether any adapter changes the module
    CURSORS,  # int64 (THREADS, CURSOR), as adapters.py says
    TAKEN,  # int64 (phases, THREADS), as phases.py says
) = range(22)
NUM_BUFFERS = 22
CURSOR = 8  # numbers, more than are used: no two threads write to one line of a cache

# A row is a token of a prompt, or the newest token of an answer. START: of its keys in the cache.
POSITION, START, SLOT = range(3)
ROW_FIELDS = 3

PHASES = 10  # of a layer
LANES = 16  # positions of one block of the KV cache
ROW_BLOCK = 16  # rows that a tile is multiplied by before the next ones

_WHOLE = max(TILE, GROUP)  # one is a multiple of the other


def padded(size: int) -> int:
    """Return `size` rounded up to whole tiles and groups."""
    return -(-size // _WHOLE) * _WHOLE


def group_bytes(bits: int) -> int:
    """Return the bytes of one group of a tile: its columns' whole numbers, then their scales."""
    return GROUP * TILE * bits // 8 + 2 * TILE * (4 if bits == 4 else 1)


class Step(NamedTuple):
    """Hold what all threads of a step know.

    shape, buffers: int64, as layout.py numbers them. sync: address, as phases.py says.
    """

    rows: int
    is_decode: bool  # no row reads what another one writes
    eps: float
    scale: float  # of the queries
    sync: int
    shape: Any
    buffers: Any
