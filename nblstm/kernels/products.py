"""The products of the way back that wait for no step: over all rows of all steps at once.

    dx[n]  = G[n] W_ih                    rows split over slices
    dW[g]  = sum over n of G[n, g] a[n]   outputs g split over slices; a is x, or h of the step before, or 1 for biases

The sum over n is made of chains of 128 rows in the order of n, which is that of the packed sequence whatever the split:
so gradients do not depend on it either.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.job import product_job_at
from nblstm.kernels.matmul import Panels, Rows, multiply_add, panel_width
from nblstm.kernels.policy import function, inlined, worker
from nblstm.kernels.schedule import copy_numbers, copy_transposed, share
from nblstm.kernels.simd import array_at, lanes_of, load, store

ROWS_AT_ONCE = 48
TERMS_AT_ONCE = 256
TERMS_STRIDE = TERMS_AT_ONCE + 16  # not a power of two: a tile's rows would share a set of the cache
_ZERO = np.int64(0)


@inlined
def _rows_slice(address, piece, like):
    """Do a share of the rows of dx."""
    job = product_job_at(address)
    zeros = array_at(job.zeros, 1, like)
    item, width = zeros.itemsize, panel_width(zeros)
    past = Panels(zeros, _ZERO, _ZERO, _ZERO)
    panels = (job.columns + width - 1) // width
    size = panels * ROWS_AT_ONCE * width
    products = array_at(job.workspace + piece * size * item, size, like)
    weights, places = array_at(job.weights, 1, like), array_at(job.dx_rows, job.rows, np.int64(0))
    first, last = share(job.rows, piece, job.parts)
    for begin in range(first, last, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, last - begin)
        source = array_at(job.gradients + begin * job.gradients_stride * item, 1, like)
        sums = Panels(products, _ZERO, rows * width, width)
        gradients = Rows(source, _ZERO, job.gradients_stride)
        multiply_add(rows, job.terms, gradients, weights, _ZERO, panels, past, sums, False)
        for row in range(rows):
            out = array_at(places[begin + row], job.columns, like)
            for panel in range(panels):
                start, count = panel * width, min(width, job.columns - panel * width)
                source_start = (panel * rows + row) * width
                if job.adds:
                    for i in range(count):
                        out[start + i] += products[source_start + i]
                else:
                    copy_numbers(products, source_start, out, start, count)


@function
def _copy_panel(job, panel, columns, width, products):
    """Copy the products of a panel of terms, all but the last column, to the matrix; one of its strides is 1."""
    count = min(width, job.terms - panel * width)
    start = job.matrix + panel * width * job.matrix_term * products.itemsize
    matrix = array_at(start, count * job.matrix_term + job.columns * job.matrix_column, products)
    if job.matrix_term == 1:
        for k in range(job.columns):
            copy_numbers(products, (panel * columns + k) * width, matrix, k * job.matrix_column, count)
    else:
        source_start = panel * columns * width
        copy_transposed(products, source_start, width, job.columns, count, matrix, _ZERO, job.matrix_term)


@inlined
def _sums_slice(address, piece, like):
    """Do a share of the panels of dW: products (panel, K + 1, width), the last row for the bias."""
    job = product_job_at(address)
    zeros = array_at(job.zeros, 1, like)
    item, width, lanes = zeros.itemsize, panel_width(zeros), lanes_of(zeros)
    columns = job.columns + 1
    size = columns * TERMS_STRIDE + TERMS_AT_ONCE * width
    scratch = array_at(job.workspace + piece * size * item, size, like)
    panel_start = columns * TERMS_STRIDE
    packed = array_at(job.workspace + (piece * size + panel_start) * item, TERMS_AT_ONCE * width, like)
    first, last = share((job.terms + width - 1) // width, piece, job.parts)
    source_rows, gradient_rows = array_at(job.source_rows, 1, np.int64(0)), array_at(job.gradient_rows, 1, np.int64(0))
    products, past = array_at(job.products, 1, like), Panels(zeros, _ZERO, _ZERO, _ZERO)
    for begin in range(0, job.rows, TERMS_AT_ONCE):
        count = min(TERMS_AT_ONCE, job.rows - begin)
        for n in range(count):
            address = source_rows[begin + n]
            if job.source_item == 1:  # unit stride
                source = array_at(address, job.columns, like)
                for k in range(job.columns):
                    scratch[k * TERMS_STRIDE + n] = source[k]
            else:
                for k in range(job.columns):
                    scratch[k * TERMS_STRIDE + n] = array_at(address + k * job.source_item * item, 1, like)[0]
            scratch[job.columns * TERMS_STRIDE + n] = 1
        for panel in range(first, last):
            for n in range(count):
                source = array_at(gradient_rows[begin + n] + panel * width * item, width, like)
                for i in range(0, width, lanes):
                    store(packed, n * width + i, load(source, i))
            own = Panels(products, panel * columns * width, _ZERO, width)
            earlier = past if begin == 0 else own
            multiply_add(columns, count, Rows(scratch, _ZERO, TERMS_STRIDE), packed, _ZERO, 1, earlier, own, False)
    if job.matrix != 0:
        for panel in range(first, last):
            _copy_panel(job, panel, columns, width, array_at(job.products, 1, like))


@worker
def rows_float32(job, piece, step):
    """The worker for dx in float32."""
    _rows_slice(job, piece, np.float32(0))


@worker
def rows_float64(job, piece, step):
    """The worker for dx in float64."""
    _rows_slice(job, piece, np.float64(0))


@worker
def sums_float32(job, piece, step):
    """The worker for dW in float32."""
    _sums_slice(job, piece, np.float32(0))


@worker
def sums_float64(job, piece, step):
    """The worker for dW in float64."""
    _sums_slice(job, piece, np.float64(0))
