"""What a slice of a layer reads and writes besides its products: inputs, outputs, and states.

Every buffer is described in nblstm.kernels.job, and Rows and Panels in nblstm.kernels.matmul.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.job import ROWS
from nblstm.kernels.matmul import Rows
from nblstm.kernels.memory import fetch_ahead, itemsize_of, numbers_at
from nblstm.kernels.policy import LINE, function
from nblstm.kernels.schedule import alive_rows, copy_numbers, entry_of, step_of

_FETCH_BYTES = 16384
# Numba compiles a function anew for every literal it is called with; these are numbers like any other.
_ZERO, _ONE = np.int64(0), np.int64(1)


@function
def shares_of(job, part):
    """Return which share of the rows, of how many, and which of the units, of how many, part `part` of a job is."""
    if job.split == ROWS:
        return part, job.parts, _ZERO, _ONE
    return _ZERO, _ONE, part, job.parts


@function
def buffers_of(job, part, like):
    """Return h, c and m of all rows, and the sums of part `part`: arrays over the job's workspace."""
    item = itemsize_of(like)
    h = numbers_at(job.workspace + job.h * item, like)
    c = numbers_at(job.workspace + job.c * item, like)
    m = numbers_at(job.workspace + job.m * item, like)
    return h, c, m, numbers_at(job.workspace + (job.sums + part * job.sums_size) * item, like)


@function
def fetch_rows(state, rows, columns):
    """Ask for what other slices wrote, which lies in their cores' caches.

    One by one, as the product reads them, each line would be waited for: 5 % of a step at H = 256, 15 % at H = 128, one
    row. With more rows than half of the first-level cache holds the product has other work in the meantime.
    """
    if rows * columns * itemsize_of(state.array) <= _FETCH_BYTES:
        for row in range(rows):
            for column in range(0, columns, LINE // itemsize_of(state.array)):
                fetch_ahead(state.array, state.start + row * state.stride + column)


@function
def gather_inputs(job, first, last, part, first_row, last_row, inputs):
    """Copy the input rows of the steps number first to last - 1 into `inputs`, one after another; return how many.

    inputs  out  (block * rows, input_stride)
    """
    slot = 0
    for s in range(first, last):
        t = step_of(job, s)
        start = entry_of(job.starts, t) * job.x_step
        for row in range(first_row, alive_rows(job, t, part, first_row, last_row)):
            place = start + entry_of(job.x_rows, row) * job.x_row
            x = numbers_at(job.x + place * itemsize_of(inputs), inputs)
            into = slot * job.input_stride
            if job.x_item == 1:
                copy_numbers(x, _ZERO, inputs, into, job.inputs)
            else:
                for i in range(job.inputs):
                    inputs[into + i] = x[i * job.x_item]
            slot += 1
    return slot


@function
def emit(job, t, first_row, last_row, h, first, last):
    """Write columns [first, last) of h, whose row 0 is first_row of the batch, to the output of step t."""
    start = entry_of(job.starts, t) * job.y_step
    for row in range(first_row, last_row):
        address = job.y + (start + entry_of(job.x_rows, row) * job.y_row) * itemsize_of(h.array)
        source = h.start + (row - first_row) * h.stride + first
        copy_numbers(h.array, source, numbers_at(address, h.array), first, last - first)


@function
def keep_final(job, s, part, first_row, last_row, state, target, columns, first, last):
    """Write columns [first, last) of the state to h_n or c_n at `target`, for the rows whose last step is number s.

    state  in  Rows, whose row 0 is first_row of the batch
    """
    staying = first_row
    if s + 1 < job.steps:
        staying = alive_rows(job, step_of(job, s + 1), part, first_row, last_row)
    for row in range(staying, alive_rows(job, step_of(job, s), part, first_row, last_row)):
        address = target + entry_of(job.state_rows, row) * columns * itemsize_of(state.array)
        source = state.start + (row - first_row) * state.stride + first
        copy_numbers(state.array, source, numbers_at(address, state.array), first, last - first)


@function
def _set_initial(job, initial, columns, first_row, last_row, state):
    """Set rows [first_row, last_row) of the state of the whole batch to those at `initial`; padding to zeros.

    state  out  Rows
    """
    for row in range(first_row, last_row):
        into = state.start + row * state.stride
        for column in range(columns, state.stride):
            state.array[into + column] = 0
        address = initial + entry_of(job.state_rows, row) * columns * itemsize_of(state.array)
        copy_numbers(numbers_at(address, state.array), _ZERO, state.array, into, columns)


@function
def begin_states(job, first_row, last_row, h, c):
    """Set both h buffers (rows of shorter sequences join the reverse direction at any step) and c."""
    for buffer in range(2):
        rows = Rows(h, buffer * job.rows * job.h_stride, job.h_stride)
        _set_initial(job, job.h_n, job.outputs, first_row, last_row, rows)
    if job.c_n != 0:
        _set_initial(job, job.c_n, job.units, first_row, last_row, Rows(c, _ZERO, job.c_stride))
