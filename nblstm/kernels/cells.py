"""The equations of the cells, on vectors: what happens to a unit once its gates' sums are known."""

from __future__ import annotations

from nblstm.kernels.activations import sigmoid, tanh
from nblstm.kernels.policy import function
from nblstm.kernels.simd import fma

LSTM_GATES = 4


@function
def lstm_cell(i, f, g, o, c):
    """Return (h, c) of the next step from the sums of the four gates and the cell state.

    S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, with the forget gate of
    F. Gers et al., Learning to Forget, 2000:   c' = sigmoid(f) c + sigmoid(i) tanh(g)     h' = sigmoid(o) tanh(c')
    """
    c = fma(sigmoid(f), c, sigmoid(i) * tanh(g))
    return sigmoid(o) * tanh(c), c
