"""The product of a dense layer, y = bias + x W^T, and its mirror dx = dy W: many rows times panels, contiguous results.

The tile writes whole panels of columns where they belong; those of the last panel, which may be padded, are copied. The
order of each sum depends on the number of its terms alone (nblstm.kernels.tile), so any split gives the same bits.
"""

from __future__ import annotations

import numba
import numpy as np

from nblstm.kernels.job import dense_job_at
from nblstm.kernels.matmul import FORWARDS, Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, typed_entry, worker_calling
from nblstm.kernels.schedule import copy_numbers, copy_transposed, share
from nblstm.kernels.simd import lanes_of, load, store

# So many pass a panel of weights while it is in the first-level cache.
ROWS_AT_ONCE = 48
_ZERO = np.int64(0)


def _pack_signatures(number):
    return [(numba.int64, numba.int64, numba.int64, number[::1])]


@function
def _dense_slice(address, piece, like):
    """Do a share of the rows and columns."""
    job = dense_job_at(address)
    bias = numbers_at(job.bias if job.bias != 0 else job.zeros, like)
    item, width = itemsize_of(bias), panel_width(bias)
    addend = Panels(bias, _ZERO, width if job.bias != 0 else _ZERO, _ZERO)
    size = ROWS_AT_ONCE * width
    weights, rest = numbers_at(job.weights, like), numbers_at(job.workspace + piece * size * item, like)
    first, last = share(job.rows, piece // job.column_parts, job.row_parts)
    first_panel, last_panel = share((job.columns + width - 1) // width, piece % job.column_parts, job.column_parts)
    whole = min(last_panel, job.columns // width)
    for begin in range(first, last, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, last - begin)
        x = Rows(numbers_at(job.x + begin * job.terms * item, like), _ZERO, job.terms)
        y = numbers_at(job.y + begin * job.columns * item, like)
        into = Panels(y, _ZERO, width, job.columns)
        multiply_add(rows, job.terms, x, weights, first_panel, whole, addend, into, FORWARDS)
        if whole < last_panel:
            into = Panels(rest, -whole * width, width, width)
            multiply_add(rows, job.terms, x, weights, whole, last_panel, addend, into, FORWARDS)
            for row in range(rows):
                start = whole * width
                copy_numbers(rest, row * width, y, row * job.columns + start, job.columns - start)


@typed_entry(_pack_signatures)
def pack_rows(outputs, inputs, weight, packed):
    """Pack a matrix for y, a panel after another: three times as fast as a copy by NumPy.

    weight  in   address of (outputs, inputs), contiguous
    packed  out  panels of `outputs` columns and `inputs` terms, as 1-D, with zeros beyond the last column
    """
    width = panel_width(packed)
    for first in range(0, outputs, width):
        count = min(width, outputs - first)
        rows = numbers_at(weight + first * inputs * itemsize_of(packed), packed)
        if count < width:
            packed[first * inputs : (first + width) * inputs] = 0
        copy_transposed(rows, _ZERO, inputs, count, inputs, packed, first * inputs, width)


@typed_entry(_pack_signatures)
def pack_columns(outputs, inputs, weight, packed):
    """Pack a matrix for dx, a row of it after another: ten times as fast as a copy by NumPy.

    weight  in   address of (outputs, inputs), contiguous
    packed  out  panels of `inputs` columns and `outputs` terms, as 1-D, with zeros beyond the last column
    """
    width, lanes = panel_width(packed), lanes_of(packed)
    whole = inputs // width
    for k in range(outputs):
        row = numbers_at(weight + k * inputs * itemsize_of(packed), packed)
        for panel in range(whole):
            for i in range(0, width, lanes):
                store(packed, (panel * outputs + k) * width + i, load(row, panel * width + i))
        if whole * width < inputs:
            for i in range(width):
                column = whole * width + i
                packed[(whole * outputs + k) * width + i] = row[column] if column < inputs else 0


@worker_calling(product_float32)
def dense_float32(job, piece, step):
    """The worker for float32."""
    _dense_slice(job, piece, np.float32(0))


@worker_calling(product_float64)
def dense_float64(job, piece, step):
    """The worker for float64."""
    _dense_slice(job, piece, np.float64(0))
