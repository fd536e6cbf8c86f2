"""A recurrent layer through time: one worker that does a slice of a layer and direction, whole or step by step.

A slice is a range of rows of the batch, which runs through all steps on its own; a range of hidden units, which meets
the other slices after every step; or a whole layer of several, which is a block of steps behind the layer before it.
Serial execution is one slice of all rows. For each block of steps

    sums[s, r] = bias + x[t, r] W_ih             as one product of many rows
    sums[s, r] += h[t - 1, r] W_hh               step by step
    h[t, r], c[t, r] = cell(sums[s, r], h[t - 1, r], c[t - 1, r])

so that W_ih is read once a block and the workspace does not grow with T. A cell may want the recurrent sums apart
(nblstm.kernels.cells). The rows of a slice are sorted by length, longest first: those alive at a step are a prefix. The
order of each sum depends on how many terms it has, on nothing else (nblstm.kernels.tile).

Every buffer is described in nblstm.kernels.job. Workers may run at the same time on different slices.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.cells import apply_cell
from nblstm.kernels.job import JOB, LAYERS, ROWS, UNITS, job_at
from nblstm.kernels.matmul import FORWARDS, Panels, Rows, multiply_add, panel_vector, panel_width
from nblstm.kernels.policy import LINE, function, inlined, worker
from nblstm.kernels.schedule import alive_rows, copy_numbers, entry_of, share, slots_before, step_of
from nblstm.kernels.simd import array_at, fetch_ahead, lanes_of, load, normal_or_zero, store
from nblstm.kernels.tile import PANEL_VECTORS

_JOB_SIZE = JOB.itemsize
# Elements of sums handled at once between product and cell: 16 KB of float32, half of a first-level cache.
SUMS_AT_ONCE = 4096
_FETCH_BYTES = 16384
# Numba compiles a function anew for every literal it is called with; these are numbers like any other.
_ZERO, _ONE = np.int64(0), np.int64(1)


@function
def fetch_rows(state, rows, columns):
    """Ask for what other slices wrote, which lies in their cores' caches.

    One by one, as the product reads them, each line would be waited for: 5 % of a step at H = 256, 15 % at H = 128, one
    row. With more rows than half of the first-level cache holds the product has other work in the meantime.
    """
    if rows * columns * state.array.itemsize <= _FETCH_BYTES:
        for row in range(rows):
            for column in range(0, columns, LINE // state.array.itemsize):
                fetch_ahead(state.array, state.start + row * state.stride + column)


@function
def _panels_of(blocks, gates):
    """Return how many panels the gates of the first `blocks` unit blocks fill, the last one perhaps in part."""
    return (blocks * gates + PANEL_VECTORS - 1) // PANEL_VECTORS


@function
def _gather_inputs(job, first, last, part, first_row, last_row, inputs):
    """Copy the input rows of the steps number first to last - 1 into `inputs`, one after another; return how many.

    inputs  out  (block * rows, input_stride)
    """
    slot = 0
    for s in range(first, last):
        t = step_of(job, s)
        start = entry_of(job.starts, t) * job.x_step
        for row in range(first_row, alive_rows(job, t, part, first_row, last_row)):
            source = job.x + (start + entry_of(job.x_rows, row) * job.x_row) * inputs.itemsize
            into = slot * job.input_stride
            if job.x_item == 1:
                copy_numbers(array_at(source, job.inputs, inputs), _ZERO, inputs, into, job.inputs)
            else:  # one address at a time: a negative index would count from the end of an array
                for i in range(job.inputs):
                    inputs[into + i] = array_at(source + i * job.x_item * inputs.itemsize, 1, inputs)[0]
            slot += 1
    return slot


@function
def _emit(job, t, first_row, last_row, h, first, last):
    """Write columns [first, last) of h, whose row 0 is first_row of the batch, to the output of step t."""
    start = entry_of(job.starts, t) * job.y_step
    for row in range(first_row, last_row):
        address = job.y + (start + entry_of(job.x_rows, row) * job.y_row) * h.array.itemsize
        source = h.start + (row - first_row) * h.stride + first
        copy_numbers(h.array, source, array_at(address, last, h.array), first, last - first)


@function
def _keep_final(job, s, part, first_row, last_row, state, target, columns, first, last):
    """Write columns [first, last) of the state to h_n or c_n at `target`, for the rows whose last step is number s.

    state  in  Rows, whose row 0 is first_row of the batch
    """
    staying = first_row
    if s + 1 < job.steps:
        staying = alive_rows(job, step_of(job, s + 1), part, first_row, last_row)
    for row in range(staying, alive_rows(job, step_of(job, s), part, first_row, last_row)):
        address = target + entry_of(job.state_rows, row) * columns * state.array.itemsize
        source = state.start + (row - first_row) * state.stride + first
        copy_numbers(state.array, source, array_at(address, last, state.array), first, last - first)


@function
def _keep(job, t, first_row, rows, first_block, last_block, sums, recurrent_sums, c):
    """Write the gates, the recurrent sums that stayed apart, and c to the slots of step t.

    sums, recurrent_sums  in  Panels, and c  in  Rows: as the cell left them
    """
    lanes, gates = lanes_of(sums.array), job.gates
    size = job.unit_blocks * lanes
    apart = 0 if job.recurrent_bias == 0 else 1
    slots = gates + apart + (0 if job.c_n == 0 else 1)
    start = entry_of(job.starts, t) * job.kept_step
    for row in range(rows):
        place = start + entry_of(job.x_rows, first_row + row) * job.kept_row
        kept = array_at(job.kept + place * sums.array.itemsize, slots * size, sums.array)
        for block in range(first_block, last_block):
            for gate in range(gates):
                value = load(sums.array, panel_vector(sums, block * gates + gate, row))
                store(kept, gate * size + block * lanes, value)
            if apart:
                value = load(recurrent_sums.array, panel_vector(recurrent_sums, block * gates + gates - 1, row))
                store(kept, gates * size + block * lanes, value)
            if job.c_n != 0:
                store(kept, (slots - 1) * size + block * lanes, load(c.array, c.start + row * c.stride + block * lanes))


@function
def _set_initial(job, initial, columns, first_row, last_row, state):
    """Set rows [first_row, last_row) of the state of the whole batch to those at `initial`; padding to zeros.

    state  out  Rows
    """
    for row in range(first_row, last_row):
        into = state.start + row * state.stride
        for column in range(columns, state.stride):
            state.array[into + column] = 0
        address = initial + entry_of(job.state_rows, row) * columns * state.array.itemsize
        copy_numbers(array_at(address, columns, state.array), _ZERO, state.array, into, columns)


@function
def _begin(job, first_row, last_row, h, c):
    """Set both h buffers (rows of shorter sequences join the reverse direction at any step) and c."""
    for buffer in range(2):
        rows = Rows(h, buffer * job.rows * job.h_stride, job.h_stride)
        _set_initial(job, job.h_n, job.outputs, first_row, last_row, rows)
    if job.c_n != 0:
        _set_initial(job, job.c_n, job.units, first_row, last_row, Rows(c, _ZERO, job.c_stride))


@inlined
def _advance(job, s, part, first_row, last_row, first_block, last_block, sums, inputs, h, c, m):
    """Do step number s for some rows and unit blocks, up to h, or up to m where a projection follows.

    sums    scratch  where a block has several steps, it carries their projected inputs from the first to the last
    inputs  scratch  (block * rows, input_stride)
    h       inout    (2, B, h_stride): reads buffer s % 2, writes the other
    c       inout    (B, c_stride), where there is a cell state; else not touched
    m       out      (B, c_stride), where there is a projection; else not touched
    """
    lanes, width = lanes_of(h), panel_width(h)
    input_weights, bias = array_at(job.input_weights, 1, h), Panels(array_at(job.bias, 1, h), _ZERO, width, _ZERO)
    recurrent_weights = array_at(job.recurrent_weights, 1, h)
    t = step_of(job, s)
    alive = alive_rows(job, t, part, first_row, last_row)
    rows = alive - first_row
    first_panel, last_panel = _panels_of(first_block, job.gates), _panels_of(last_block, job.gates)
    panel_stride = (job.block * (last_row - first_row) if job.block > 1 else rows) * width
    begins = s - s % job.block
    x = Rows(inputs, _ZERO, job.input_stride)
    if s == begins:
        ends = min(begins + job.block, job.steps)
        slots = _gather_inputs(job, begins, ends, part, first_row, last_row, inputs)
        if job.block > 1:
            projected = Panels(sums, -first_panel * panel_stride, panel_stride, width)
            multiply_add(slots, job.inputs, x, input_weights, first_panel, last_panel, bias, projected, FORWARDS)
    h_before = Rows(h, ((s % 2) * job.rows + first_row) * job.h_stride, job.h_stride)
    h_after = Rows(h, ((1 - s % 2) * job.rows + first_row) * job.h_stride, job.h_stride)
    c_rows = Rows(c, first_row * job.c_stride, job.c_stride)
    out = h_after if job.projection_weights == 0 else Rows(m, first_row * job.c_stride, job.c_stride)
    if job.split == UNITS:
        fetch_rows(h_before, rows, job.outputs)
    slot = slots_before(job, begins, s, part, first_row, last_row)
    groups_at_once = max(1, SUMS_AT_ONCE // (job.gates * job.unit_group * lanes * max(rows, 1)))
    blocks_at_once = groups_at_once * job.unit_group
    turns = (last_block - first_block + blocks_at_once - 1) // blocks_at_once
    # To and fro on alternate steps: the weights that end a step are still in the cache when the next one begins.
    back = s % 2 == 1
    for n in range(turns):
        block = first_block + (turns - 1 - n if back else n) * blocks_at_once
        end_block = min(block + blocks_at_once, last_block)
        panel, end_panel = _panels_of(block, job.gates), _panels_of(end_block, job.gates)
        # With one step a block, the sums of a few unit blocks fit the cache and are used before the next ones come.
        origin = first_panel if job.block > 1 else panel
        gates = Panels(sums, slot * width - origin * panel_stride, panel_stride, width)
        if job.block == 1:
            multiply_add(rows, job.inputs, x, input_weights, panel, end_panel, bias, gates, back)
        addend = recurrent = gates
        if job.recurrent_bias != 0:
            addend = Panels(array_at(job.recurrent_bias, 1, h), _ZERO, width, _ZERO)
            recurrent = Panels(sums, job.recurrent_sums - panel * rows * width, rows * width, width)
        multiply_add(rows, job.outputs, h_before, recurrent_weights, panel, end_panel, addend, recurrent, back)
        apply_cell(job.cell, gates, recurrent, block, end_block, rows, h_before, out, c_rows, job.kept != 0)
        if job.kept != 0:
            _keep(job, t, first_row, rows, block, end_block, gates, recurrent, c_rows)
    first, last = first_block * lanes, min(last_block * lanes, job.units)
    if job.c_n != 0:
        _keep_final(job, s, part, first_row, last_row, c_rows, job.c_n, job.units, first, last)
    if job.projection_weights == 0:
        _emit(job, t, first_row, alive, h_after, first, last)
        _keep_final(job, s, part, first_row, last_row, h_after, job.h_n, job.outputs, first, last)


@inlined
def _project(job, s, part, first_row, last_row, first_panel, last_panel, sums, h, m):
    """Do the second half of step number s where there is a projection: h = W_hr m, for panels of its outputs.

    sums  scratch  (panels, rows, width) from `products` on: the projected inputs before it are still needed
    """
    width = panel_width(h)
    t = step_of(job, s)
    alive = alive_rows(job, t, part, first_row, last_row)
    rows = alive - first_row
    size = rows * width
    for i in range((last_panel - first_panel) * size):
        sums[job.products + i] = 0
    products = Panels(sums, job.products - first_panel * size, size, width)
    m_rows = Rows(m, first_row * job.c_stride, job.c_stride)
    if job.split == UNITS:
        fetch_rows(m_rows, rows, job.units)
    weights = array_at(job.projection_weights, 1, h)
    multiply_add(rows, job.units, m_rows, weights, first_panel, last_panel, products, products, s % 2 == 1)
    for i in range(job.products, job.products + (last_panel - first_panel) * size, lanes_of(h)):
        store(sums, i, normal_or_zero(load(sums, i)))
    h_after = Rows(h, ((1 - s % 2) * job.rows + first_row) * job.h_stride, job.h_stride)
    for panel in range(first_panel, last_panel):
        count = min(width, job.outputs - panel * width)
        for row in range(rows):
            source = products.start + panel * size + row * width
            copy_numbers(sums, source, h, h_after.start + row * h_after.stride + panel * width, count)
    first, last = first_panel * width, min(last_panel * width, job.outputs)
    _emit(job, t, first_row, alive, h_after, first, last)
    _keep_final(job, s, part, first_row, last_row, h_after, job.h_n, job.outputs, first, last)


@function
def _slice(first_job, piece, step, like):
    """Do slice number `piece` of a call: direction, or layer, piece // parts, part piece % parts.

    Stage 0 sets the states; then every step of the sequence is a stage, or two with a projection. A slice of rows goes
    through all stages in one step of the team, a slice of units through one stage a step, a layer through those of a
    block of steps, the first one from the team's first step on, the second from its second.
    """
    parts = job_at(first_job).parts
    job = job_at(first_job + (piece // parts) * _JOB_SIZE)
    part = piece % parts
    item = array_at(job.workspace, 1, like).itemsize
    h = array_at(job.workspace + job.h * item, 2 * job.rows * job.h_stride, like)
    c = array_at(job.workspace + job.c * item, job.rows * job.c_stride, like)
    m = array_at(job.workspace + job.m * item, job.rows * job.c_stride, like)
    sums = array_at(job.workspace + (job.sums + part * job.sums_size) * item, job.sums_size, like)
    inputs_start = job.inputs_block + part * job.inputs_block_size
    inputs = array_at(job.workspace + inputs_start * item, job.inputs_block_size, like)
    row_part, row_parts, unit_part, unit_parts = _ZERO, _ONE, part, parts
    first_stage, last_stage = step, step + 1
    if job.split == ROWS:
        row_part, row_parts, unit_part, unit_parts = part, parts, _ZERO, _ONE
        first_stage, last_stage = _ZERO, job.stages
    elif job.split == LAYERS:
        of_block = job.block * ((job.stages - 1) // job.steps)
        first_stage = max(_ZERO, step - piece) * of_block + (1 if step > piece else 0)
        last_stage = min(1 + (step - piece + 1) * of_block, job.stages) if step >= piece else _ZERO
    first_row, last_row = share(job.rows, row_part, row_parts)
    groups = (job.unit_blocks + job.unit_group - 1) // job.unit_group
    first_group, last_group = share(groups, unit_part, unit_parts)
    first_block, last_block = first_group * job.unit_group, min(last_group * job.unit_group, job.unit_blocks)
    panels = (job.outputs + panel_width(h) - 1) // panel_width(h)
    first_panel, last_panel = share(panels, unit_part, unit_parts)
    for stage in range(first_stage, last_stage):
        if stage == 0:
            begin_first, begin_last = share(job.rows, part, parts)
            _begin(job, begin_first, begin_last, h, c)
        elif job.projection_weights != 0 and stage % 2 == 0:
            _project(job, stage // 2 - 1, row_part, first_row, last_row, first_panel, last_panel, sums, h, m)
        else:
            s = stage - 1 if job.projection_weights == 0 else stage // 2
            _advance(job, s, row_part, first_row, last_row, first_block, last_block, sums, inputs, h, c, m)


@worker
def recurrence_float32(job, piece, step):
    """The worker for float32."""
    _slice(job, piece, step, np.float32(0))


@worker
def recurrence_float64(job, piece, step):
    """The worker for float64."""
    _slice(job, piece, step, np.float64(0))
