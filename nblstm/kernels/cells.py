"""The equations of the cells, on vectors: what happens to a unit once its gates' sums are known."""

from __future__ import annotations

from nblstm.kernels.activations import sigmoid, tanh
from nblstm.kernels.policy import function
from nblstm.kernels.simd import fma

LSTM_GATES = 4


@function
def lstm_cell_state(i, f, g, c):
    """Return c' = sigmoid(f) c + sigmoid(i) tanh(g) from the sums of three gates and the cell state.

    S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997, with the forget gate of
    F. Gers et al., Learning to Forget, 2000.
    """
    return fma(sigmoid(f), c, sigmoid(i) * tanh(g))


@function
def lstm_hidden_state(o, c):
    """Return h' = sigmoid(o) tanh(c') from the sum of the output gate and the next cell state."""
    return sigmoid(o) * tanh(c)
