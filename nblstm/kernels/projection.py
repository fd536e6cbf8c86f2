"""The second half of a step where there is a projection: h = W_hr m, with m = o * tanh(c) from the first half.

A worker of its own, so that layers without a projection do not compile it.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.job import JOB, UNITS, job_at
from nblstm.kernels.matmul import Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import numbers_at
from nblstm.kernels.policy import function, worker_calling
from nblstm.kernels.schedule import alive_rows, copy_numbers, share, step_of
from nblstm.kernels.simd import lanes_of, load, normal_or_zero, store
from nblstm.kernels.slices import buffers_of, emit, fetch_rows, keep_final, shares_of

_JOB_SIZE = JOB.itemsize


@function
def _project(first_job, piece, s, like):
    """Do it for slice number `piece` of a call and step number s, for the slice's panels of outputs.

    Of the workspace it reads m, writes h, and uses the sums from `products` on: the projected inputs before that are
    still needed.
    """
    parts = job_at(first_job).parts
    job, part, width = job_at(first_job + piece // parts * _JOB_SIZE), piece % parts, panel_width(like)
    h, _, m, sums = buffers_of(job, part, like)
    row_part, row_parts, unit_part, unit_parts = shares_of(job, part)
    first_row, last_row = share(job.rows, row_part, row_parts)
    first_panel, last_panel = share((job.outputs + width - 1) // width, unit_part, unit_parts)
    t = step_of(job, s)
    alive = alive_rows(job, t, row_part, first_row, last_row)
    rows = alive - first_row
    size = rows * width
    for i in range((last_panel - first_panel) * size):
        sums[job.products + i] = 0
    products = Panels(sums, job.products - first_panel * size, size, width)
    m_rows = Rows(m, first_row * job.c_stride, job.c_stride)
    if job.split == UNITS:
        fetch_rows(m_rows, rows, job.units)
    weights = numbers_at(job.projection_weights, like)
    back = (s + job.turn) % 2 == 1
    multiply_add(rows, job.units, m_rows, weights, first_panel, last_panel, products, products, back)
    for i in range(job.products, job.products + (last_panel - first_panel) * size, lanes_of(like)):
        store(sums, i, normal_or_zero(load(sums, i)))
    h_after = Rows(h, ((1 - s % 2) * job.rows + first_row) * job.h_stride, job.h_stride)
    for panel in range(first_panel, last_panel):
        count = min(width, job.outputs - panel * width)
        for row in range(rows):
            source = products.start + panel * size + row * width
            copy_numbers(sums, source, h, h_after.start + row * h_after.stride + panel * width, count)
    first, last = first_panel * width, min(last_panel * width, job.outputs)
    emit(job, t, first_row, alive, h_after, first, last)
    keep_final(job, s, row_part, first_row, last_row, h_after, job.h_n, job.outputs, first, last)


@worker_calling(product_float32)
def project_float32(job, piece, step):
    """The worker for float32."""
    _project(job, piece, step, np.float32(0))


@worker_calling(product_float64)
def project_float64(job, piece, step):
    """The worker for float64."""
    _project(job, piece, step, np.float64(0))
