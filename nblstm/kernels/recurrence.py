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

from nblstm.kernels.atomics import call_at
from nblstm.kernels.job import CELL_JOB, JOB, LAYERS, ROWS, UNITS, cell_job_at, job_at
from nblstm.kernels.matmul import FORWARDS, Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import address_at, itemsize_of, numbers_at, on_stack
from nblstm.kernels.policy import function, inlined, worker_calling
from nblstm.kernels.schedule import alive_rows, share, slots_before, step_of
from nblstm.kernels.simd import lanes_of
from nblstm.kernels.slices import begin_states, buffers_of, emit, fetch_rows, gather_inputs, keep_final, shares_of
from nblstm.kernels.tile import PANEL_VECTORS

_JOB_SIZE, _CELL_JOB_SIZE = JOB.itemsize, CELL_JOB.itemsize
# Elements of sums handled at once between product and cell: 16 KB of float32, half of a first-level cache.
SUMS_AT_ONCE = 4096
# Numba compiles a function anew for every literal it is called with; these are numbers like any other.
_ZERO, _ONE = np.int64(0), np.int64(1)


@function
def _panels_of(job, blocks):
    """Return how many panels the gates of the first `blocks` unit blocks fill, the last one perhaps in part."""
    return (min(blocks * job.gates, job.gate_vectors) + PANEL_VECTORS - 1) // PANEL_VECTORS


@inlined
def _advance(job, s, part, first_row, last_row, first_block, last_block, sums, inputs, h, c, m, cell_job):
    """Do step number s for some rows and unit blocks, up to h, or up to m where a projection follows.

    sums    scratch  where a block has several steps, it carries their projected inputs from the first to the last
    inputs  scratch  (block * rows, input_stride)
    h       inout    (2, B, h_stride): reads buffer s % 2, writes the other
    c       inout    (B, c_stride), where there is a cell state; else not touched
    m       out      (B, c_stride), where there is a projection; else not touched
    cell_job         scratch  address of a `CELL_JOB`, whose `job` is set
    """
    lanes, width = lanes_of(h), panel_width(h)
    input_weights, bias = numbers_at(job.input_weights, h), Panels(numbers_at(job.bias, h), _ZERO, width, _ZERO)
    recurrent_weights = numbers_at(job.recurrent_weights, h)
    t, vectors = step_of(job, s), job.gate_vectors
    alive = alive_rows(job, t, part, first_row, last_row)
    rows = alive - first_row
    first_panel, last_panel = _panels_of(job, first_block), _panels_of(job, last_block)
    panel_stride = (job.block * (last_row - first_row) if job.block > 1 else rows) * width
    begins = s - s % job.block
    x = Rows(inputs, _ZERO, job.input_stride)
    if s == begins:
        ends = min(begins + job.block, job.steps)
        slots = gather_inputs(job, begins, ends, part, first_row, last_row, inputs)
        if job.block > 1:
            projected = Panels(sums, -first_panel * panel_stride, panel_stride, width)
            panels = first_panel, last_panel
            multiply_add(slots, job.inputs, x, input_weights, *panels, bias, projected, FORWARDS, vectors)
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
    back = (s + job.turn) % 2 == 1
    for n in range(turns):
        block = first_block + (turns - 1 - n if back else n) * blocks_at_once
        end_block = min(block + blocks_at_once, last_block)
        panel, end_panel = _panels_of(job, block), _panels_of(job, end_block)
        # With one step a block, the sums of a few unit blocks fit the cache and are used before the next ones come.
        origin = first_panel if job.block > 1 else panel
        gates = Panels(sums, slot * width - origin * panel_stride, panel_stride, width)
        if job.block == 1:
            multiply_add(rows, job.inputs, x, input_weights, panel, end_panel, bias, gates, back, vectors)
        addend = recurrent = gates
        if job.recurrent_bias != 0:
            addend = Panels(numbers_at(job.recurrent_bias, h), _ZERO, width, _ZERO)
            recurrent = Panels(sums, job.recurrent_sums - panel * rows * width, rows * width, width)
        multiply_add(rows, job.outputs, h_before, recurrent_weights, panel, end_panel, addend, recurrent, back, vectors)
        cell = cell_job_at(cell_job)
        cell.t, cell.first_row, cell.rows, cell.first_block, cell.last_block = t, first_row, rows, block, end_block
        cell.sums, cell.sums_stride = address_at(sums, gates.start), gates.stride
        cell.recurrent_sums, cell.recurrent_stride = address_at(sums, recurrent.start), recurrent.stride
        cell.h_before, cell.h_before_stride = address_at(h, h_before.start), job.h_stride
        cell.h, cell.h_stride = address_at(out.array, out.start), out.stride
        cell.c, cell.c_stride = address_at(c, c_rows.start), job.c_stride
        cell.keep = 1 if job.kept != 0 else 0
        call_at(job.cell_worker, cell_job, 0, 0)
        if job.kept != 0:
            call_at(job.keeper, cell_job, 0, 0)
    first, last = first_block * lanes, min(last_block * lanes, job.units)
    if job.c_n != 0:
        keep_final(job, s, part, first_row, last_row, c_rows, job.c_n, job.units, first, last)
    if job.projection_weights == 0:
        emit(job, t, first_row, alive, h_after, first, last)
        keep_final(job, s, part, first_row, last_row, h_after, job.h_n, job.outputs, first, last)


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
    item = itemsize_of(like)
    h, c, m, sums = buffers_of(job, part, like)
    inputs_start = job.inputs_block + part * job.inputs_block_size
    inputs = numbers_at(job.workspace + inputs_start * item, like)
    row_part, row_parts, unit_part, unit_parts = shares_of(job, part)
    first_stage, last_stage = step, step + 1
    if job.split == ROWS:
        first_stage, last_stage = _ZERO, job.stages
    elif job.split == LAYERS:
        of_block = job.block * ((job.stages - 1) // job.steps)
        first_stage = max(_ZERO, step - piece) * of_block + (1 if step > piece else 0)
        last_stage = min(1 + (step - piece + 1) * of_block, job.stages) if step >= piece else _ZERO
    first_row, last_row = share(job.rows, row_part, row_parts)
    groups = (job.unit_blocks + job.unit_group - 1) // job.unit_group
    # Counted from the end, so that the last slices have one group more: the very last group may have less to do.
    after_last, after_first = share(groups, unit_parts - 1 - unit_part, unit_parts)
    first_block = (groups - after_first) * job.unit_group
    last_block = min((groups - after_last) * job.unit_group, job.unit_blocks)
    cell_job = on_stack(_CELL_JOB_SIZE)
    cell_job_at(cell_job).job = first_job + (piece // parts) * _JOB_SIZE
    for stage in range(first_stage, last_stage):
        if stage == 0:
            begin_first, begin_last = share(job.rows, part, parts)
            begin_states(job, begin_first, begin_last, h, c)
        elif job.projection_weights != 0 and stage % 2 == 0:
            call_at(job.projector, first_job, piece, stage // 2 - 1)
        else:
            s = stage - 1 if job.projection_weights == 0 else stage // 2
            _advance(job, s, row_part, first_row, last_row, first_block, last_block, sums, inputs, h, c, m, cell_job)


@worker_calling(product_float32)
def recurrence_float32(job, piece, step):
    """The worker for float32."""
    _slice(job, piece, step, np.float32(0))


@worker_calling(product_float64)
def recurrence_float64(job, piece, step):
    """The worker for float64."""
    _slice(job, piece, step, np.float64(0))
