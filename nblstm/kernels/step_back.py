"""One layer and one row, one step back: what nblstm.kernels.one_row calls by address.

The sums have the order of nblstm.kernels.backprop, .products and .weight_gradients, and so the bits of `vjp` for a
sequence of one step. The gradients of parameters are added to what is there, in torch's order.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.cells import back_through_cell, lstm_hidden_state
from nblstm.kernels.job import one_row_job_at
from nblstm.kernels.matmul import FORWARDS, Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, inlined, worker_calling
from nblstm.kernels.schedule import copy_numbers
from nblstm.kernels.simd import fma, lanes_of, load, store

_ZERO = np.int64(0)


@function
def _padded(job, like):
    return job.unit_blocks * lanes_of(like)


@function
def _add_scaled(factor, source, count, target, start):
    """Add `count` numbers times a factor to those of the target from `start` on."""
    lanes = lanes_of(source)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store(target, start + i, fma(load(source, i), factor, load(target, start + i)))
    for i in range(whole, count):
        target[start + i] = fma(source[i], factor, target[start + i])


@inlined
def _add_outer_products(job, gradients, x, h, dh, m):
    """Add the gradients of a layer's parameters."""
    padded = _padded(job, gradients)
    rows = job.gates * job.units
    biases = 2 * rows if job.biases != 0 else 0
    size = rows * (job.inputs + job.outputs) + biases
    if job.projection_weights != 0:
        size += job.outputs * job.units
    sums = numbers_at(job.d_parameters, gradients)
    for gate in range(job.gates):
        # The slots of a GRU are n over the inputs, r, z, n over the hidden units.
        own = (gate + 1) % job.gates if job.apart else gate
        recurrent = gate + 1 if job.apart else gate
        for unit in range(job.units):
            row = gate * job.units + unit
            d, d_recurrent = gradients[own * padded + unit], gradients[recurrent * padded + unit]
            _add_scaled(d, x, job.inputs, sums, row * job.inputs)
            _add_scaled(d_recurrent, h, job.outputs, sums, rows * job.inputs + row * job.outputs)
            if biases != 0:
                first = rows * (job.inputs + job.outputs)
                sums[first + row] += d
                sums[first + rows + row] += d_recurrent
    if job.projection_weights != 0:
        for p in range(job.outputs):
            start = rows * (job.inputs + job.outputs) + biases + p * job.units
            _add_scaled(dh[p], m, job.units, sums, start)


@function
def _panels_for(count, width):
    return (count + width - 1) // width


@inlined
def _step_back(address, like):
    """Take one layer back through one step.

    Workspace: a panel of zeros, gradients (slots, padded units), d_hidden (whole panels of units), dc and what the cell
    wants of the step before (padded units each), m (padded units), products (whole panels of inputs or outputs).
    """
    job = one_row_job_at(address)
    kept = numbers_at(job.kept, like)
    item, width, padded = itemsize_of(kept), panel_width(kept), _padded(job, kept)
    unit_panels, input_panels = _panels_for(job.units, width), _panels_for(job.inputs, width)
    output_panels = _panels_for(job.outputs, width)
    scratch = numbers_at(job.workspace, kept)
    for i in range(job.scratch_back):
        scratch[i] = 0
    gradients_start = width
    hidden_start = gradients_start + job.slots * padded
    c_start = hidden_start + unit_panels * width + padded
    before_start, m_start = c_start + padded, c_start + 2 * padded
    products_start = c_start + 3 * padded
    nothing = Panels(scratch, _ZERO, _ZERO, _ZERO)
    products = Panels(scratch, products_start, width, width)
    hidden = Panels(scratch, hidden_start, width, width)
    dh, h = numbers_at(job.dh, kept), numbers_at(job.h_0, kept)
    if job.projection_weights != 0:
        back = numbers_at(job.projection_back, kept)
        multiply_add(1, job.outputs, Rows(dh, _ZERO, job.outputs), back, _ZERO, unit_panels, nothing, hidden, FORWARDS)
        for block in range(0, padded, lanes_of(kept)):
            o, c_after = load(kept, 3 * padded + block), load(kept, 4 * padded + block)
            store(scratch, m_start + block, lstm_hidden_state(o, c_after))
    else:
        copy_numbers(dh, _ZERO, scratch, hidden_start, job.units)
    if job.c_n != 0:
        copy_numbers(numbers_at(job.dc, kept), _ZERO, scratch, c_start, job.units)
        copy_numbers(numbers_at(job.c_0, kept), _ZERO, scratch, before_start, job.units)
    elif job.apart:
        copy_numbers(h, _ZERO, scratch, before_start, job.units)
    before = numbers_at(job.workspace + before_start * item, kept)
    gradients = numbers_at(job.workspace + gradients_start * item, kept)
    d_hidden, dc = Rows(scratch, hidden_start, padded), Rows(scratch, c_start, padded)
    back_through_cell(
        job.cell, kept, before, gradients, d_hidden, dc, padded, job.slots, job.units, _ZERO, job.unit_blocks
    )
    x = numbers_at(job.x, kept)
    if job.d_parameters != 0:
        m = numbers_at(job.workspace + m_start * item, kept)
        _add_outer_products(job, gradients, x, h, dh, m)
    if job.dx != 0:
        back = numbers_at(job.input_back, kept)
        rows = Rows(gradients, _ZERO, job.gates * padded)
        multiply_add(1, job.gates * padded, rows, back, _ZERO, input_panels, nothing, products, FORWARDS)
        copy_numbers(scratch, products_start, numbers_at(job.dx, kept), _ZERO, job.inputs)
    past_sums = nothing
    if job.apart:  # part of h goes on past the sums
        past_sums = hidden
    rows = Rows(gradients, padded if job.apart else _ZERO, job.gates * padded)
    back = numbers_at(job.recurrent_back, kept)
    multiply_add(1, job.gates * padded, rows, back, _ZERO, output_panels, past_sums, products, FORWARDS)
    copy_numbers(scratch, products_start, dh, _ZERO, job.outputs)
    if job.c_n != 0:
        copy_numbers(scratch, c_start, numbers_at(job.dc, kept), _ZERO, job.units)


@worker_calling(product_float32)
def step_back_float32(job, piece, step):
    """The worker for float32."""
    _step_back(job, np.float32(0))


@worker_calling(product_float64)
def step_back_float64(job, piece, step):
    """The worker for float64."""
    _step_back(job, np.float64(0))
