"""One step of a Llama-style model on a CPU, compiled: all layers, on any number of threads.

Every thread runs the same function. A layer is ten phases; a phase is cut into pieces, a thread
takes a piece that nobody took yet, and goes on to the next phase when all pieces are done. So a
thread that comes late delays nobody.
"""

from typing import Any

import numpy as np

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.adapters import ask_from_now_on, row_at
from deployments.engine.cpu.attention import attend, write_keys
from deployments.engine.cpu.kernels import cached, compiled, floats, rms_norm
from deployments.engine.cpu.layout import TILE, Step
from deployments.engine.cpu.phases import finish, take, take_near, wait
from deployments.engine.cpu.rows import (
    add_tiles,
    gate_tiles,
    multiply_bytes,
    norm_row,
    project_tiles,
    read_row,
    row_of,
    to_bytes,
)


@compiled
def _take_row(phase: int, thread: int, s: Step) -> int:
    """Return the place of a row that nobody took, s.rows if none is left."""
    return take_near(s.buffers[at.TAKEN], phase, thread, s.shape[at.THREADS], s.rows)


@compiled
def _norm_rows(
    phase: int, thread: int, weight: int, first: int, last: int, s: Step, m: Any
) -> None:
    place = _take_row(phase, thread, s)
    while place < s.rows:
        row = row_at(s, place)
        norm_row(row, weight, first, last, s, m)
        finish(s.sync, phase)
        place = _take_row(phase, thread, s)
    wait(s.sync, phase, s.rows)


@compiled
def _read_rows(
    phase: int,
    thread: int,
    buffer: int,
    width: int,
    size: int,
    first: int,
    last: int,
    s: Step,
    m: Any,
) -> None:
    place = _take_row(phase, thread, s)
    while place < s.rows:
        row = row_at(s, place)
        read_row(s.buffers[buffer] + 4 * row * width, size, row, first, last, s, m)
        finish(s.sync, phase)
        place = _take_row(phase, thread, s)
    wait(s.sync, phase, s.rows)


@compiled
def _pieces(tiles: int, s: Step) -> int:
    return min(tiles, 2 * s.shape[at.THREADS])


@compiled
def _project(phase: int, thread: int, s: Step, m: Any) -> None:
    tiles = s.shape[at.QKV_WIDTH] // TILE
    pieces = _pieces(tiles, s)
    piece = take(s.sync, phase)
    while piece < pieces:
        project_tiles(tiles * piece // pieces, tiles * (piece + 1) // pieces, thread, s, m)
        finish(s.sync, phase)
        piece = take(s.sync, phase)
    wait(s.sync, phase, pieces)


@compiled
def _attention(phase: int, thread: int, kv: int, s: Step) -> None:
    """Write the new keys and values in one phase and attend in the next; a decode step does both
    in one."""
    kv_heads = s.shape[at.KV_HEADS]
    pieces = s.rows * kv_heads
    piece = take(s.sync, phase)
    while piece < pieces:
        write_keys(piece // kv_heads, piece % kv_heads, kv, s)
        if s.is_decode:
            attend(piece // kv_heads, piece % kv_heads, thread, kv, s)
        finish(s.sync, phase)
        piece = take(s.sync, phase)
    wait(s.sync, phase, pieces)
    if s.is_decode:
        return
    piece = take(s.sync, phase + 1)
    while piece < pieces:
        attend(piece // kv_heads, piece % kv_heads, thread, kv, s)
        finish(s.sync, phase + 1)
        piece = take(s.sync, phase + 1)
    wait(s.sync, phase + 1, pieces)


@compiled
def _add(phase: int, module: int, inputs: int, thread: int, s: Step, m: Any) -> None:
    tiles = s.shape[at.STATE_WIDTH] // TILE
    pieces = _pieces(tiles, s)
    piece = take(s.sync, phase)
    while piece < pieces:
        first, last = tiles * piece // pieces, tiles * (piece + 1) // pieces
        add_tiles(module, first, last, inputs, thread, s, m)
        finish(s.sync, phase)
        piece = take(s.sync, phase)
    wait(s.sync, phase, pieces)


@compiled
def _gate(phase: int, thread: int, s: Step, m: Any) -> None:
    tiles = s.shape[at.INNER_WIDTH] // TILE
    pieces = _pieces(tiles, s)
    piece = take(s.sync, phase)
    while piece < pieces:
        gate_tiles(tiles * piece // pieces, tiles * (piece + 1) // pieces, thread, s, m)
        finish(s.sync, phase)
        piece = take(s.sync, phase)
    wait(s.sync, phase, pieces)


@compiled
def _layer(phase: int, thread: int, s: Step, fields: Any, m: Any) -> None:
    attended, inner = s.shape[at.ATTENDED_WIDTH], s.shape[at.INNER_WIDTH]
    heads_size = s.shape[at.HEADS] * s.shape[at.HEAD_DIM]
    _norm_rows(phase, thread, fields[at.NORM_1], at.Q, at.O, s, m)
    tiles = (s.shape[at.QKV_WIDTH] + s.shape[at.STATE_WIDTH]) // TILE
    ask_from_now_on(thread, at.O, at.DOWN - at.O, tiles, s, m)
    _project(phase + 1, thread, s, m)
    _attention(phase + 2, thread, fields[at.KEYS_VALUES], s)
    _read_rows(phase + 4, thread, at.ATTENDED, attended, heads_size, at.O, at.GATE, s, m)
    _add(phase + 5, at.O, attended, thread, s, m)
    _norm_rows(phase + 6, thread, fields[at.NORM_2], at.GATE, at.DOWN, s, m)
    ask_from_now_on(thread, at.DOWN, 1, 2 * inner // TILE, s, m)
    _gate(phase + 7, thread, s, m)
    size = s.shape[at.INNER]
    _read_rows(phase + 8, thread, at.GATED, inner, size, at.DOWN, at.MODULES, s, m)
    ask_from_now_on(thread, at.MODULES, at.O, s.shape[at.STATE_WIDTH] // TILE, s, m)
    _add(phase + 9, at.DOWN, inner, thread, s, m)


@compiled
def _logits(phase: int, emitting: Any, s: Step, head: Any) -> None:
    """Write the logits of the rows `emitting`, in order."""
    hidden, width, count = s.shape[at.HIDDEN], s.shape[at.STATE_WIDTH], len(emitting)
    row = take(s.sync, phase)
    while row < count:
        normed = s.buffers[at.NORMED] + 4 * row * width
        states = row_of(s.buffers[at.STATES], emitting[row], width, hidden)
        weight = floats(s.buffers[at.FINAL_NORM], hidden)
        rms_norm(states, weight, floats(normed, width), hidden, s.eps)
        to_bytes(normed, hidden, row, s)
        finish(s.sync, phase)
        row = take(s.sync, phase)
    wait(s.sync, phase, count)
    vocabulary = s.shape[at.VOCAB_WIDTH]
    tiles = vocabulary // TILE
    pieces = min(tiles, 8 * s.shape[at.THREADS])
    piece = take(s.sync, phase + 1)
    while piece < pieces:
        for tile in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
            for first in range(0, count, at.ROW_BLOCK):
                out = s.buffers[at.LOGITS] + 4 * (first * vocabulary + TILE * tile)
                rows = min(at.ROW_BLOCK, count - first)
                multiply_bytes(head, tile, width, out, vocabulary, False, first, rows, count, s)
        finish(s.sync, phase + 1)
        piece = take(s.sync, phase + 1)
    wait(s.sync, phase + 1, pieces)


@cached
def forward(thread: int, s: Step, emitting: Any, layers: Any, modules: Any, head: Any) -> None:
    """Take the rows through all layers, and those of `emitting` to their logits.

    Args:
        thread: number of this thread, below shape[THREADS]; all of them call it.
        emitting: int64 (n,), rows.
        layers, modules, head: addresses, as layout.py numbers them.
    """
    for number in range(len(layers)):
        _layer(number * at.PHASES, thread, s, layers[number], modules[number])
    if len(emitting) > 0:
        _logits(len(layers) * at.PHASES, emitting, s, head)


def compile_step() -> None:
    """Compile `forward`, or read what was compiled before.

    Raises:
        Exception: whatever Numba and LLVM raise on a processor that they cannot compile this for.
    """
    step = Step(
        0, False, 1e-5, 1.0, 0, np.ones(at.NUM_SHAPE, np.int64), np.zeros(at.NUM_BUFFERS, np.int64)
    )
    layers, modules = (
        np.zeros((0, at.LAYER_FIELDS), np.int64),
        np.zeros((0, at.MODULES, at.MODULE_FIELDS), np.int64),
    )
    forward(0, step, np.arange(0), layers, modules, np.zeros(at.MODULE_FIELDS, np.int64))
