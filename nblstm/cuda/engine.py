"""One call of a recurrent network on a device: for every layer the products over all rows, and the recurrence."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.cuda import plan as planning
from nblstm.cuda.cells import cell_functions
from nblstm.cuda.device import SIMULATED, DeviceArray, Kernel, empty, limits, strided, synchronize, upload
from nblstm.cuda.dropout import drop_units
from nblstm.cuda.plan import Plan, Products
from nblstm.cuda.products import LARGE, SMALL, Tile, assign, product, spread
from nblstm.cuda.recurrence import recurrence
from nblstm.cuda.slices import THREADS
from nblstm.engine.run import Dropout, SequenceLayout
from nblstm.kernels.cells import Cell
from nblstm.kernels.dropout import mix

# Bytes of the gates' sums over the input that lie in memory at once.
_BYTES_AT_ONCE = 1 << 28
# Of kernels that go over all elements: threads of a block, blocks of a processor.
FLAT_THREADS, _FLAT_BLOCKS = (2, 1) if SIMULATED else (256, 8)


@dataclass(frozen=True)
class Place:
    """Where a call runs."""

    index: int
    stream: Any


class Tables(NamedTuple):
    """Where the rows of a call lie, in the memory of the device; the letters are those of `recurrence`."""

    starts: DeviceArray
    sizes: DeviceArray
    x_rows: DeviceArray
    state_rows: DeviceArray

    @classmethod
    def of(cls, layout: SequenceLayout, place: Place) -> Tables:
        """Return the tables of a call."""
        sizes = layout.batch_sizes
        starts = np.cumsum(sizes) - sizes if layout.packed and sizes is not None else None
        tables = (starts, sizes, layout.rows, layout.states)
        return cls(*(nothing(np.int64) if t is None else upload(np.asarray(t, np.int64), place.stream) for t in tables))


class LayerWeights(NamedTuple):
    """The weights of one layer in all its directions, as the kernels read them. G gates; GRU: n is the last."""

    cell: Cell
    input: DeviceArray  # (D, I, G*H), transposed
    bias: DeviceArray  # (D, G*H)
    apart_bias: DeviceArray  # (D, H)
    recurrent: DeviceArray  # (D, P, G*H), transposed
    projection: DeviceArray  # (D, H, P), transposed; (D, 0, 0) without one

    @property
    def units(self) -> int:
        """Return H."""
        return int(self.recurrent.shape[2]) // self.cell.gates

    @property
    def projects(self) -> bool:
        """Return whether there is a projection."""
        return bool(self.projection.shape[1])

    @property
    def products(self) -> Products:
        """Return the sizes of the products of a step."""
        outputs, units = int(self.recurrent.shape[1]), self.units
        outputs_2, terms_2 = (outputs, units) if self.projects else (0, 0)
        return Products(self.cell.gates, (units, outputs_2), (outputs, terms_2), self.input.dtype.itemsize)


class Record(NamedTuple):
    """What a layer went through, for the way back."""

    source: DeviceArray  # what went in, as positions
    kept: DeviceArray
    before: DeviceArray


def pack_layer(cell: Cell, directions: Sequence[Sequence[Array | None]], place: Place) -> LayerWeights:
    """Bring the parameters of a layer to the device: w_ih, w_hh, b_ih, b_hh, w_hr of each direction."""
    inputs, biases, aparts, recurrents, projections = [], [], [], [], []
    for w_ih, w_hh, b_ih, b_hh, w_hr in directions:
        assert w_ih is not None and w_hh is not None
        rows = w_hh.shape[0]
        last = slice(rows - rows // cell.gates, None)
        apart = np.zeros(rows // cell.gates, w_ih.dtype)
        with np.errstate(all="ignore"):  # a sum too large becomes inf without a warning, as in torch
            bias = np.zeros(rows, w_ih.dtype) if b_ih is None or b_hh is None else b_ih + b_hh
        if cell.apart and b_ih is not None and b_hh is not None:
            bias[last], apart = b_ih[last], b_hh[last]
        inputs.append(w_ih.T)
        biases.append(bias)
        aparts.append(apart)
        recurrents.append(w_hh.T)
        projections.append(np.empty((0, 0), w_ih.dtype) if w_hr is None else w_hr.T)
    stacks = (np.stack(arrays) for arrays in (inputs, biases, aparts, recurrents, projections))
    return LayerWeights(cell, *(upload(stack, place.stream) for stack in stacks))


def positions_of(x: DeviceArray) -> int:
    """Return how many positions an array (steps, rows, size) has."""
    return int(x.shape[0]) * int(x.shape[1])


def run_layers(
    weights: Sequence[LayerWeights],
    x: DeviceArray,
    layout: SequenceLayout,
    states: Sequence[DeviceArray],
    y: DeviceArray,
    dropout: Dropout | None,
    place: Place,
    keeps: bool = False,
) -> list[Record]:
    """Run all layers; the mirror of `nblstm.engine.run.run_layers`.

    weights  of each layer
    x        in     (T, B, I), or (1, N, I) if packed; any strides
    states   inout  h (L*D, B, P) and, of an LSTM, c (L*D, B, H), contiguous: from the first ones to the last ones
    y        out    (T, B, D*P), or (1, N, D*P), any strides; zeros past the end of a row
    keeps    return the record of each layer, for the way back

    The caller has validated everything.
    """
    if layout.batch == 0:
        return []
    tables = Tables.of(layout, place)
    directions = int(weights[0].input.shape[0])
    ragged = layout.batch_sizes is not None and not layout.packed
    records = []
    for number, layer in enumerate(weights):
        last = number == len(weights) - 1
        target = y if last else empty((*y.shape,), y.dtype, place.stream)
        if ragged:
            fill(target, place)
        own = [part(state, number * directions, directions) for state in states]
        records.append(_run_layer(layer, x, layout, tables, own, target, place, keeps))
        if dropout is not None and dropout.p > 0.0 and not last:
            drop_between(target, layout, tables, number, dropout, place)
        x = target
    return records


def _run_layer(
    layer: LayerWeights,
    x: DeviceArray,
    layout: SequenceLayout,
    tables: Tables,
    states: list[DeviceArray],
    y: DeviceArray,
    place: Place,
    keeps: bool,
) -> Record:
    """Run one layer in all its directions, some steps at a time."""
    cell, dtype, stream = layer.cell, layer.input.dtype, place.stream
    directions, batch, outputs = (int(size) for size in states[0].shape)
    units, count = layer.units, positions_of(y)
    h, c = states[0], states[-1]
    exchange = empty((directions, 2, outputs, batch), dtype, stream)
    launch_flat(spread(dtype), place, directions * outputs * batch, h, exchange, tables.state_rows)
    middle = empty((directions, units if layer.projects else 0, batch), dtype, stream)
    slots = _kept_slots(layer) if keeps else 0
    kept = empty((count if keeps else 0, directions, slots, units), dtype, stream)
    before = empty((count if keeps else 0, directions, outputs), dtype, stream)
    steps = steps_of(layout)
    at_once = max(1, _BYTES_AT_ONCE // (directions * layout.batch * cell.gates * units * dtype.itemsize))
    begins = first_positions(layout)
    for first in range(0, steps, at_once):
        end = min(first + at_once, steps)
        ranges = [(begins[first], begins[end]), (begins[steps - end], begins[steps - first])][:directions]
        longest = max(stop - start for start, stop in ranges)
        sums = empty((directions, longest, cell.gates * units), dtype, stream)
        for d, (start, stop) in enumerate(ranges):
            weights, bias = part(layer.input, d, 1), flat(part(layer.bias, d, 1))
            multiply_rows(x, weights, bias, part(sums, d, 1), stop - start, start, 0, place)
        bases = (ranges[0][0], ranges[-1][0])
        given = (sums, bases, layer.recurrent, layer.apart_bias, layer.projection, h, c, exchange, middle, y, kept)
        make = functools.partial(recurrence, cell, dtype, projects=layer.projects, keeps=keeps)
        run_steps(make, layer.products, batch, directions, place, (*given, before, *tables), steps, first, end)
    return Record(x, kept, before)


def run_steps(
    make: Any,
    products: Products,
    batch: int,
    directions: int,
    place: Place,
    arguments: Sequence[Any],
    steps: int,
    begin: int,
    end: int,
) -> None:
    """Launch a recurrence, or the way back through it, over steps [begin, end): once for all steps, or once a step."""
    plan, kernel = _plan(make, products, batch, directions, place.index)
    places = tuple(tuple(int(n) for n in slice_) for slice_ in plan.places)
    for first in range(0, directions, plan.directions):
        grid = (plan.blocks, plan.directions)
        go = functools.partial(kernel.launch, place.index, grid, THREADS, place.stream, plan.shared_bytes, *arguments)
        if plan.persistent:
            go(first, steps, begin, end, 0, *places)
            continue
        for step in range(begin, end):
            for stage in range(2 if products.outputs[1] else 1):
                go(first, steps, step, step + 1, stage, *places)


def _plan(make: Any, products: Products, batch: int, directions: int, index: int) -> tuple[Plan, Kernel]:
    """Return the best plan whose blocks can run at once, if they have to, and its kernel."""
    plans = planning.choose(products, batch, directions, limits(index))
    for plan in plans:
        kernel: Kernel = make(rows=plan.rows, persistent=plan.persistent)
        blocks = plan.blocks * plan.directions
        if not plan.persistent or blocks <= kernel.most_cooperative_blocks(index, THREADS, plan.shared_bytes):
            return plan, kernel
    raise AssertionError("the last plan needs no meeting of blocks")


def steps_of(layout: SequenceLayout) -> int:
    """Return T, or how many steps the longest row has."""
    return layout.steps if layout.batch_sizes is None else int(np.count_nonzero(layout.batch_sizes))


def first_positions(layout: SequenceLayout) -> list[int]:
    """Return the position at which each step begins, and behind the last one where that ends."""
    if layout.packed and layout.batch_sizes is not None:
        return [0, *np.cumsum(layout.batch_sizes).tolist()]
    return [step * layout.batch for step in range(layout.steps + 1)]


def _kept_slots(layer: LayerWeights) -> int:
    return cell_functions(layer.cell, layer.input.dtype).kept + layer.projects


def drop_between(
    y: DeviceArray, layout: SequenceLayout, tables: Tables, layer: int, dropout: Dropout, place: Place
) -> None:
    """Apply dropout in place to what one layer hands to the next, contiguous, or to its gradient."""
    kept = 1.0 - dropout.p
    scale = y.dtype.type(1.0 / kept if kept > 0.0 else 0.0)
    base = np.uint64(0)
    with np.errstate(over="ignore"):
        for number in (dropout.seed, dropout.call, layer):
            base = mix.py_func(base, np.uint64(number))
    rows = strided(y, (positions_of(y), y.shape[2]), (y.shape[2] * y.dtype.itemsize, y.dtype.itemsize))
    grid, threads = steps_of(layout) * layout.batch, THREADS
    threshold = round(dropout.p * 2**32)
    arguments = (rows, *tables, layout.batch, base, threshold, scale)
    drop_units(y.dtype).launch(place.index, grid, threads, place.stream, 0, *arguments)


def multiply_rows(
    a: DeviceArray,
    b: DeviceArray,
    bias: DeviceArray,
    c: DeviceArray,
    rows: int,
    a_from: int,
    c_from: int,
    place: Place,
    positions: DeviceArray | None = None,
    adds: bool = False,
) -> None:
    """Set, or add to, c[p, n] the bias and the sum of a[p, k] b[0, k, n] over k; see `nblstm.cuda.products.product`."""
    tile = _tile(rows, int(c.shape[2]), place)
    grid = grid_of(tile, rows, int(c.shape[2]))
    positions = nothing(np.int64) if positions is None else positions
    arguments = (a, b, bias, c, positions, rows, a_from, c_from, adds)
    product(a.dtype, tile, False).launch(place.index, grid, tile.side**2, place.stream, 0, *arguments)


def _tile(rows: int, columns: int, place: Place) -> Tile:
    blocks, across = grid_of(LARGE, rows, columns)
    return LARGE if blocks * across >= limits(place.index).processors else SMALL


def grid_of(tile: Tile, rows: int, columns: int) -> tuple[int, int]:
    """Return how many tiles a result has."""
    return -(-rows // (tile.side * tile.m)), -(-columns // (tile.side * tile.n))


def fill(target: DeviceArray, place: Place) -> None:
    """Set an array (X, Y, Z) to zeros."""
    copy(target, strided(_zero(target.dtype, place.index), tuple(target.shape), (0, 0, 0)), place)


@functools.cache
def nothing(dtype: Any) -> DeviceArray:
    """Return an array of no elements."""
    # A null pointer, which is the same on all devices.
    return empty((0,), dtype, 0)


@functools.cache
def _zero(dtype: Any, index: int) -> DeviceArray:
    zero = upload(np.zeros(1, dtype), 0)
    synchronize(0)  # other calls read it on other streams
    return zero


def copy(target: DeviceArray, source: DeviceArray, place: Place) -> None:
    """Copy an array (X, Y, Z) of any strides to another one."""
    launch_flat(assign(target.dtype), place, int(target.size), target, source)


def launch_flat(kernel: Kernel, place: Place, count: int, *arguments: Any) -> None:
    """Launch a kernel whose threads share `count` elements, if there are any."""
    if count:
        blocks = min(-(-count // FLAT_THREADS), _FLAT_BLOCKS * limits(place.index).processors)
        kernel.launch(place.index, blocks, FLAT_THREADS, place.stream, 0, *arguments)


def part(array: DeviceArray, first: int, count: int) -> DeviceArray:
    """Return the entries [first, first + count) of the first axis of a contiguous array."""
    return strided(array, (count, *array.shape[1:]), tuple(array.strides), first * array.strides[0])


def flat(array: DeviceArray) -> DeviceArray:
    """Return a contiguous array as one axis."""
    return strided(array, (int(array.size),), (array.dtype.itemsize,))
