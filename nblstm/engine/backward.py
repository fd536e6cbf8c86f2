"""The way back through a call, the mirror of `nblstm.engine.run`: from the last layer to the first one.

For each layer first the gradients of the gates' sums, step by step from the end; then what follows from them for all
steps at once: the gradients of the weights, and of what went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nblstm import threads
from nblstm.arrays import Array, address_of
from nblstm.engine import plan as planning
from nblstm.engine import products
from nblstm.engine.packing import BackwardWeights, DirectionWeights, aligned_empty
from nblstm.engine.plan import Plan
from nblstm.engine.products import RowOrder
from nblstm.engine.run import Dropout, LayerRecord, SequenceLayout, drop_between, row_tables
from nblstm.kernels import team
from nblstm.kernels.backprop import backward_float32, backward_float64
from nblstm.kernels.job import BACKWARD_FIELDS, ROWS
from nblstm.kernels.policy import LINE, lanes
from nblstm.kernels.tile import PANEL_VECTORS

_CALL_FIELDS = ("starts", "batch_sizes", "x_rows", "state_rows")


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
    tape: Tape, dy: Array | None, d_states: Sequence[Array], dx: Array | None
) -> list[list[DirectionGradients]]:
    """Return the gradients of all parameters, by layer and direction.

    dy        gradient of the output, shaped like it, dense in its last axis; None: zeros. What stands past the end of a
              row is not read
    d_states  inout  gradients of the last states, then of the initial ones; contiguous
    dx        out    gradient of x, shaped like it, with dense rows; zeros at first. None: not asked for
    """
    layout, dropout = tape.layout, tape.dropout
    if layout.rows is not None and layout.batch_sizes is not None:
        longest = int(np.count_nonzero(layout.batch_sizes))
        layout = layout._replace(steps=longest, batch_sizes=layout.batch_sizes[:longest])
    drops = dropout is not None and dropout.p > 0
    directions = len(tape.weights[0])
    found: list[list[DirectionGradients]] = []
    for number in reversed(range(len(tape.weights))):
        own = slice(number * directions, (number + 1) * directions)
        source, below = tape.x, dx
        if number > 0:
            source = tape.records[number - 1].h
            below = np.zeros(source.shape, source.dtype)
            if dropout is not None and drops:
                source = source.copy()
                drop_between(source, layout, 0, number - 1, dropout)
        part = _Layer(
            tape.weights[number],
            tape.packed[number],
            layout,
            source,
            tape.records[number],
            [None if state is None else state[own] for state in tape.initial],
        )
        found.insert(0, _layer_gradients(part, dy, [state[own] for state in d_states], below))
        if number > 0 and below is not None and dropout is not None and drops:
            drop_between(below, layout, 0, number - 1, dropout)
        dy = below
    return found


class _Layer(NamedTuple):
    """The part of a tape that belongs to one layer in all its directions."""

    weights: list[DirectionWeights]
    packed: list[BackwardWeights]
    layout: SequenceLayout
    x: Array
    record: LayerRecord
    initial: Sequence[Array | None]


def _layer_gradients(
    layer: _Layer, dy: Array | None, d_states: Sequence[Array], dx: Array | None
) -> list[DirectionGradients]:
    """Take one layer back; the arguments are those of `run_backward`."""
    first, layout = layer.weights[0], layer.layout
    plan, workers = _plan(layer)
    order = RowOrder.of(layout, plan.parts if plan.split == ROWS else 1)
    count, width = len(order.position), PANEL_VECTORS * lanes(first.dtype.itemsize)
    # A panel's width more: the last row's last panel is read as a whole.
    gradients = [_with_zeros_behind(count * first.gradient_size, width, first.dtype) for _ in layer.weights]
    kept_outputs = 0 if first.projection_panels is None else first.outputs
    projected = [_with_zeros_behind(count * kept_outputs, width, first.dtype) for _ in layer.weights]
    _through_time(layer, plan, order, dy, d_states, gradients, projected)
    found = []
    for direction, weights in enumerate(layer.weights):
        part = products.Part(weights, layout, order, gradients[direction], workers)
        w_ih, b_ih = products.input_weights(part, layer.x)
        w_hh, b_hh = products.recurrent_weights(part, layer.record.h, layer.initial[0], direction)
        w_hr = None
        if weights.projection_panels is not None:
            w_hr = products.projection_weights(part, layer.record.kept, projected[direction], direction)
        found.append(DirectionGradients(w_ih, w_hh, b_ih, b_hh, w_hr))
        if dx is not None:
            products.input_gradient(part, layer.packed[direction], dx, adds=direction > 0)
    return found


def _plan(layer: _Layer) -> tuple[Plan, int]:
    """Return the plan of the steps, and how many threads the products have."""
    first, layout, count = layer.weights[0], layer.layout, threads.get_num_threads()
    sizes = len(layer.weights), layout.steps, layout.batch, layout.mean_rows
    plan = planning.choose(first, *sizes, count)
    usable = count if count == 1 else min(count, threads.usable())
    if plan.threads > usable:
        plan = planning.choose(first, *sizes, usable)
    return plan, usable


def _with_zeros_behind(count: int, width: int, dtype: np.dtype[Any]) -> Array:
    array = aligned_empty(count + width, dtype)
    array[count:] = 0
    return array


def _through_time(
    layer: _Layer,
    plan: Plan,
    order: RowOrder,
    dy: Array | None,
    d_states: Sequence[Array],
    gradients: list[Array],
    projected: list[Array],
) -> None:
    """Run the steps: fill `gradients` and, with a projection, `projected`; `d_states` go from last to initial."""
    first, layout = layer.weights[0], layer.layout
    workspace, size = _workspace(first, plan, layout.batch)
    item = first.dtype.itemsize
    scratch = aligned_empty(len(layer.weights) * size, first.dtype)
    halves = 1 if first.projection_panels is None else 2
    stages = 2 + halves * layout.steps
    tables = row_tables(layout, plan.parts if plan.split == ROWS else 1)
    fields: dict[str, Any] = {
        "steps": layout.steps,
        "rows": layout.batch,
        "units": first.units,
        "outputs": first.outputs,
        "cell": first.cell.code,
        "unit_blocks": first.unit_blocks,
        "unit_group": PANEL_VECTORS,
        "split": plan.split,
        "parts": plan.parts,
        "stages": stages,
        "needs_before": int(first.cell.has_cell_state or first.cell.apart),
        "zeros": address_of(products.ZEROS),
        "recurrent_slot": int(first.cell.apart),
        "recurrent_slots": first.cell.gates,
        "slots": first.cell.gates + first.cell.apart,
        "kept_slots": first.kept_slots,
        **workspace,
        **dict(zip(_CALL_FIELDS, (0 if table is None else address_of(table) for table in tables), strict=True)),
        "gradient_starts": address_of(order.starts),
        **_steps("dy", dy, layout),
        **_steps("y", layer.record.h, layout),
        **_steps("kept", layer.record.kept, layout),
    }
    jobs = np.zeros((len(layer.weights), len(BACKWARD_FIELDS)), np.int64)
    h_0, c_0 = (*layer.initial, None)[:2]
    d_h, d_c = (*d_states, None)[:2]
    for direction, (weights, packed) in enumerate(zip(layer.weights, layer.packed, strict=True)):
        own = {
            "recurrent_weights": address_of(packed.recurrent_panels),
            "projection_weights": _address(packed.projection_panels),
            "reverse": direction,
            "workspace": address_of(scratch) + direction * size * item,
            "dy": _address(dy, direction * weights.outputs * item),
            "y": _address(layer.record.h, direction * weights.outputs * item),
            "kept": _address(layer.record.kept, direction * layer.record.kept.strides[-3]),
            "h_0": _direction_of(h_0, direction),
            "c_0": _direction_of(c_0, direction),
            "d_h": _direction_of(d_h, direction),
            "d_c": _direction_of(d_c, direction),
            "gradients": address_of(gradients[direction]),
            "d_projected": address_of(projected[direction]),
        }
        jobs[direction] = [{**fields, **own}[name] for name in BACKWARD_FIELDS]
    worker = backward_float32 if first.dtype == np.float32 else backward_float64
    steps = 1 if plan.split == ROWS else stages
    team.run(worker.address, address_of(jobs), len(layer.weights) * plan.parts, steps, plan.threads)


def _workspace(weights: DirectionWeights, plan: Plan, batch: int) -> tuple[dict[str, int], int]:
    """Return where the buffers of one direction begin, with their sizes and strides in elements, and their sum."""
    line = LINE // weights.dtype.itemsize
    width = PANEL_VECTORS * lanes(weights.dtype.itemsize)

    def stride(count: int) -> int:
        return (-(-(-(-count // width) * width) // line) | 1) * line  # whole panels, an odd number of lines

    c_stride, h_stride = stride(weights.units), stride(weights.outputs)
    slice_rows = -(-batch // plan.parts) if plan.split == ROWS else batch
    products_size = slice_rows * -(-weights.outputs // width) * width
    sizes = {
        "h_before": plan.parts * c_stride,
        "products": plan.parts * products_size,
        "dh": batch * h_stride,
        "dm": batch * c_stride,
        "dc": batch * c_stride,
    }
    starts = np.cumsum([0, *sizes.values()])
    places = {name: int(start) for name, start in zip(sizes, starts, strict=False)}
    return {**places, "products_size": products_size, "h_stride": h_stride, "c_stride": c_stride}, int(starts[-1])


def _steps(name: str, array: Array | None, layout: SequenceLayout) -> dict[str, int]:
    """Return the fields that say how far a step and a row of x or y are from the next."""
    if array is None:
        return {f"{name}_step": 0, f"{name}_row": 0}
    step, row = array.strides[0] // array.itemsize, array.strides[0 if layout.packed else 1] // array.itemsize
    return {f"{name}_step": step, f"{name}_row": row}


def _address(array: Array | None, offset: int = 0) -> int:
    return 0 if array is None else address_of(array) + offset


def _direction_of(states: Array | None, direction: int) -> int:
    return 0 if states is None else address_of(states) + direction * states.strides[0]
