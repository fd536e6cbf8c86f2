"""The equations of each cell for one unit of one row, once for both ways and both dtypes, as functions of a device.

They are those of `nblstm.reference` and of the CPU's `nblstm.kernels.cells`. `cell_functions` makes them for a dtype.
A kernel hands a cell what it needs in small arrays of the thread:

    x        (G + 1,)  the sums over the input, with the bias, by gate; then c of the step before, of a GRU h
    sums     (G,)      the sums over the hidden units; of a GRU with the bias of the last gate
    kept     (K,)      what the way back needs: values of the gates, then what stands in `Cell`
    slopes   (G',)     gradients of the sums; of a GRU r, z, n over the input, n over the hidden units
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from nblstm.cuda.device import cuda, device_function
from nblstm.kernels import cells


def has_kernels(cell: cells.Cell) -> bool:
    """Say whether the GPU has kernels for a cell."""
    return cell in (cells.LSTM, cells.GRU, cells.RNN_TANH, cells.RNN_RELU)


class CellFunctions(NamedTuple):
    """One cell in one dtype."""

    step: Any  # step(x, item, sums, kept) -> h', c' (without a cell state: h' again)
    back: Any  # back(kept, h, dh, dc, slopes) -> what goes to h without going through the sums, dc of the step before
    kept: int  # K


@functools.cache
def cell_functions(cell: cells.Cell, dtype: np.dtype[Any]) -> CellFunctions:
    """Return the functions of a cell that compute in a dtype."""
    number, zero, one = dtype.type, dtype.type(0), dtype.type(1)

    def sigmoid(x):
        e = number(math.exp(-abs(x)))
        return one / (one + e) if x >= zero else e / (one + e)

    def lstm(x, item, sums, kept):
        i, f = sigmoid(x[item, 0] + sums[0]), sigmoid(x[item, 1] + sums[1])
        g, o = number(math.tanh(x[item, 2] + sums[2])), sigmoid(x[item, 3] + sums[3])
        before = x[item, 4]
        c = cuda.fma(f, before, i * g)
        kept[0], kept[1], kept[2], kept[3], kept[4] = i, f, g, o, before
        return o * number(math.tanh(c)), c

    def back_lstm(kept, h, dh, dc, slopes):
        i, f, g, o, before = kept[0], kept[1], kept[2], kept[3], kept[4]
        t = number(math.tanh(cuda.fma(f, before, i * g)))
        d = cuda.fma(dh * o, one - t * t, dc)
        slopes[0], slopes[1] = d * g * (i * (one - i)), d * before * (f * (one - f))
        slopes[2], slopes[3] = d * i * (one - g * g), dh * t * (o * (one - o))
        return zero, d * f

    def gru(x, item, sums, kept):
        r, z = sigmoid(x[item, 0] + sums[0]), sigmoid(x[item, 1] + sums[1])
        n = number(math.tanh(cuda.fma(r, sums[2], x[item, 2])))
        kept[0], kept[1], kept[2], kept[3] = r, z, n, sums[2]
        h = cuda.fma(z, x[item, 3] - n, n)
        return h, h

    def back_gru(kept, h, dh, dc, slopes):
        r, z, n, h_sum = kept[0], kept[1], kept[2], kept[3]
        d = dh * (one - z) * (one - n * n)
        slopes[0], slopes[1] = d * h_sum * (r * (one - r)), dh * (h - n) * (z * (one - z))
        slopes[2], slopes[3] = d, d * r
        return dh * z, zero

    def rnn_tanh(x, item, sums, kept):
        h = number(math.tanh(x[item, 0] + sums[0]))
        kept[0] = h
        return h, h

    def back_rnn_tanh(kept, h, dh, dc, slopes):
        slopes[0] = dh * (one - kept[0] * kept[0])
        return zero, zero

    def rnn_relu(x, item, sums, kept):
        total = x[item, 0] + sums[0]
        h = zero if total < zero else total  # NaN stays
        kept[0] = h
        return h, h

    def back_rnn_relu(kept, h, dh, dc, slopes):
        slopes[0] = zero if kept[0] <= zero else dh  # as where h is NaN
        return zero, zero

    sigmoid = device_function(sigmoid)
    step, back, kept = {
        cells.LSTM: (lstm, back_lstm, 5),
        cells.GRU: (gru, back_gru, 4),
        cells.RNN_TANH: (rnn_tanh, back_rnn_tanh, 1),
        cells.RNN_RELU: (rnn_relu, back_rnn_relu, 1),
    }[cell]
    return CellFunctions(device_function(step), device_function(back), kept)
