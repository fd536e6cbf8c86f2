"""The way back through a call, the mirror of `nblstm.engine.run`: from the last layer to the first one.

A layer goes back through a few steps at a time. First the gradients of the gates' sums, step by step from the end; then
what follows from them for all these steps at once: their share of the gradients of the weights, and of what went in. So
these gradients, 4H numbers a row, never lie in memory for more than some steps, and are read while they are in a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nblstm import threads
from nblstm.arrays import Array, address_of
from nblstm.engine import plan as planning
from nblstm.engine.packing import BackwardWeights, DirectionWeights
from nblstm.engine.plan import Plan
from nblstm.engine.products import WeightGradients, multiply_to_rows
from nblstm.engine.rows import RowOrder
from nblstm.engine.run import Dropout, LayerRecord, SequenceLayout, drop_between
from nblstm.engine.through_time import TapedLayer, ThroughTime
from nblstm.kernels.job import ROWS
from nblstm.kernels.weight_gradients import ROWS_AT_ONCE

# Of gradients of the gates' sums that lie in memory at once: they stay in the last cache but one or two. Not less than
# the rows of a chain, whatever they take.
_BYTES_AT_ONCE = 2 << 20


class DirectionGradients(NamedTuple):
    """Gradients of the parameters of one layer and direction, each shaped like its parameter."""

    w_ih: Array
    w_hh: Array
    b_ih: Array
    b_hh: Array
    w_hr: Array | None


class Tape(NamedTuple):
    """What one call leaves for the way back: all that `run_layers` was given and filled. Never written to."""

    weights: list[list[DirectionWeights]]
    packed: list[list[BackwardWeights]]
    x: Array
    layout: SequenceLayout
    initial: Sequence[Array | None]  # contiguous
    records: list[LayerRecord]
    dropout: Dropout | None


def run_backward(
    tape: Tape, dy: Array | None, d_states: Sequence[Array], wants_input: bool
) -> tuple[list[list[DirectionGradients]], Array | None]:
    """Return the gradients of all parameters, by layer and direction, and that of x, if it is wanted.

    dy        gradient of the output, shaped like it, dense in its last axis; None: zeros. What stands past the end of a
              row is not read
    d_states  inout  gradients of the last states, then of the initial ones; contiguous
    """
    layout, dropout = tape.layout, tape.dropout
    if layout.rows is not None and layout.batch_sizes is not None:
        longest = int(np.count_nonzero(layout.batch_sizes))
        layout = layout._replace(steps=longest, batch_sizes=layout.batch_sizes[:longest])
    drops = dropout if dropout is not None and dropout.p > 0 else None
    directions = len(tape.weights[0])
    found: list[list[DirectionGradients]] = []
    dx = None
    for number in reversed(range(len(tape.weights))):
        own = slice(number * directions, (number + 1) * directions)
        source = tape.x if number == 0 else tape.records[number - 1].h
        if drops is not None and number > 0:
            source = _valid_steps(source, layout).copy()
            drop_between(source, layout, 0, number - 1, drops)
        layer = TapedLayer(
            tape.weights[number],
            tape.packed[number],
            layout,
            source,
            tape.records[number],
            [None if state is None else state[own] for state in tape.initial],
        )
        dx = _fresh_gradient(source, layout, directions) if number > 0 or wants_input else None
        found.insert(0, _layer_gradients(layer, dy, [state[own] for state in d_states], dx))
        if drops is not None and number > 0 and dx is not None:
            drop_between(_valid_steps(dx, layout), layout, 0, number - 1, drops)
        dy = dx
    return found, dx


def _valid_steps(y: Array, layout: SequenceLayout) -> Array:
    """Return what a layer's output has up to the end of the longest row."""
    return y if layout.packed else y[: layout.steps]


def _fresh_gradient(x: Array, layout: SequenceLayout, directions: int) -> Array:
    """Return an array for the gradient of x; zeros where not every number of it will be set."""
    leaves_out = layout.batch_sizes is not None and not layout.packed
    return (np.zeros if leaves_out or directions > 1 else np.empty)(x.shape, x.dtype)


def _layer_gradients(
    layer: TapedLayer, dy: Array | None, d_states: Sequence[Array], dx: Array | None
) -> list[DirectionGradients]:
    """Take one layer back; `dx` is to be filled, the other arguments are those of `run_backward`."""
    plan = _plan(layer)
    order = RowOrder(layer.layout, plan.parts if plan.split == ROWS else 1)
    chunks = list(_chunks(order, layer.weights[0]))
    numbers = range(len(layer.weights))
    ranges = [order.rows_of(*chunk, number) for chunk in chunks for number in numbers]
    longest = max(end - begin for begin, end in ranges)
    back = ThroughTime(layer, plan, order, longest, dy, d_states)
    directions = [_Direction(layer, number, order, longest, dx) for number in numbers]
    for first, last in reversed(chunks):
        back.run(first, last)
        for number, direction in enumerate(directions):
            begin, end = order.rows_of(first, last, number)
            projected = back.projected[number]
            direction.add(begin, end, back.gradients[number], projected, ends=first == 0)
    return [direction.gradients for direction in directions]


def _chunks(order: RowOrder, weights: DirectionWeights) -> Iterator[tuple[int, int]]:
    """Cut the steps into ranges of nearly as many rows."""
    count, steps = int(order.begins[-1]), len(order.begins) - 1
    most = max(ROWS_AT_ONCE, _BYTES_AT_ONCE // (weights.gradient_size * weights.dtype.itemsize))
    rows = -(-count // -(-count // most))
    first = 0
    while first < steps:
        last = int(np.searchsorted(order.begins, order.begins[first] + rows, "right")) - 1
        last = min(max(last, first + 1), steps)
        yield first, last
        first = last


def _plan(layer: TapedLayer) -> Plan:
    """Return the plan of the steps."""
    directions, layout = len(layer.weights), layer.layout
    sizes = layer.weights[0], directions, layout.steps, layout.batch, layout.mean_rows
    plan = planning.choose(*sizes, threads.usable())
    return planning.choose(*sizes, 1) if planning.is_for_one_thread_now(plan) else plan


class _Direction:
    """What follows from the gradients of the gates' sums of one direction, summed over the chunks."""

    def __init__(self, layer: TapedLayer, number: int, order: RowOrder, rows: int, dx: Array | None) -> None:
        weights = layer.weights[number]
        self._weights, self._packed = weights, layer.packed[number]
        self._position, self._adds = order.positions(), len(layer.weights) > 1
        self._x_rows, self._x_item = order.addresses(layer.x), layer.x.strides[-1] // layer.x.itemsize
        self._first_h = layer.first_h(number)  # whose memory addresses lead to
        first_rows = address_of(self._first_h) + np.arange(len(self._first_h)) * self._first_h.strides[0]
        self._h_rows = order.addresses_before(layer.h(number), first_rows, number)
        self._dx_rows = None
        if dx is not None:
            self._dx_rows = np.empty(len(self._position), np.int64)
            self._dx_rows[self._position] = order.addresses(dx)
        cell, dtype = weights.cell, weights.dtype
        gates = {"slots": cell.gates + cell.apart, "slot_size": weights.padded_units, "units": weights.units}
        columns = {"inputs": weights.inputs, "x_item": self._x_item, "ones": 1, "outputs": weights.outputs}
        sizes = {**gates, **columns, "apart": int(cell.apart), "kept_size": 0}
        self._sums = WeightGradients(sizes, dtype, rows)
        matrix = cell.gates * weights.units
        w_hr = None
        if weights.projection_panels is not None:
            self._kept_rows = order.addresses(layer.record.kept) + number * layer.record.kept.strides[-3]
            outputs = {"slots": 1, "slot_size": weights.outputs, "units": weights.outputs}
            hidden = {"inputs": weights.units, "x_item": 1, "ones": 0, "outputs": 0, "recompute": 1}
            kept = {"apart": 0, "kept_size": weights.padded_units}
            self._projection_sums = WeightGradients({**outputs, **hidden, **kept}, dtype, rows)
            w_hr = np.empty((weights.outputs, weights.units), dtype)
        shapes = (matrix, weights.inputs), (matrix, weights.outputs), (matrix,), (matrix,)
        w_ih, w_hh, b_ih, b_hh = (np.empty(shape, dtype) for shape in shapes)
        self.gradients = DirectionGradients(w_ih, w_hh, b_ih, b_hh, w_hr)

    def add(self, begin: int, end: int, gradients: Array, projected: Array | None, ends: bool) -> None:
        """Add what follows from rows [begin, end), whose gradients are the first ones of these buffers."""
        position = self._position[begin:end] - begin
        found = self.gradients
        results = {"w_ih": found.w_ih, "w_hh": found.w_hh, "b_ih": found.b_ih, "b_hh": found.b_hh} if ends else None
        gradient_rows = address_of(gradients) + position * gradients.strides[0]
        self._sums.add(self._x_rows[begin:end], self._h_rows[begin:end], gradient_rows, results)
        if projected is not None and found.w_hr is not None:
            projected_rows = address_of(projected) + position * projected.strides[0]
            results = {"w_ih": found.w_hr} if ends else None
            self._projection_sums.add(self._kept_rows[begin:end], None, projected_rows, results)
        if self._dx_rows is not None:
            terms = self._weights.cell.gates * self._weights.padded_units
            panels, columns = self._packed.input_panels, self._weights.inputs
            rows = self._dx_rows[begin:end]
            multiply_to_rows(gradients[: end - begin], panels, terms, rows, columns, self._adds)
