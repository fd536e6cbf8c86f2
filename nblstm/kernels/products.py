"""The product of all rows of all steps with a matrix: dx[n] = G[n] W_ih. The rows are split over slices."""

from __future__ import annotations

import numpy as np

from nblstm.kernels.job import product_job_at
from nblstm.kernels.matmul import FORWARDS, Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, worker_calling
from nblstm.kernels.schedule import add_numbers, copy_numbers, share

ROWS_AT_ONCE = 48
_ZERO = np.int64(0)


@function
def _rows_slice(address, piece, like):
    """Do a share of the rows of dx."""
    job = product_job_at(address)
    zeros = numbers_at(job.zeros, like)
    item, width = itemsize_of(zeros), panel_width(zeros)
    past = Panels(zeros, _ZERO, _ZERO, _ZERO)
    panels = (job.columns + width - 1) // width
    size = panels * ROWS_AT_ONCE * width
    products = numbers_at(job.workspace + piece * size * item, like)
    weights, places = numbers_at(job.weights, like), numbers_at(job.dx_rows, np.int64(0))
    first, last = share(job.rows, piece, job.parts)
    for begin in range(first, last, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, last - begin)
        source = numbers_at(job.gradients + begin * job.gradients_stride * item, like)
        sums = Panels(products, _ZERO, rows * width, width)
        gradients = Rows(source, _ZERO, job.gradients_stride)
        multiply_add(rows, job.terms, gradients, weights, _ZERO, panels, past, sums, FORWARDS)
        for row in range(rows):
            out = numbers_at(places[begin + row], like)
            for panel in range(panels):
                start, count = panel * width, min(width, job.columns - panel * width)
                source_start = (panel * rows + row) * width
                if job.adds:
                    add_numbers(products, source_start, out, start, count)
                else:
                    copy_numbers(products, source_start, out, start, count)


@worker_calling(product_float32)
def rows_float32(job, piece, step):
    """The worker for dx in float32."""
    _rows_slice(job, piece, np.float32(0))


@worker_calling(product_float64)
def rows_float64(job, piece, step):
    """The worker for dx in float64."""
    _rows_slice(job, piece, np.float64(0))
