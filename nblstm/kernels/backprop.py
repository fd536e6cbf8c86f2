"""Backpropagation through time: the one part of it that goes step by step.

For each step from the last one back, with the gates' gradients G, those of a cell's sums (nblstm.kernels.cells),

    dh[t, r] = d_output[t, r] + G[t + 1, r] W_hh         (and what goes from h to h past the sums)
    G[t, r], dc[t - 1, r] = back(dh[t, r], dc[t, r])     with a projection of W_hr^T dh[t, r]

All that does not wait for the step after it follows from G as products over many rows at once: nblstm.kernels.products
has that of x, nblstm.kernels.weight_gradients those of the weights. Slices, stages and rows are like those of
nblstm.kernels.recurrence; every buffer is described in nblstm.kernels.job.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.cells import back_through_cell
from nblstm.kernels.job import BACKWARD_JOB, ROWS, UNITS, backward_job_at
from nblstm.kernels.matmul import Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, inlined, worker_calling
from nblstm.kernels.schedule import add_numbers, alive_rows, copy_numbers, entry_of, share, step_of
from nblstm.kernels.simd import lanes_of
from nblstm.kernels.slices import fetch_rows

_JOB_SIZE = BACKWARD_JOB.itemsize
_ZERO, _ONE = np.int64(0), np.int64(1)


@function
def _row_at(job, address, columns, row, like):
    """Return the array of `row` of a contiguous state of all rows at `address`."""
    return numbers_at(address + entry_of(job.state_rows, row) * columns * itemsize_of(like), like)


@function
def _set_rows(job, source, columns, first_row, last_row, target):
    """Set rows of the target to the state at `source`; padding to zeros."""
    for row in range(first_row, last_row):
        into = target.start + row * target.stride
        for column in range(columns, target.stride):
            target.array[into + column] = 0
        copy_numbers(_row_at(job, source, columns, row, target.array), _ZERO, target.array, into, columns)


@function
def _write_rows(job, source, target, columns, first_row, last_row, first, last):
    """Write columns [first, last) of rows of the source to the state at `target`."""
    for row in range(first_row, last_row):
        into = _row_at(job, target, columns, row, source.array)
        copy_numbers(source.array, source.start + row * source.stride + first, into, first, last - first)


@function
def _gradients_at(job, part, t, like):
    """Return the address of the gradients of a slice's first row at step t."""
    start = entry_of(job.gradient_starts, part * job.steps + t)
    return job.gradients + start * job.gradients_stride * itemsize_of(like)


@function
def _padded(job, like):
    return job.unit_blocks * lanes_of(like)


@inlined
def _take_output(job, s, part, first_row, last_row, first, last, dh):
    """Begin the gradient of h of step number s, in columns [first, last) of dh, with that of the output.

    Where a row has been through the step after, what stands there is that step's, unless part of it passes on from h to
    h; the product with the gates' gradients comes next. In the reverse direction some of these rows begin with that
    step, and have no output here.
    """
    t, item = step_of(job, s), itemsize_of(dh.array)
    rows = alive_rows(job, t, part, first_row, last_row) if s >= 0 else first_row  # before the first: no output
    used = first_row
    if s + 1 < job.steps and job.recurrent_slot == 0:
        used = alive_rows(job, step_of(job, s + 1), part, first_row, last_row)
    start = entry_of(job.starts, t) * job.dy_step if s >= 0 else _ZERO
    for row in range(first_row, max(rows, used)):
        into = dh.start + row * dh.stride + first
        if job.dy == 0 or row >= rows:
            for i in range(last - first if row < used else _ZERO):
                dh.array[into + i] = 0
            continue
        dy = numbers_at(job.dy + (start + entry_of(job.x_rows, row) * job.dy_row) * item, dh.array)
        if row < used:
            copy_numbers(dy, first, dh.array, into, last - first)
        else:
            add_numbers(dy, first, dh.array, into, last - first)


@inlined
def _through_step(job, s, part, first_row, last_row, first_panel, last_panel, dh):
    """Add what comes from the gates' gradients of step number s to panels of dh, the gradient of h before it."""
    t = step_of(job, s)
    rows = alive_rows(job, t, part, first_row, last_row) - first_row
    terms = job.recurrent_slots * _padded(job, dh.array)
    source = numbers_at(_gradients_at(job, part, t, dh.array), dh.array)
    gradients = Rows(source, job.recurrent_slot * _padded(job, dh.array), job.gradients_stride)
    if job.split == UNITS:
        fetch_rows(gradients, rows, terms)
    sums = Panels(dh.array, dh.start + first_row * dh.stride, panel_width(dh.array), dh.stride)
    weights = numbers_at(job.recurrent_weights, dh.array)
    multiply_add(rows, terms, gradients, weights, first_panel, last_panel, sums, sums, s % 2 == 1)


@function
def _before(job, s, row, rows_before, h_before, like):
    """Return c, of a GRU h, of the step before step number s of a row: whole vectors, in `h_before` if need be."""
    lanes, item = lanes_of(like), itemsize_of(like)
    padded = job.unit_blocks * lanes
    known = s > 0 and row < rows_before
    earlier = step_of(job, s - 1)
    start = entry_of(job.starts, earlier)
    place = entry_of(job.x_rows, row)
    if job.d_c != 0:
        if known:
            kept = job.kept + (start * job.kept_step + place * job.kept_row + (job.kept_slots - 1) * padded) * item
            return numbers_at(kept, like)
        source = job.c_0
    else:
        source = job.h_0
        if known:
            source = job.y + (start * job.y_step + place * job.y_row) * item
    for i in range(job.units if source != 0 else 0, padded):  # the padding too: it meets gradients that are zero
        h_before[i] = 0
    if source == 0:
        return h_before
    if not known:
        source += entry_of(job.state_rows, row) * job.units * item
    copy_numbers(numbers_at(source, like), _ZERO, h_before, _ZERO, job.units)
    return h_before


@inlined
def _through_cell(job, s, part, first_row, last_row, first_block, last_block, d_hidden, dc, h_before):
    """Take rows and unit blocks back through the cell of step number s."""
    t, item, padded = step_of(job, s), itemsize_of(dc.array), _padded(job, dc.array)
    rows = alive_rows(job, t, part, first_row, last_row)
    rows_before = alive_rows(job, step_of(job, s - 1), part, first_row, last_row) if s > 0 else first_row
    start = entry_of(job.starts, t) * job.kept_step
    gradients_start = _gradients_at(job, part, t, dc.array)
    for row in range(first_row, rows):
        kept_at = job.kept + (start + entry_of(job.x_rows, row) * job.kept_row) * item
        kept = numbers_at(kept_at, dc.array)
        gradients_at = gradients_start + (row - first_row) * job.gradients_stride * item
        gradients = numbers_at(gradients_at, dc.array)
        before = h_before
        if job.needs_before != 0:
            before = _before(job, s, row, rows_before, h_before, dc.array)
        row_dh = Rows(d_hidden.array, d_hidden.start + row * d_hidden.stride, d_hidden.stride)
        row_dc = Rows(dc.array, dc.start + row * dc.stride, dc.stride)
        back_through_cell(
            job.cell, kept, before, gradients, row_dh, row_dc, padded, job.slots, job.units, first_block, last_block
        )


@inlined
def _through_projection(job, s, part, first_row, last_row, first_panel, last_panel, dh, dm):
    """Set panels of dm to W_hr^T dh at step number s."""
    width, t = panel_width(dh.array), step_of(job, s)
    rows = alive_rows(job, t, part, first_row, last_row) - first_row
    own = Rows(dh.array, dh.start + first_row * dh.stride, dh.stride)
    if job.split == UNITS:
        fetch_rows(own, rows, job.outputs)
    sums = Panels(dm.array, dm.start + first_row * dm.stride, width, dm.stride)
    nothing = Panels(numbers_at(job.zeros, dh.array), _ZERO, _ZERO, _ZERO)
    weights = numbers_at(job.projection_weights, dh.array)
    multiply_add(rows, job.outputs, own, weights, first_panel, last_panel, nothing, sums, s % 2 == 1)


@inlined
def _record_projected(job, s, part, first_row, last_row, first, last, dh):
    """Keep columns [first, last) of dh at step number s, for the gradient of W_hr."""
    t = step_of(job, s)
    start = entry_of(job.gradient_starts, part * job.steps + t)
    for row in range(first_row, alive_rows(job, t, part, first_row, last_row)):
        address = job.d_projected + (start + row - first_row) * job.projected_stride * itemsize_of(dh.array)
        into = numbers_at(address, dh.array)
        copy_numbers(dh.array, dh.start + row * dh.stride + first, into, first, last - first)


@function
def _backward_slice(first_job, piece, step, like):
    """Do slice number `piece`: direction piece // parts, part piece % parts.

    Stage 0 sets dh and dc; stage 1 begins the last step; every further one ends a step and begins the one before. With
    a projection each of them has a second half.
    """
    parts = backward_job_at(first_job).parts
    job = backward_job_at(first_job + (piece // parts) * _JOB_SIZE)
    part = piece % parts
    zeros = numbers_at(job.zeros, like)
    item, width, lanes = itemsize_of(zeros), panel_width(zeros), lanes_of(zeros)
    dh = Rows(numbers_at(job.workspace + job.dh * item, like), _ZERO, job.h_stride)
    dc = Rows(numbers_at(job.workspace + job.dc * item, like), _ZERO, job.c_stride)
    dm = Rows(numbers_at(job.workspace + job.dm * item, like), _ZERO, job.c_stride)
    h_before = numbers_at(job.workspace + (job.h_before + part * job.c_stride) * item, like)
    row_part, row_parts, unit_part, unit_parts = _ZERO, _ONE, part, parts
    first_stage, last_stage = step, step + 1
    if job.split == ROWS:
        row_part, row_parts, unit_part, unit_parts = part, parts, _ZERO, _ONE
        first_stage, last_stage = _ZERO, job.stages
    first_row, last_row = share(job.rows, row_part, row_parts)
    groups = (job.unit_blocks + job.unit_group - 1) // job.unit_group
    first_group, last_group = share(groups, unit_part, unit_parts)
    first_block, last_block = first_group * job.unit_group, min(last_group * job.unit_group, job.unit_blocks)
    projects = job.projection_weights != 0
    first_panel, last_panel = first_group, last_group
    if projects:
        first_panel, last_panel = share((job.outputs + width - 1) // width, unit_part, unit_parts)
    first = min(first_panel * width, job.outputs)  # a slice may have no panels at all
    last = min(last_panel * width, job.outputs)
    halves = 2 if projects else 1
    for stage in range(first_stage, last_stage):
        if stage == 0:
            begin_first, begin_last = share(job.rows, part, parts)
            _set_rows(job, job.d_h, job.outputs, begin_first, begin_last, dh)
            if job.d_c != 0:
                _set_rows(job, job.d_c, job.units, begin_first, begin_last, dc)
            continue
        done = (stage - 1) // halves  # steps that have ended or end now
        s = job.last_step - 1 - done
        if (stage - 1) % halves == 0:
            # The first step of a later call was begun by the one before, so that every sum has the same order.
            if done > 0 or s == job.steps - 1:
                _take_output(job, s, row_part, first_row, last_row, first, last, dh)
            if done > 0:
                _through_step(job, s + 1, row_part, first_row, last_row, first_panel, last_panel, dh)
            if s >= job.first_step:
                if projects:
                    _record_projected(job, s, row_part, first_row, last_row, first, last, dh)
            else:
                _write_rows(job, dh, job.d_h, job.outputs, first_row, last_row, first, last)
                if job.d_c != 0:
                    lower, upper = first_block * lanes, min(last_block * lanes, job.units)
                    _write_rows(job, dc, job.d_c, job.units, first_row, last_row, lower, upper)
        if s >= job.first_step and (stage - 1) % halves == halves - 1:
            if projects:
                _through_projection(job, s, row_part, first_row, last_row, first_group, last_group, dh, dm)
            hidden = dm if projects else dh
            _through_cell(job, s, row_part, first_row, last_row, first_block, last_block, hidden, dc, h_before)


@worker_calling(product_float32)
def backward_float32(job, piece, step):
    """The worker for float32."""
    _backward_slice(job, piece, step, np.float32(0))


@worker_calling(product_float64)
def backward_float64(job, piece, step):
    """The worker for float64."""
    _backward_slice(job, piece, step, np.float64(0))
