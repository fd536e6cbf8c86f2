"""The product of a dense layer, y = bias + x W^T, and its mirror dx = dy W: many rows times panels, contiguous results.

The tile writes whole panels of columns where they belong; those of the last panel, which may be padded, are copied. The
order of each sum depends on the number of its terms alone (nblstm.kernels.tile), so any split gives the same bits.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.job import dense_job_at
from nblstm.kernels.matmul import Panels, Rows, multiply_add, panel_width
from nblstm.kernels.policy import inlined, worker
from nblstm.kernels.schedule import copy_numbers, share
from nblstm.kernels.simd import array_at

# They pass a panel of weights while it is in the first-level cache.
ROWS_AT_ONCE = 48
_ZERO = np.int64(0)


@inlined
def _dense_slice(address, piece, like):
    """Do a share of the rows and columns."""
    job = dense_job_at(address)
    bias = array_at(job.bias if job.bias != 0 else job.zeros, 1, like)
    item, width = bias.itemsize, panel_width(bias)
    addend = Panels(bias, _ZERO, width if job.bias != 0 else _ZERO, _ZERO)
    size = ROWS_AT_ONCE * width
    weights, rest = array_at(job.weights, 1, like), array_at(job.workspace + piece * size * item, size, like)
    first, last = share(job.rows, piece // job.column_parts, job.row_parts)
    first_panel, last_panel = share((job.columns + width - 1) // width, piece % job.column_parts, job.column_parts)
    whole = min(last_panel, job.columns // width)
    for begin in range(first, last, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, last - begin)
        x = Rows(array_at(job.x + begin * job.terms * item, 1, like), _ZERO, job.terms)
        y = array_at(job.y + begin * job.columns * item, rows * job.columns, like)
        into = Panels(y, _ZERO, width, job.columns)
        multiply_add(rows, job.terms, x, weights, first_panel, whole, addend, into, False)
        if whole < last_panel:
            into = Panels(rest, -whole * width, width, width)
            multiply_add(rows, job.terms, x, weights, whole, last_panel, addend, into, False)
            for row in range(rows):
                start = whole * width
                copy_numbers(rest, row * width, y, row * job.columns + start, job.columns - start)


@worker
def dense_float32(job, piece, step):
    """The worker for float32."""
    _dense_slice(job, piece, np.float32(0))


@worker
def dense_float64(job, piece, step):
    """The worker for float64."""
    _dense_slice(job, piece, np.float64(0))
