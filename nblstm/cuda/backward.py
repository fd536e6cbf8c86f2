"""The way back through a call on a device, the mirror of `nblstm.cuda.engine`, from the last layer to the first one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.cuda.backprop import backprop
from nblstm.cuda.device import DeviceArray, empty, limits, strided, upload
from nblstm.cuda.engine import (
    FLAT_THREADS,
    LayerWeights,
    Place,
    Record,
    Tables,
    drop_between,
    fill,
    flat,
    grid_of,
    launch_flat,
    multiply_rows,
    nothing,
    part,
    positions_of,
    run_steps,
    steps_of,
)
from nblstm.cuda.plan import Products
from nblstm.cuda.products import CHAIN, SMALL, add_up, column_sums, product
from nblstm.engine.backward import DirectionGradients
from nblstm.engine.run import Dropout, SequenceLayout


class BackWeights(NamedTuple):
    """The weights of one layer in all its directions, as the way back reads them."""

    input: DeviceArray  # (D, G*H, I)
    recurrent: DeviceArray  # (D, G*H, P)
    projection: DeviceArray  # (D, P, H); (D, 0, 0) without one


class Tape(NamedTuple):
    """What one call leaves for the way back. Never written to."""

    weights: Sequence[LayerWeights]
    back: Sequence[BackWeights]
    layout: SequenceLayout
    records: Sequence[Record]
    dropout: Dropout | None


def pack_back(directions: Sequence[Sequence[Array | None]], place: Place) -> BackWeights:
    """Bring the parameters of a layer to the device: w_ih, w_hh, b_ih, b_hh, w_hr of each direction."""
    w_ih = np.stack([arrays[0] for arrays in directions if arrays[0] is not None])
    w_hh = np.stack([arrays[1] for arrays in directions if arrays[1] is not None])
    w_hr = [np.empty((0, 0), w_ih.dtype) if arrays[4] is None else arrays[4] for arrays in directions]
    return BackWeights(*(upload(stack, place.stream) for stack in (w_ih, w_hh, np.stack(w_hr))))


def run_backward(
    tape: Tape, dy: DeviceArray | None, d_states: Sequence[DeviceArray], wants_input: bool, place: Place
) -> tuple[list[list[DirectionGradients]], DeviceArray | None]:
    """Return the gradients of all parameters, by layer and direction, and that of x, contiguous, if it is wanted.

    dy        in     gradient of the output, (T, B, D*P) or (1, N, D*P), any strides; None: zeros
    d_states  inout  (L*D, B, size) contiguous: gradients of the last states, then of the first ones
    """
    layout, dropout = tape.layout, tape.dropout
    tables = Tables.of(layout, place)
    positions = _valid_positions(layout, place)
    found: list[list[DirectionGradients]] = []
    dx = None
    for number in reversed(range(len(tape.weights))):
        record, directions = tape.records[number], int(tape.weights[number].input.shape[0])
        own = [part(state, number * directions, directions) for state in d_states]
        dx = None
        if number > 0 or wants_input:
            dx = empty(tuple(record.source.shape), record.source.dtype, place.stream)
            if positions.size:
                fill(dx, place)
        layer = tape.weights[number], tape.back[number]
        found.insert(0, _layer_gradients(*layer, record, layout, tables, positions, dy, own, dx, place))
        if dropout is not None and dropout.p > 0 and number > 0 and dx is not None:
            drop_between(dx, layout, tables, number - 1, dropout, place)
        dy = dx
    return found, dx


def _valid_positions(layout: SequenceLayout, place: Place) -> DeviceArray:
    """Return the positions of all steps within their rows' lengths; nothing where all are."""
    if layout.batch_sizes is None or layout.packed:
        return nothing(np.int64)
    rows = np.arange(layout.batch) if layout.rows is None else layout.rows
    valid = [step * layout.batch + np.sort(rows[:alive]) for step, alive in enumerate(layout.batch_sizes)]
    return upload(np.concatenate(valid).astype(np.int64), place.stream)


def _layer_gradients(
    layer: LayerWeights,
    back: BackWeights,
    record: Record,
    layout: SequenceLayout,
    tables: Tables,
    positions: DeviceArray,
    dy: DeviceArray | None,
    d_states: list[DeviceArray],
    dx: DeviceArray | None,
    place: Place,
) -> list[DirectionGradients]:
    """Take one layer back; `dx` is to be filled, the other arguments are those of `run_backward`."""
    cell, dtype, stream = layer.cell, layer.input.dtype, place.stream
    directions, batch, outputs = (int(size) for size in d_states[0].shape)
    units, count, columns = layer.units, positions_of(record.source), cell.gates * layer.units
    slopes = empty((count, directions, columns), dtype, stream)
    slopes_h = empty((count if cell.apart else 0, directions, columns), dtype, stream)
    projected = empty((count if layer.projects else 0, directions, outputs), dtype, stream)
    exchange = empty((directions, 2, columns, batch), dtype, stream)
    middle = empty((directions, outputs if layer.projects else 0, batch), dtype, stream)
    none = strided(nothing(dtype), (0, 1, 1), (dtype.itemsize,) * 3)
    steps = steps_of(layout)
    given = (record.kept, record.before, none if dy is None else dy, dy is not None, slopes, slopes_h)
    arguments = (*given, d_states[0], d_states[-1], back.recurrent, back.projection, exchange, middle, projected)
    make = functools.partial(backprop, cell, dtype, projects=layer.projects)
    second = (units, outputs) if layer.projects else (0, 0)
    sizes = Products(1, (outputs, second[0]), (columns, second[1]), dtype.itemsize)
    run_steps(make, sizes, batch, directions, place, (*arguments, *tables), steps, 0, steps + 1)
    rows = int(positions.size) or count
    found = []
    for d in range(directions):
        own = _of_direction(slopes, d)
        own_h = _of_direction(slopes_h, d) if cell.apart else own
        w_ih = _sum_of_products(own, record.source, positions, rows, place)
        w_hh = _sum_of_products(own_h, _of_direction(record.before, d), positions, rows, place)
        b_ih, b_hh = (_column_sums(a, positions, rows, place) for a in (own, own_h))
        w_hr = None
        if layer.projects:
            m = _slot(record.kept, d, int(record.kept.shape[2]) - 1)
            w_hr = _sum_of_products(_of_direction(projected, d), m, positions, rows, place)
        found.append(DirectionGradients(w_ih, w_hh, b_ih, b_hh, w_hr))
        if dx is not None:
            weights = part(back.input, d, 1)
            multiply_rows(own, weights, nothing(dtype), dx, rows, 0, 0, place, positions, adds=d > 0)
    return found


def _of_direction(array: DeviceArray, d: int) -> DeviceArray:
    """Return what a contiguous (N, D, size) array has of one direction, as (1, N, size)."""
    (count, _, size), (row, step, item) = array.shape, array.strides
    return strided(array, (1, count, size), (0, row, item), d * step)


def _slot(kept: DeviceArray, d: int, slot: int) -> DeviceArray:
    """Return one slot of a contiguous (N, D, K, H) array, as (1, N, H)."""
    (count, _, _, size), (row, step, slot_step, item) = kept.shape, kept.strides
    return strided(kept, (1, count, size), (0, row, item), d * step + slot * slot_step)


def _parts(tiles: int, rows: int, place: Place) -> int:
    """Return into how many parts to split a sum over rows, so that there is work for all processors."""
    return max(1, min(-(-rows // CHAIN), 2 * limits(place.index).processors // tiles))


def _sum_of_products(a: DeviceArray, b: DeviceArray, positions: DeviceArray, rows: int, place: Place) -> DeviceArray:
    """Return the sum of a[p, m] b[p, n] over positions p, as (M, N)."""
    m, n = int(a.shape[2]), int(b.shape[2])
    across, down = grid_of(SMALL, m, n)
    parts = _parts(across * down, rows, place)
    sums = empty((parts, m, n), a.dtype, place.stream)
    arguments = (a, b, nothing(a.dtype), sums, positions, rows, 0, 0, False)
    grid = (across, down, parts)
    product(a.dtype, SMALL, True).launch(place.index, grid, SMALL.side**2, place.stream, 0, *arguments)
    return _added_up(sums, (m, n), place)


def _column_sums(a: DeviceArray, positions: DeviceArray, rows: int, place: Place) -> DeviceArray:
    """Return the sum of a[p, m] over positions p, as (M,)."""
    m = int(a.shape[2])
    blocks = -(-m // FLAT_THREADS)
    sums = empty((_parts(blocks, rows, place), 1, m), a.dtype, place.stream)
    grid = (blocks, sums.shape[0])
    column_sums(a.dtype).launch(place.index, grid, FLAT_THREADS, place.stream, 0, a, sums, positions, rows)
    return _added_up(sums, (m,), place)


def _added_up(sums: DeviceArray, shape: tuple[int, ...], place: Place) -> DeviceArray:
    """Return partial sums (Z, X, Y) added up in their order, in this shape."""
    strides = tuple(sums.dtype.itemsize * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    if sums.shape[0] == 1:
        return strided(sums, shape, strides)
    size = int(np.prod(shape))
    result = empty(shape, sums.dtype, place.stream)
    parts = strided(sums, (int(sums.shape[0]), size), (size * sums.dtype.itemsize, sums.dtype.itemsize))
    launch_flat(add_up(sums.dtype), place, size, parts, flat(result))
    return result
