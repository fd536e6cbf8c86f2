"""The gradients of weights: sums over rows of a gradient times what the weight was multiplied by.

    dW[g, k] = sum over n of G[n, g] a[n, k]

The columns of a are those of x, a one for the biases, and those of h of the step before: one product does for all. It
has three stages. First a is laid out with its columns as rows of terms, once for all threads; then each thread
multiplies its share of the panels of G; last, after the last of several calls, the sums become matrices in torch's
order.

The sum over n is made of blocks of 256 rows, each of a few chains, in the order of n, which is that of the packed
sequence. A call begins with a block of its own, and nblstm.engine.backward cuts the rows into calls by sizes alone: so
gradients do not depend on how the work is split.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.cells import lstm_hidden_state
from nblstm.kernels.job import gradient_job_at
from nblstm.kernels.matmul import FORWARDS, Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, worker_calling
from nblstm.kernels.schedule import copy_numbers, copy_transposed, share
from nblstm.kernels.simd import lanes_of, load, store

ROWS_AT_ONCE = 256
ROWS_STRIDE = ROWS_AT_ONCE + 16  # not a power of two: a tile's rows would share a set of the cache
# What is transposed at once: as many cache lines as the first level holds beside what they are read from.
TRANSPOSED_ROWS, TRANSPOSED_COLUMNS = 16, 64
# Columns of a that stay in the second-level cache while the panels of G go by.
_COLUMNS_AT_ONCE = 240
_ZERO, _ONE = np.int64(0), np.int64(1)


@function
def _hidden_states(job, rows, n, count, hidden):
    """Set `hidden` to h before the projection, of rows whose gates and cell states lie at these addresses."""
    size = job.kept_size
    for row in range(count):
        kept = numbers_at(rows[n + row], hidden)
        for i in range(0, size, lanes_of(hidden)):
            store(hidden, row * size + i, lstm_hidden_state(load(kept, 3 * size + i), load(kept, 4 * size + i)))


@function
def _lay_out_columns(rows, n, count, item, numbers, square, columns, place):
    """Write so many numbers, `item` elements apart, of `count` rows at these addresses as columns from `place` on.

    square  scratch  (TRANSPOSED_ROWS, TRANSPOSED_COLUMNS), whose lines and those it goes to fit the first-level cache
    """
    for k in range(0, numbers, TRANSPOSED_COLUMNS):
        some = min(TRANSPOSED_COLUMNS, numbers - k)
        for row in range(count):
            source, into = numbers_at(rows[n + row], columns), row * TRANSPOSED_COLUMNS
            if item == 1:
                copy_numbers(source, k, square, into, some)
            else:
                for i in range(some):
                    square[into + i] = source[(k + i) * item]
        to = place + k * ROWS_STRIDE
        copy_transposed(square, _ZERO, TRANSPOSED_COLUMNS, count, some, columns, to, ROWS_STRIDE)


@function
def _lay_out(job, piece, like):
    """Do a share of the rows of a: `columns` (blocks of rows, columns, ROWS_STRIDE)."""
    columns = numbers_at(job.columns, like)
    item = itemsize_of(columns)
    count_of_columns = job.inputs + job.ones + job.outputs
    own = job.scratch + piece * TRANSPOSED_ROWS * (TRANSPOSED_COLUMNS + job.kept_size) * item
    square = numbers_at(own, like)
    hidden_start = own + TRANSPOSED_ROWS * TRANSPOSED_COLUMNS * item
    hidden = numbers_at(hidden_start, like)
    hidden_rows = np.arange(TRANSPOSED_ROWS) * job.kept_size * item + hidden_start
    x_rows, h_rows = numbers_at(job.x_rows, _ZERO), numbers_at(job.h_rows, _ZERO)
    first, last = share((job.rows + TRANSPOSED_ROWS - 1) // TRANSPOSED_ROWS, piece, job.parts)
    for n in range(first * TRANSPOSED_ROWS, min(last * TRANSPOSED_ROWS, job.rows), TRANSPOSED_ROWS):
        block = n // ROWS_AT_ONCE
        place = block * count_of_columns * ROWS_STRIDE + n - block * ROWS_AT_ONCE
        count = min(TRANSPOSED_ROWS, job.rows - n)
        if job.recompute:
            _hidden_states(job, x_rows, n, count, hidden)
            _lay_out_columns(hidden_rows, _ZERO, count, _ONE, job.inputs, square, columns, place)
        else:
            _lay_out_columns(x_rows, n, count, job.x_item, job.inputs, square, columns, place)
        place += job.inputs * ROWS_STRIDE
        if job.ones:
            for row in range(count):
                columns[place + row] = 1
            place += ROWS_STRIDE
        _lay_out_columns(h_rows, n, count, _ONE, job.outputs, square, columns, place)


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


@function
def _multiply(job, piece, like):
    """Add a share of the panels of G times a to `sums` (panels, columns, width)."""
    columns = numbers_at(job.columns, like)
    item, lanes, width = itemsize_of(columns), lanes_of(columns), panel_width(columns)
    count_of_columns = job.inputs + job.ones + job.outputs
    panels = (job.slots * job.slot_size + width - 1) // width
    sums = numbers_at(job.sums, like)
    packed = numbers_at(job.packed + piece * ROWS_AT_ONCE * width * item, like)
    gradient_rows = numbers_at(job.gradient_rows, _ZERO)
    first_panel, last_panel = share(panels, piece, job.parts)
    nothing = Panels(numbers_at(job.zeros, like), _ZERO, _ZERO, _ZERO)
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
                    source = numbers_at(gradient_rows[begin + n] + panel * width * item, like)
                    for i in range(0, width, lanes):
                        store(packed, n * width + i, load(source, i))
                a = Rows(columns, block + first * ROWS_STRIDE, ROWS_STRIDE)
                own = Panels(sums, (panel * count_of_columns + first) * width, _ZERO, width)
                before = nothing if job.begins and begin == 0 else own
                multiply_add(last - first, count, a, packed, _ZERO, _ONE, before, own, FORWARDS)


@function
def _write(job, piece, like):
    """Turn a share of the panels of `sums` into rows of the matrices."""
    width = panel_width(numbers_at(job.columns, like))
    count_of_columns = job.inputs + job.ones + job.outputs
    panels = (job.slots * job.slot_size + width - 1) // width
    gates = job.slots - job.apart
    sums = numbers_at(job.sums, like)
    w_ih, w_hh = numbers_at(job.w_ih, like), numbers_at(job.w_hh, like)
    b_ih, b_hh = numbers_at(job.b_ih, like), numbers_at(job.b_hh, like)
    first_panel, last_panel = share(panels, piece, job.parts)
    for panel in range(first_panel, last_panel):
        j = _ZERO
        while j < width:  # by neighbours of one slot
            slot, unit = (panel * width + j) // job.slot_size, (panel * width + j) % job.slot_size
            start = panel * count_of_columns * width + j
            ones, hidden = start + job.inputs * width, start + (job.inputs + job.ones) * width
            along = min(width - j, job.slot_size - unit)
            count = min(along, job.units - unit)
            j += along
            if count <= 0 or slot >= job.slots:
                continue
            if slot < gates:
                # Of gates whose recurrent sums stay apart the last one's slot comes first.
                row = ((slot + gates - 1) % gates if job.apart else slot) * job.units + unit
                copy_transposed(sums, start, width, job.inputs, count, w_ih, row * job.inputs, job.inputs)
                if job.ones:
                    copy_numbers(sums, ones, b_ih, row, count)
            if slot >= job.apart and job.outputs > 0:
                row = (slot - job.apart) * job.units + unit
                copy_transposed(sums, hidden, width, job.outputs, count, w_hh, row * job.outputs, job.outputs)
                if job.ones:
                    copy_numbers(sums, ones, b_hh, row, count)


@function
def _gradient_slice(address, piece, step, like):
    """Do a share of stage `step`."""
    job = gradient_job_at(address)
    if step == 0:
        _lay_out(job, piece, like)
    elif step == 1:
        _multiply(job, piece, like)
    else:
        _write(job, piece, like)


@worker_calling(product_float32)
def weight_gradients_float32(job, piece, step):
    """The worker for float32."""
    _gradient_slice(job, piece, step, np.float32(0))


@worker_calling(product_float64)
def weight_gradients_float64(job, piece, step):
    """The worker for float64."""
    _gradient_slice(job, piece, step, np.float64(0))
