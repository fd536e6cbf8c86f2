"""The gradients of weights: sums over rows of a gradient times what the weight was multiplied by.

    dW[g, k] = sum over n of G[n, g] a[n, k]

The columns of a are those of x, a one for the biases, and those of h of the step before: one product does for all. It
has three stages. First a is laid out with its columns as rows of terms, once for all threads; then each thread
multiplies its share of the panels of G; last, after the last of several calls, the sums become matrices in torch's
order.

The sum over n is made of chains of 128 rows, in the order of n, which is that of the packed sequence whatever the
split: so gradients do not depend on it either.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.cells import lstm_hidden_state
from nblstm.kernels.job import gradient_job_at
from nblstm.kernels.matmul import Panels, Rows, multiply_add, panel_width
from nblstm.kernels.policy import function, inlined, worker
from nblstm.kernels.schedule import share
from nblstm.kernels.simd import array_at, lanes_of, load, store

ROWS_AT_ONCE = 256
ROWS_STRIDE = ROWS_AT_ONCE + 16  # not a power of two: a tile's rows would share a set of the cache
# What is transposed at once: as many cache lines as the first level holds beside what they are read from.
TRANSPOSED_ROWS = 16
_TRANSPOSED_COLUMNS = 64
# Columns of a that stay in the second-level cache while the panels of G go by.
_COLUMNS_AT_ONCE = 240
_ZERO, _ONE = np.int64(0), np.int64(1)


@function
def _transpose(source, item, count, columns, place):
    """Write `count` numbers, `item` elements apart, to the same place in as many rows of `columns`."""
    if item == 1:
        numbers = array_at(source, count, columns)
        for k in range(count):
            columns[place + k * ROWS_STRIDE] = numbers[k]
    else:
        for k in range(count):
            columns[place + k * ROWS_STRIDE] = array_at(source + k * item * columns.itemsize, 1, columns)[0]


@function
def _hidden_states(job, rows, n, count, hidden):
    """Set `hidden` to h before the projection, of rows whose gates and cell states lie at these addresses."""
    size = job.kept_size
    for row in range(count):
        kept = array_at(rows[n + row], 5 * size, hidden)
        for i in range(0, size, lanes_of(hidden)):
            store(hidden, row * size + i, lstm_hidden_state(load(kept, 3 * size + i), load(kept, 4 * size + i)))


@inlined
def _lay_out(job, piece, like):
    """Do a share of the rows of a: `columns` (blocks of rows, columns, ROWS_STRIDE)."""
    columns = array_at(job.columns, 1, like)
    item = columns.itemsize
    count_of_columns = job.inputs + job.ones + job.outputs
    hidden_start = job.hidden + piece * TRANSPOSED_ROWS * job.kept_size * item
    hidden = array_at(hidden_start, TRANSPOSED_ROWS * job.kept_size, like)
    x_rows, h_rows = array_at(job.x_rows, job.rows, _ZERO), array_at(job.h_rows, job.rows, _ZERO)
    first, last = share((job.rows + TRANSPOSED_ROWS - 1) // TRANSPOSED_ROWS, piece, job.parts)
    for n in range(first * TRANSPOSED_ROWS, min(last * TRANSPOSED_ROWS, job.rows), TRANSPOSED_ROWS):
        block = n // ROWS_AT_ONCE
        place = block * count_of_columns * ROWS_STRIDE + n - block * ROWS_AT_ONCE
        count = min(TRANSPOSED_ROWS, job.rows - n)
        if job.recompute:
            _hidden_states(job, x_rows, n, count, hidden)
        for k in range(0, job.inputs, _TRANSPOSED_COLUMNS):
            numbers = min(_TRANSPOSED_COLUMNS, job.inputs - k)
            for row in range(count):
                source = hidden_start + row * job.kept_size * item if job.recompute else x_rows[n + row]
                at = place + k * ROWS_STRIDE + row
                _transpose(source + k * job.x_item * item, job.x_item, numbers, columns, at)
        place += job.inputs * ROWS_STRIDE
        if job.ones:
            for row in range(count):
                columns[place + row] = 1
            place += ROWS_STRIDE
        for k in range(0, job.outputs, _TRANSPOSED_COLUMNS):
            numbers = min(_TRANSPOSED_COLUMNS, job.outputs - k)
            for row in range(count):
                _transpose(h_rows[n + row] + k * item, _ONE, numbers, columns, place + k * ROWS_STRIDE + row)


@function
def _columns_of(job, panel, width):
    """Return the range of columns that a panel of G is multiplied by.

    Where recurrent sums stay apart, the first slot went into the input's sums alone, the last one into the others.
    """
    first, last = _ZERO, job.inputs + job.ones + job.outputs
    if job.apart:
        if panel * width >= (job.slots - 1) * job.slot_size:
            first = job.inputs
        if (panel + 1) * width <= job.slot_size:
            last = job.inputs + job.ones
    return first, last


@inlined
def _multiply(job, piece, like):
    """Add a share of the panels of G times a to `sums` (panels, columns, width)."""
    columns = array_at(job.columns, 1, like)
    item, lanes, width = columns.itemsize, lanes_of(columns), panel_width(columns)
    count_of_columns = job.inputs + job.ones + job.outputs
    panels = (job.slots * job.slot_size + width - 1) // width
    sums = array_at(job.sums, panels * count_of_columns * width, like)
    packed = array_at(job.packed + piece * ROWS_AT_ONCE * width * item, ROWS_AT_ONCE * width, like)
    gradient_rows = array_at(job.gradient_rows, job.rows, _ZERO)
    first_panel, last_panel = share(panels, piece, job.parts)
    if job.begins:
        for i in range(first_panel * count_of_columns * width, last_panel * count_of_columns * width):
            sums[i] = 0
    for begin in range(0, job.rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, job.rows - begin)
        block = begin // ROWS_AT_ONCE * count_of_columns * ROWS_STRIDE
        for k in range(0, count_of_columns, _COLUMNS_AT_ONCE):
            for panel in range(first_panel, last_panel):
                first, last = _columns_of(job, panel, width)
                first, last = max(first, k), min(last, k + _COLUMNS_AT_ONCE)
                if first >= last:
                    continue
                for n in range(count):
                    source = array_at(gradient_rows[begin + n] + panel * width * item, width, like)
                    for i in range(0, width, lanes):
                        store(packed, n * width + i, load(source, i))
                a = Rows(columns, block + first * ROWS_STRIDE, ROWS_STRIDE)
                own = Panels(sums, (panel * count_of_columns + first) * width, _ZERO, width)
                multiply_add(last - first, count, a, packed, _ZERO, _ONE, own, own, False)


@function
def _write_columns(sums, source, step, target, start, count):
    """Set `count` neighbours of the target to numbers that lie `step` apart."""
    for k in range(count):
        target[start + k] = sums[source + k * step]


@inlined
def _write(job, piece, like):
    """Turn a share of the panels of `sums` into rows of the matrices."""
    width = panel_width(array_at(job.columns, 1, like))
    count_of_columns = job.inputs + job.ones + job.outputs
    panels = (job.slots * job.slot_size + width - 1) // width
    gates = job.slots - job.apart
    sums = array_at(job.sums, panels * count_of_columns * width, like)
    w_ih, w_hh = array_at(job.w_ih, 1, like), array_at(job.w_hh, 1, like)
    b_ih, b_hh = array_at(job.b_ih, 1, like), array_at(job.b_hh, 1, like)
    first_panel, last_panel = share(panels, piece, job.parts)
    for panel in range(first_panel, last_panel):
        start = panel * count_of_columns * width
        for j in range(width):
            slot, unit = (panel * width + j) // job.slot_size, (panel * width + j) % job.slot_size
            if slot >= job.slots or unit >= job.units:
                continue
            if slot < gates:
                # Of gates whose recurrent sums stay apart the last one's slot comes first.
                gate = (slot + gates - 1) % gates if job.apart else slot
                row = gate * job.units + unit
                _write_columns(sums, start + j, width, w_ih, row * job.inputs, job.inputs)
                if job.ones:
                    b_ih[row] = sums[start + job.inputs * width + j]
            if slot >= job.apart and job.outputs > 0:
                row = (slot - job.apart) * job.units + unit
                hidden = start + (job.inputs + job.ones) * width + j
                _write_columns(sums, hidden, width, w_hh, row * job.outputs, job.outputs)
            if slot >= job.apart and job.ones:
                b_hh[(slot - job.apart) * job.units + unit] = sums[start + job.inputs * width + j]


@inlined
def _gradient_slice(address, piece, step, like):
    """Do a share of stage `step`."""
    job = gradient_job_at(address)
    if step == 0:
        _lay_out(job, piece, like)
    elif step == 1:
        _multiply(job, piece, like)
    else:
        _write(job, piece, like)


@worker
def weight_gradients_float32(job, piece, step):
    """The worker for float32."""
    _gradient_slice(job, piece, step, np.float32(0))


@worker
def weight_gradients_float64(job, piece, step):
    """The worker for float64."""
    _gradient_slice(job, piece, step, np.float64(0))
