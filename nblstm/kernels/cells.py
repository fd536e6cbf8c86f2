"""The cells: the equations of each on vectors, and the worker that takes them over rows and units.

A worker is handed the gates' sums of some unit blocks and writes the next hidden state; a program compiles those of the
cells that it uses. Gate number g of unit block b is vector number ``b * gates + g`` of the sums' panels, but for half a
block at the end, where the cell takes one (nblstm.engine.packing). Where `keep` says so, it leaves the gates' values in
place of their sums. Buffers (`CELL_JOB`):

    sums            inout  Panels; bias + W_ih x + W_hh h, or without the last term where that is kept apart
    recurrent_sums  in     Panels; W_hh h with its own bias, where the cell keeps it apart; else the same as `sums`
    h_before        in     Rows, of the step before
    h               out    Rows; all whole vectors, so up to the padding beyond unit H
    c               inout  Rows, where the cell has a cell state; else not touched

States below the normal numbers (float32: 1.2e-38, float64: 2.2e-308) become zero, and gradients of states on the way
back: some CPUs take a hundred cycles for each operation on such a number, and a decaying state would stay among them
for good, where rounding holds it (docs/serving.md; tests/test_denormals.py).

How to add a cell: docs/cells.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nblstm.kernels.activations import sigmoid, tanh
from nblstm.kernels.job import cell_job_at, job_at
from nblstm.kernels.matmul import panel_vector, panels_at, rows_at
from nblstm.kernels.policy import Worker, function, worker
from nblstm.kernels.simd import (
    fma,
    lanes_of,
    larger,
    load,
    lower_half,
    normal_or_zero,
    store,
    upper_half,
    where_at_most_zero,
)


class Cell(NamedTuple):
    """What the engine has to know of a cell besides its equations."""

    code: int  # its entry in `_WORKERS`, and its branch in `back_through_cell`
    gates: int  # rows of a weight matrix: gates * H
    apart: bool = False  # it is handed the recurrent sums, with their bias for the last gate, apart from the others
    has_cell_state: bool = False
    # It can end with half a block (nblstm.engine.packing), and then widens the sums before it or a keeper reads them.
    # That takes an even number of gates.
    takes_half: bool = False


_LSTM, _GRU, _RNN_TANH, _RNN_RELU = range(4)
LSTM = Cell(_LSTM, gates=4, has_cell_state=True, takes_half=True)
GRU = Cell(_GRU, gates=3, apart=True)
RNN_TANH = Cell(_RNN_TANH, gates=1)
RNN_RELU = Cell(_RNN_RELU, gates=1)


@function
def lstm_cell_state(i, f, g, c):
    """Return c' = f c + i g from three gates and the cell state.

    S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, with the forget gate of
    F. Gers et al., Learning to Forget, 2000.
    """
    return normal_or_zero(fma(f, c, i * g))


@function
def lstm_hidden_state(o, c):
    """Return h' = o tanh(c') from the output gate and the next cell state."""
    return normal_or_zero(o * tanh(c))


@function
def gru_candidate_sum(r, x_sum, h_sum):
    """Return what n is the tanh of, from the reset gate and the candidate's sums over inputs and hidden units.

    K. Cho et al., arXiv:1406.1078, 2014; with the reset gate after the product, as in torch.
    """
    return fma(r, h_sum, x_sum)


@function
def gru_hidden_state(z, n, h):
    """Return h' = (1 - z) n + z h from the update gate, the candidate and the hidden state."""
    return normal_or_zero(fma(z, h - n, n))


@function
def relu(x):
    """Return max(x, 0); NaN for NaN."""
    return larger(0.0, x)


@function
def _widen_half(sums, block, rows):
    """Give the sums of half a block the layout of any other: i, f, g and o in four vectors, zeros in the upper halves.

    They lie in two vectors, i and f side by side and g and o (nblstm.engine.packing).
    """
    lanes = lanes_of(sums.array)
    for row in range(rows):
        first, second = panel_vector(sums, 4 * block, row), panel_vector(sums, 4 * block + 2, row)
        i_and_f, g_and_o = load(sums.array, first), load(sums.array, first + lanes)
        store(sums.array, first, lower_half(i_and_f))
        store(sums.array, first + lanes, upper_half(i_and_f))
        store(sums.array, second, lower_half(g_and_o))
        store(sums.array, second + lanes, upper_half(g_and_o))


@function
def _apply_lstm(address, like):
    job, lanes = cell_job_at(address), lanes_of(like)
    first_block, last_block, rows, keep = job.first_block, job.last_block, job.rows, job.keep != 0
    sums, h = panels_at(job.sums, job.sums_stride, like), rows_at(job.h, job.h_stride, like)
    c = rows_at(job.c, job.c_stride, like)
    if 4 * last_block > job_at(job.job).gate_vectors:  # half a block at the end
        _widen_half(sums, last_block - 1, rows)
    # Two passes: in one, the 150 cycles from the gates over c to h are longer than the CPU can look ahead to the next
    # vector: 18 ns in two, of 64 rows, where one takes half as much again.
    for block in range(first_block, last_block):
        for row in range(rows):
            i_place, f_place, g_place = (
                panel_vector(sums, 4 * block, row),
                panel_vector(sums, 4 * block + 1, row),
                panel_vector(sums, 4 * block + 2, row),
            )
            i, f, g = (
                sigmoid(load(sums.array, i_place)),
                sigmoid(load(sums.array, f_place)),
                tanh(load(sums.array, g_place)),
            )
            c_place = c.start + row * c.stride + block * lanes
            store(c.array, c_place, lstm_cell_state(i, f, g, load(c.array, c_place)))
            if keep:
                store(sums.array, i_place, i)
                store(sums.array, f_place, f)
                store(sums.array, g_place, g)
    for block in range(first_block, last_block):
        for row in range(rows):
            o_place = panel_vector(sums, 4 * block + 3, row)
            o = sigmoid(load(sums.array, o_place))
            c_next = load(c.array, c.start + row * c.stride + block * lanes)
            store(h.array, h.start + row * h.stride + block * lanes, lstm_hidden_state(o, c_next))
            if keep:
                store(sums.array, o_place, o)


@function
def _apply_gru(address, like):
    job, lanes = cell_job_at(address), lanes_of(like)
    first_block, last_block, rows, keep = job.first_block, job.last_block, job.rows, job.keep != 0
    sums = panels_at(job.sums, job.sums_stride, like)
    recurrent_sums = panels_at(job.recurrent_sums, job.recurrent_stride, like)
    h_before, h = rows_at(job.h_before, job.h_before_stride, like), rows_at(job.h, job.h_stride, like)
    # Two passes, as for the LSTM: up to the candidate's sum, and from there on.
    for block in range(first_block, last_block):
        for row in range(rows):
            r_place, z_place, n_place = (
                panel_vector(sums, 3 * block, row),
                panel_vector(sums, 3 * block + 1, row),
                panel_vector(sums, 3 * block + 2, row),
            )
            r_sum = load(recurrent_sums.array, panel_vector(recurrent_sums, 3 * block, row))
            z_sum = load(recurrent_sums.array, panel_vector(recurrent_sums, 3 * block + 1, row))
            n_sum = load(recurrent_sums.array, panel_vector(recurrent_sums, 3 * block + 2, row))
            r = sigmoid(load(sums.array, r_place) + r_sum)
            store(sums.array, z_place, sigmoid(load(sums.array, z_place) + z_sum))
            store(sums.array, n_place, gru_candidate_sum(r, load(sums.array, n_place), n_sum))
            if keep:
                store(sums.array, r_place, r)
    for block in range(first_block, last_block):
        for row in range(rows):
            n_place = panel_vector(sums, 3 * block + 2, row)
            z, n = load(sums.array, panel_vector(sums, 3 * block + 1, row)), tanh(load(sums.array, n_place))
            before = load(h_before.array, h_before.start + row * h_before.stride + block * lanes)
            store(h.array, h.start + row * h.stride + block * lanes, gru_hidden_state(z, n, before))
            if keep:
                store(sums.array, n_place, n)


@function
def _apply_rnn(rectify, address, like):
    """J. Elman, Finding Structure in Time, Cognitive Science 14(2), 1990: h' = tanh or relu of the sum."""
    job, lanes = cell_job_at(address), lanes_of(like)
    first_block, last_block, rows, keep = job.first_block, job.last_block, job.rows, job.keep != 0
    sums, h = panels_at(job.sums, job.sums_stride, like), rows_at(job.h, job.h_stride, like)
    for block in range(first_block, last_block):
        for row in range(rows):
            value = load(sums.array, panel_vector(sums, block, row))
            value = normal_or_zero(relu(value) if rectify else tanh(value))
            store(h.array, h.start + row * h.stride + block * lanes, value)
            if keep:
                store(sums.array, panel_vector(sums, block, row), value)


@worker
def lstm_float32(job, piece, step):
    """The worker of this cell for float32."""
    _apply_lstm(job, np.float32(0))


@worker
def lstm_float64(job, piece, step):
    """The worker of this cell for float64."""
    _apply_lstm(job, np.float64(0))


@worker
def gru_float32(job, piece, step):
    """The worker of this cell for float32."""
    _apply_gru(job, np.float32(0))


@worker
def gru_float64(job, piece, step):
    """The worker of this cell for float64."""
    _apply_gru(job, np.float64(0))


@worker
def rnn_tanh_float32(job, piece, step):
    """The worker of this cell for float32."""
    _apply_rnn(False, job, np.float32(0))


@worker
def rnn_tanh_float64(job, piece, step):
    """The worker of this cell for float64."""
    _apply_rnn(False, job, np.float64(0))


@worker
def rnn_relu_float32(job, piece, step):
    """The worker of this cell for float32."""
    _apply_rnn(True, job, np.float32(0))


@worker
def rnn_relu_float64(job, piece, step):
    """The worker of this cell for float64."""
    _apply_rnn(True, job, np.float64(0))


_WORKERS = {
    _LSTM: (lstm_float32, lstm_float64),
    _GRU: (gru_float32, gru_float64),
    _RNN_TANH: (rnn_tanh_float32, rnn_tanh_float64),
    _RNN_RELU: (rnn_relu_float32, rnn_relu_float64),
}


def worker_of(code: int, dtype: np.dtype[Any]) -> Worker:
    """Return the worker of the cell of this code."""
    single, double = _WORKERS[code]
    return single if dtype == np.float32 else double


# The way back, for `vjp`: from the gradients of h' and c' to those of the gates' sums, of c, and of h as far as it does
# not go through the sums. `kept` is what the way there kept of a row, slots of `size` numbers; `gradients` has a slot
# for each gate (nblstm.kernels.job). d sigmoid(x) = s (1 - s) dx and d tanh(x) = (1 - t^2) dx, from their values.


@function
def _sigmoid_slope(s):
    return fma(-s, s, s)


@function
def _tanh_slope(t):
    return fma(-t, t, 1.0)


@function
def _back_lstm(kept, c_before, gradients, dh, dc, size, first_block, last_block):
    lanes = lanes_of(kept)
    for block in range(first_block, last_block):
        k = block * lanes
        i, f, g, o = load(kept, k), load(kept, size + k), load(kept, 2 * size + k), load(kept, 3 * size + k)
        t, d = tanh(load(kept, 4 * size + k)), normal_or_zero(load(dh.array, dh.start + k))
        d_c = fma(d * o, _tanh_slope(t), load(dc.array, dc.start + k))
        store(gradients, k, d_c * g * _sigmoid_slope(i))
        store(gradients, size + k, d_c * load(c_before, k) * _sigmoid_slope(f))
        store(gradients, 2 * size + k, d_c * i * _tanh_slope(g))
        store(gradients, 3 * size + k, d * t * _sigmoid_slope(o))
        store(dc.array, dc.start + k, normal_or_zero(d_c * f))


@function
def _back_gru(kept, h_before, gradients, dh, size, first_block, last_block):
    lanes = lanes_of(kept)
    for block in range(first_block, last_block):
        k = block * lanes
        r, z, n, h_sum = load(kept, k), load(kept, size + k), load(kept, 2 * size + k), load(kept, 3 * size + k)
        d = normal_or_zero(load(dh.array, dh.start + k))
        d_n = (d - d * z) * _tanh_slope(n)
        store(gradients, k, d_n)
        store(gradients, size + k, d_n * h_sum * _sigmoid_slope(r))
        store(gradients, 2 * size + k, d * (load(h_before, k) - n) * _sigmoid_slope(z))
        store(gradients, 3 * size + k, d_n * r)
        store(dh.array, dh.start + k, d * z)


@function
def _back_rnn(rectify, kept, gradients, dh, first_block, last_block):
    lanes = lanes_of(kept)
    for block in range(first_block, last_block):
        k = block * lanes
        h, d = load(kept, k), normal_or_zero(load(dh.array, dh.start + k))
        store(gradients, k, where_at_most_zero(h, 0.0, d) if rectify else d * _tanh_slope(h))


@function
def back_through_cell(code, kept, before, gradients, dh, dc, size, slots, units, first_block, last_block):
    """Take one row of unit blocks [first_block, last_block) of a layer of so many units back.

    kept       in     slots of `size` numbers, as the way there left them
    before     in     c of the step before, of a GRU h; whole vectors
    gradients  out    so many slots of `size` numbers; zeros for padded units
    dh         inout  Rows: at first the gradient of h'; at last that part of h's which does not go through the sums,
                      where the cell has such a part, else not touched
    dc         inout  Rows: from c' to c, where there is a cell state, else not touched
    """
    if code == _LSTM:
        _back_lstm(kept, before, gradients, dh, dc, size, first_block, last_block)
    elif code == _GRU:
        _back_gru(kept, before, gradients, dh, size, first_block, last_block)
    elif code in (_RNN_TANH, _RNN_RELU):
        _back_rnn(code == _RNN_RELU, kept, gradients, dh, first_block, last_block)
    # Where x is infinite, what was kept of padded units is no number: infinity times their zero weights. Nor are their
    # numbers of dh and dc, which nothing reads.
    lanes = lanes_of(kept)
    for slot in range(slots):
        for unit in range(slot * size + units, slot * size + last_block * lanes):
            gradients[unit] = 0
