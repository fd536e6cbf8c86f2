"""How a layer is spread over a device: how many blocks, what each of them owns, and where it lies in shared memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

from nblstm.cuda.device import Limits
from nblstm.cuda.recurrence import ITEMS
from nblstm.cuda.slices import AT_ONCE, COLUMNS, ROWS, THREADS, Slice, padded

# Rows that a block works on at a time, at most; bytes of a row of a tile: with more, a thread runs out of registers.
_ROW_BLOCK, _ROW_BYTES = 64, 32
# What a meeting of all blocks takes, and multiply-adds and reads of shared memory of one block in that unit of time. A
# guess from the documents of the maker, in nanoseconds: nobody has measured it here (docs/cuda.md).
_MEET = 1500.0
_FMAS, _READS = 128 * 1.7, 32 * 1.7
# Outputs of each gate that a block has if its weights do not stay.
_OWN_WITHOUT = 16


class Products(NamedTuple):
    """The two products of a step: sizes that do not depend on the call.

    The second one is by the matrix of the projection; without one it has no outputs.
    """

    gates: int  # columns for each output of the first product
    outputs: tuple[int, int]
    terms: tuple[int, int]
    itemsize: int


class Plan(NamedTuple):
    """How the steps of a layer run."""

    persistent: bool  # all steps in one launch
    directions: int  # of a launch
    blocks: int  # of each direction
    rows: int  # R of the tiles
    places: tuple[Slice, Slice]
    shared_bytes: int


@functools.lru_cache(1024)
def choose(products: Products, batch: int, directions: int, limits: Limits) -> tuple[Plan, ...]:
    """Return the plans for a layer, the best one first; the last one always works.

    Whether the blocks of the others can wait for one another is for the device to say.
    """
    plans = []
    if limits.cooperative:
        for together in dict.fromkeys((directions, 1)):
            most = max(1, limits.processors // together)
            alone = _plan(products, batch, together, 1, limits, True)
            spread = _plan(products, batch, together, most, limits, True)
            pays = alone is not None and _step_time(products, batch, 1) <= _step_time(products, batch, most) + _MEET
            plans += [plan for plan in ([alone, spread] if pays else [spread, alone]) if plan is not None]
    own = max(1, min(_OWN_WITHOUT, -(-max(products.outputs) // limits.processors)))
    while (plan := _plan(products, batch, directions, -(-max(products.outputs) // own), limits, False)) is None:
        own = -(-own // 2)
    return *plans, plan


def _step_time(products: Products, batch: int, blocks: int) -> float:
    """Return what a block takes for the products of a step, in nanoseconds: a rough lower limit."""
    weights = sum(n * k for n, k in zip(products.outputs, products.terms, strict=True)) * products.gates / blocks
    return max(weights * batch / _FMAS, weights / _READS) * (products.itemsize / 4)


def _plan(
    products: Products, batch: int, directions: int, blocks: int, limits: Limits, persistent: bool
) -> Plan | None:
    """Return the plan for so many blocks, with the largest tiles for which there is room; None if there is none."""
    own = [-(-outputs // blocks) for outputs in products.outputs]
    # With less, half a tile of columns would be zeros.
    own[0] = max(own[0], min(products.outputs[0], -(-COLUMNS // products.gates)))
    fitting = [rows for rows in reversed(ROWS) if rows <= batch and rows * products.itemsize <= _ROW_BYTES]
    tried = (_places(products, batch, rows, own, limits, persistent) for rows in fitting)
    found = next((one for one in tried if one is not None), None)
    if found is None:
        return None
    rows, places, size = found
    count = max(-(-outputs // each) for outputs, each in zip(products.outputs, own, strict=True) if each)
    return Plan(persistent, directions, count, rows, places, size * products.itemsize)


def _places(
    products: Products, batch: int, rows: int, own: list[int], limits: Limits, persistent: bool
) -> tuple[int, tuple[Slice, Slice], int] | None:
    """Return tiles' R, the slices of both products, and the elements of shared memory; None if they do not fit."""
    gates, terms = (products.gates, 1), products.terms
    widths = [-(-each * count // COLUMNS) * COLUMNS for each, count in zip(own, gates, strict=True)]
    row_tiles = min(-(-batch // rows), min(_ROW_BLOCK, THREADS) // rows, THREADS // (max(widths) // COLUMNS))
    row_tiles = min(row_tiles, ITEMS * THREADS // (max(own) * rows))
    if row_tiles == 0:
        return None
    columns, of_source = [padded(width, COLUMNS) for width in widths], padded(rows * row_tiles, rows)
    sums = THREADS * padded(COLUMNS * rows, COLUMNS * rows)
    # As many terms at once as the threads can bring, in the room of the partial sums; without weights that stay, less.
    chunk = max(1, min(AT_ONCE * (THREADS // (rows * row_tiles)), sums // (2 * of_source)))
    resident = columns[0] * terms[0] + columns[1] * terms[1]
    while (held := resident if persistent else max(columns) * chunk) + sums > limits.shared_bytes // products.itemsize:
        if persistent or chunk == 1:
            return None
        chunk //= 2
    starts = (0, columns[0] * terms[0]) if persistent else (0, 0)
    slices = [THREADS // max(1, width // COLUMNS * row_tiles) for width in widths]
    chunks = [max(1, min(chunk // n * n or chunk, k)) for n, k in zip(slices, terms, strict=True)]
    first, second = (
        Slice(own[i], widths[i], rows * row_tiles, slices[i], chunks[i], starts[i], held) for i in range(2)
    )
    return rows, (first, second), held + sums
