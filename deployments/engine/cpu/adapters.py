"""Find what each row's adapter has for a module, and ask for it before it is read.

Adapters are cold in every step, and short: no processor sees them coming. Asked for all at once
they hold up what runs meanwhile, so the tiles of the products before ask for a little each. A
thread asks for the adapters of its own share of the rows, which it will read itself.
"""

from typing import Any

from numba import carray, int64

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.intrinsics import array_at
from deployments.engine.cpu.kernels import compiled, fetch
from deployments.engine.cpu.layout import Step
from deployments.engine.cpu.phases import share_begin
from deployments.engine.lora.blocks import FIELDS, RANK, A, B

_NUMBER, _LAST, _PLACE, _NEXT, _END, _SIZE = range(6)  # of a cursor


@compiled
def numbers(address: int, count: int) -> Any:
    return carray(array_at(address), (count,), int64)


@compiled
def field_of(s: Step, row: int, field: int) -> int:
    """Return a field of a row of the batch."""
    return numbers(s.buffers[at.ROWS] + 8 * (row * at.ROW_FIELDS + field), 1)[0]


@compiled
def row_at(s: Step, place: int) -> int:
    """Return the row at a place of the order in which threads take them."""
    return numbers(s.buffers[at.ORDER] + 8 * place, 1)[0]


@compiled
def _halves(s: Step, slot: int, number: int) -> Any:
    line = slot * s.shape[at.LORA_MODULES] + number
    fields = numbers(s.buffers[at.LORA] + 8 * FIELDS * line, FIELDS)
    return fields[A], fields[B], fields[RANK]


@compiled
def adapter_of(s: Step, row: int, module: int, m: Any) -> Any:
    """Return the addresses of A and B and the rank that a row's adapter has for a module; zeros
    where it leaves the module alone, as the base model's slot 0 does."""
    return _halves(s, field_of(s, row, at.SLOT), m[module, at.NUMBER])


@compiled
def is_adapted(s: Step, module: int, m: Any) -> bool:
    """Return whether any resident adapter changes a module, if the batch has adapters at all."""
    if s.shape[at.HAS_LORA] == 0:
        return False
    return numbers(s.buffers[at.ADAPTED] + 8 * m[module, at.NUMBER], 1)[0] != 0


@compiled
def _cursor(thread: int, s: Step) -> Any:
    return numbers(s.buffers[at.CURSORS] + 8 * at.CURSOR * thread, at.CURSOR)


@compiled
def _next_piece(thread: int, s: Step, m: Any) -> int:
    """Move the cursor to what the next adapter has for a module; returns the bytes, 0 at the end.

    A and B of a module lie side by side (lora/stacks.py).
    """
    cursor = _cursor(thread, s)
    first = share_begin(s.rows, thread, s.shape[at.THREADS])
    last = share_begin(s.rows, thread + 1, s.shape[at.THREADS])
    while cursor[_NUMBER] < cursor[_LAST]:
        while cursor[_PLACE] < last:
            place = cursor[_PLACE]
            cursor[_PLACE] = place + 1
            slot = field_of(s, row_at(s, place), at.SLOT)
            if place > first and field_of(s, row_at(s, place - 1), at.SLOT) == slot:
                continue
            # Behind the last layer comes the next step's first one.
            a, _, rank = _halves(s, slot, cursor[_NUMBER] % s.shape[at.LORA_MODULES])
            if rank > 0:
                module = cursor[_NUMBER] % at.MODULES
                size = 2 * rank * (m[module, at.INPUTS] + m[module, at.OUTPUTS])
                cursor[_NEXT], cursor[_END] = a, a + size
                return size
        cursor[_NUMBER] += 1
        cursor[_PLACE] = first
    return 0


@compiled
def ask_from_now_on(thread: int, first: int, count: int, tiles: int, s: Step, m: Any) -> None:
    """Let the next tiles ask for what the thread's adapters have for some modules.

    Args:
        first, count: modules, counted from this layer's first one; those behind the last are the
            next layer's.
        tiles: of all threads, that ask.
    """
    if s.shape[at.HAS_LORA] == 0:
        return
    cursor = _cursor(thread, s)
    begin = share_begin(s.rows, thread, s.shape[at.THREADS])
    total = 0
    for is_counted in range(2):
        cursor[_NUMBER] = m[0, at.NUMBER] + first
        cursor[_LAST] = cursor[_NUMBER] + count
        cursor[_PLACE], cursor[_NEXT], cursor[_END] = begin, 0, 0
        if is_counted == 0:
            size = _next_piece(thread, s, m)
            while size > 0:
                total += size
                size = _next_piece(thread, s, m)
    asking = max(1, tiles // s.shape[at.THREADS])
    cursor[_SIZE] = 64 * ((total // asking + 63) // 64 + 1)


@compiled
def ask(thread: int, s: Step, m: Any) -> None:
    """Ask for the share of one tile."""
    if s.shape[at.HAS_LORA] == 0:
        return
    cursor = _cursor(thread, s)
    left = cursor[_SIZE]
    while left > 0:
        if cursor[_NEXT] >= cursor[_END] and _next_piece(thread, s, m) == 0:
            return
        size = min(left, cursor[_END] - cursor[_NEXT])
        fetch(cursor[_NEXT], size)
        cursor[_NEXT] += size
        left -= size
