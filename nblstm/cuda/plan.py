"""How a layer is spread over a device: how many blocks, what each of them owns, and where it lies in shared memory."""

from __future__ import annotations

from typing import NamedTuple

from nblstm.cuda.device import Limits
from nblstm.cuda.recurrence import ITEMS
from nblstm.cuda.slices import COLUMNS, ROWS, THREADS, Slice, padded

# Rows that a block works on at a time, at most.
_ROW_BLOCK = 64
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


def choose(products: Products, batch: int, directions: int, limits: Limits) -> list[Plan]:
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
    return [*plans, plan]


def _step_time(products: Products, batch: int, blocks: int) -> float:
    """Return what a block takes for the products of a step, in nanoseconds: a rough lower limit."""
    weights = sum(n * k for n, k in zip(products.outputs, products.terms, strict=True)) * products.gates / blocks
    return max(weights * batch / _FMAS, weights / _READS) * (products.itemsize / 4)


def _plan(
    products: Products, batch: int, directions: int, blocks: int, limits: Limits, persistent: bool
) -> Plan | None:
    """Return the plan for so many blocks; None if what they own does not fit."""
    rows = next((rows for rows in reversed(ROWS) if batch >= rows), ROWS[0])
    own = [-(-outputs // blocks) for outputs in products.outputs]
    # Half a tile of columns would be zeros.
    own[0] = max(own[0], min(products.outputs[0], -(-COLUMNS // products.gates)))
    blocks = max(-(-outputs // each) for outputs, each in zip(products.outputs, own, strict=True) if each)
    gates = products.gates, 1
    widths = [-(-each * count // COLUMNS) * COLUMNS for each, count in zip(own, gates, strict=True)]
    row_tiles = min(-(-batch // rows), _ROW_BLOCK // rows)
    while row_tiles > 1 and (
        max(widths) // COLUMNS * row_tiles > THREADS or max(own) * row_tiles * rows > ITEMS * THREADS
    ):
        row_tiles -= 1
    if max(widths) > THREADS or max(widths) // COLUMNS > THREADS or max(own) * rows * row_tiles > ITEMS * THREADS:
        return None
    slices = [THREADS // max(1, width // COLUMNS * row_tiles) for width in widths]
    of_weights = [padded(width, COLUMNS) for width in widths]
    of_source = padded(rows * row_tiles, rows)
    room = limits.shared_bytes // products.itemsize
    sums = THREADS * padded(COLUMNS * rows, COLUMNS * rows)
    resident = sum(size * terms for size, terms in zip(of_weights, products.terms, strict=True)) if persistent else 0
    # As much of the source at once as there is room for anyway; without weights that stay, a share of it.
    chunk = sums // of_source
    while (held := resident if persistent else max(of_weights) * chunk) + max(sums, of_source * chunk) > room:
        if persistent or chunk == 1:
            return None
        chunk //= 2
    starts = (0, of_weights[0] * products.terms[0]) if persistent else (0, 0)
    chunks = [max(1, min(chunk // count * count or chunk, terms)) for count, terms in zip(slices, products.terms, strict=True)]
    whole = zip(own, widths, slices, chunks, starts, strict=True)
    places = tuple(Slice(each, width, rows * row_tiles, *rest, held) for each, width, *rest in whole)
    size = (held + max(sums, of_source * max(chunks))) * products.itemsize
    return Plan(persistent, directions, blocks, rows, (places[0], places[1]), size)
