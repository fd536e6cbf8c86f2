"""LSTM, GRU and RNN inside a user's own ``@njit`` code: no Python, no allocation, the bits of the layers.

>>> import numba
>>> import numpy as np
>>> from nblstm import LSTM, nopython
>>> @numba.njit
... def decay(weights, x, h, c, steps):
...     for _ in range(steps):
...         nopython.lstm_step(weights, x, h, c, h, c)
...         x[:] = 0.5 * h[-1]
>>> lstm = LSTM(4, 4, num_layers=2, seed=0)
>>> x, h, c = np.ones(4, np.float32), np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
>>> decay(lstm.nopython_weights(), x, h, c, 1000)

A network has L layers, I input features, H hidden units, and P = H outputs or those of a projection. All arrays are
C-contiguous and of the layer's dtype. States are h (L, P) and, of an LSTM, c (L, H), for one row: a batch is a loop,
perhaps a ``numba.prange``, over rows that each have their states. States after a step may be written over those before
it (the same array), otherwise arrays must not overlap.

The functions can be called from Python, and from ``@njit`` functions with any options: ``parallel=True`` and
``fastmath=True`` change nothing in them. Arrays of other types, or that cannot be written to, are refused when the
caller is compiled (numba.TypingError), of other sizes when it runs: ValueError, or in a ``prange`` what Numba makes of
it there.

Scratch memory comes from the stack, up to 1 MB of it for very large networks, which `nopython_weights` refuses beyond
that; 100 KB for one layer of 1,024 units. A thread may have less than that: ``threading.stack_size``.

Weights are what they were when `nopython_weights` was called. They may be used by many threads at once, and pickled.
They are to be an argument of the function, and are refused as a global: they hold addresses of this process. A function
that Numba keeps on disk is compiled anew when nblstm has changed, because the type of weights has.
"""

from __future__ import annotations

from collections.abc import Callable

from numba.core import types
from numba.core.errors import TypingError
from numba.extending import overload

from nblstm.engine.compiled import GRUWeights, LSTMWeights, RNNWeights
from nblstm.errors import message
from nblstm.kernels.one_row import back_through_network, have_sizes_of, job_of, parameters_of, run_network, set_state
from nblstm.kernels.policy import function, open_entry

__all__ = [
    "GRUWeights",
    "LSTMWeights",
    "RNNWeights",
    "gru_sequence",
    "gru_step",
    "gru_step_backward",
    "lstm_sequence",
    "lstm_step",
    "lstm_step_backward",
    "rnn_sequence",
    "rnn_step",
    "rnn_step_backward",
]

_X = "nopython x and d_x: expected (I,), or (T, I) for a sequence, with the I input features of these weights"
_STATES = "nopython states and their gradients: expected h (L, P) and c (L, H) with the sizes of these weights"
_OUTPUT = "nopython output: expected (T, P) with the T steps of x and the P outputs of these weights"
_PARAMETERS = "nopython d_parameters: expected as many numbers as the parameters have together, or none"
_BACKWARD = "nopython weights: expected those of nopython_weights(backward=True)"


def _checker(kind: type, axes: int) -> Callable[..., None]:
    """Return a function of compiled code that refuses, when its caller is compiled, arguments of other types.

    It is called with the weights, a tuple of arrays with `axes` axes, a tuple of states, and those that are written to.
    """

    def nopython_arguments(weights, rows, states, written):
        pass

    @overload(nopython_arguments)
    def _nopython_arguments(weights, rows, states, written):
        if not isinstance(weights, types.NamedTuple) or weights.instance_class is not kind:
            expected = f"{kind.__name__}, what `nopython_weights` gives"
            raise TypingError(message("nopython weights", expected, str(weights)[:60]))
        dtype = weights.types[1].dtype
        for array, count in [*((row, axes) for row in rows), *((state, 2) for state in states)]:
            fitting = isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (dtype, count, "C")
            if not fitting:
                expected = f"a C-contiguous {dtype} array of {count} axes"
                raise TypingError(message("nopython argument", expected, str(array)))
        for array in written:
            if not array.mutable:
                raise TypingError(message("nopython argument", "an array that can be written to", str(array)))
        return lambda weights, rows, states, written: None

    return nopython_arguments


_check_lstm_step, _check_lstm_sequence = _checker(LSTMWeights, 1), _checker(LSTMWeights, 2)
_check_gru_step, _check_gru_sequence = _checker(GRUWeights, 1), _checker(GRUWeights, 2)
_check_rnn_step, _check_rnn_sequence = _checker(RNNWeights, 1), _checker(RNNWeights, 2)


@function
def _step(weights, x, h, c, h_out, c_out):
    """Go one step; without a cell state h stands for c."""
    if x.size != job_of(weights, 0).inputs:
        raise ValueError(_X)
    if not have_sizes_of(weights, h, c) or h_out.shape != h.shape or c_out.shape != c.shape:
        raise ValueError(_STATES)
    set_state(h, h_out)
    set_state(c, c_out)
    run_network(weights, x.ctypes.data, 0, 1, h_out.ctypes.data, c_out.ctypes.data)


@function
def _sequence(weights, x, h, c, output, h_out, c_out):
    if x.shape[1] != job_of(weights, 0).inputs:
        raise ValueError(_X)
    if output.shape != (x.shape[0], job_of(weights, 0).outputs):
        raise ValueError(_OUTPUT)
    if not have_sizes_of(weights, h, c) or h_out.shape != h.shape or c_out.shape != c.shape:
        raise ValueError(_STATES)
    set_state(h, h_out)
    set_state(c, c_out)
    run_network(weights, x.ctypes.data, output.ctypes.data, x.shape[0], h_out.ctypes.data, c_out.ctypes.data)


@function
def _step_backward(weights, x, h, c, d_h, d_c, d_x, d_parameters):
    if job_of(weights, 0).worker_back == 0:
        raise ValueError(_BACKWARD)
    if x.size != job_of(weights, 0).inputs or d_x.size != x.size:
        raise ValueError(_X)
    if not have_sizes_of(weights, h, c) or d_h.shape != h.shape or d_c.shape != c.shape:
        raise ValueError(_STATES)
    if d_parameters.size != 0 and d_parameters.size != parameters_of(weights):
        raise ValueError(_PARAMETERS)
    states = h.ctypes.data, c.ctypes.data, d_h.ctypes.data, d_c.ctypes.data
    back_through_network(weights, x.ctypes.data, *states, d_x.ctypes.data, d_parameters.ctypes.data, d_parameters.size)


@open_entry
def lstm_step(weights, x, h, c, h_out, c_out):
    """Go one step through all layers: `nblstm.reference.lstm_step`.

    weights  what ``lstm.nopython_weights()`` gives
    x        in   (I,)
    h, c     in   (L, P) and (L, H)
    h_out    out  (L, P); its last row is the output of the network
    c_out    out  (L, H)

    >>> import numpy as np
    >>> from nblstm import LSTM
    >>> from nblstm.nopython import lstm_step
    >>> lstm = LSTM(3, 4, seed=0)
    >>> weights, x = lstm.nopython_weights(), np.ones(3, np.float32)
    >>> h, c = np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)
    >>> lstm_step(weights, x, h, c, h, c)
    >>> bool((h[0] == lstm(x[None])[0][0]).all())
    True
    """
    _check_lstm_step(weights, (x,), (h, c, h_out, c_out), (h_out, c_out))
    _step(weights, x, h, c, h_out, c_out)


@open_entry
def lstm_sequence(weights, x, h, c, output, h_out, c_out):
    """Go through a sequence: as `lstm_step` for each row of x.

    x       in   (T, I)
    output  out  (T, P): the output of the last layer at each step
    h, c, h_out, c_out: the states before the first and after the last step
    """
    _check_lstm_sequence(weights, (x, output), (h, c, h_out, c_out), (output, h_out, c_out))
    _sequence(weights, x, h, c, output, h_out, c_out)


@open_entry
def lstm_step_backward(weights, x, h, c, d_h, d_c, d_x, d_parameters):
    """Go back through one step, which is done again for that, from the gradients of its results.

    weights       what ``lstm.nopython_weights(backward=True)`` gives
    x, h, c       in     as in `lstm_step`: the states before the step
    d_h, d_c      inout  from the gradients of the states after the step to those of the states before it
    d_x           out    (I,)
    d_parameters  inout  (N,): the gradients are added to it, flat and in the order of ``lstm.state_dict()``; of no
                         elements: they are not computed
    """
    _check_lstm_step(weights, (x, d_x, d_parameters), (h, c, d_h, d_c), (d_h, d_c, d_x, d_parameters))
    _step_backward(weights, x, h, c, d_h, d_c, d_x, d_parameters)


@open_entry
def gru_step(weights, x, h, h_out):
    """Go one step through all layers: `nblstm.reference.gru_step`.

    weights  what ``gru.nopython_weights()`` gives
    x        in   (I,)
    h        in   (L, H)
    h_out    out  (L, H); its last row is the output of the network
    """
    _check_gru_step(weights, (x,), (h, h_out), (h_out,))
    _step(weights, x, h, h, h_out, h_out)


@open_entry
def gru_sequence(weights, x, h, output, h_out):
    """Go through a sequence: as `gru_step` for each row of x.

    x       in   (T, I)
    output  out  (T, P): the output of the last layer at each step
    h, h_out: the states before the first and after the last step
    """
    _check_gru_sequence(weights, (x, output), (h, h_out), (output, h_out))
    _sequence(weights, x, h, h, output, h_out, h_out)


@open_entry
def gru_step_backward(weights, x, h, d_h, d_x, d_parameters):
    """Go back through one step, which is done again for that, from the gradients of its results.

    weights       what ``gru.nopython_weights(backward=True)`` gives
    x, h          in     as in `gru_step`: the states before the step
    d_h           inout  from the gradients of the states after the step to those of the states before it
    d_x           out    (I,)
    d_parameters  inout  (N,): the gradients are added to it, flat and in the order of ``gru.state_dict()``; of no
                         elements: they are not computed
    """
    _check_gru_step(weights, (x, d_x, d_parameters), (h, d_h), (d_h, d_x, d_parameters))
    _step_backward(weights, x, h, h, d_h, d_h, d_x, d_parameters)


@open_entry
def rnn_step(weights, x, h, h_out):
    """Go one step through all layers: `nblstm.reference.rnn_step`.

    weights  what ``rnn.nopython_weights()`` gives
    x        in   (I,)
    h        in   (L, H)
    h_out    out  (L, H); its last row is the output of the network
    """
    _check_rnn_step(weights, (x,), (h, h_out), (h_out,))
    _step(weights, x, h, h, h_out, h_out)


@open_entry
def rnn_sequence(weights, x, h, output, h_out):
    """Go through a sequence: as `rnn_step` for each row of x.

    x       in   (T, I)
    output  out  (T, P): the output of the last layer at each step
    h, h_out: the states before the first and after the last step
    """
    _check_rnn_sequence(weights, (x, output), (h, h_out), (output, h_out))
    _sequence(weights, x, h, h, output, h_out, h_out)


@open_entry
def rnn_step_backward(weights, x, h, d_h, d_x, d_parameters):
    """Go back through one step, which is done again for that, from the gradients of its results.

    weights       what ``rnn.nopython_weights(backward=True)`` gives
    x, h          in     as in `rnn_step`: the states before the step
    d_h           inout  from the gradients of the states after the step to those of the states before it
    d_x           out    (I,)
    d_parameters  inout  (N,): the gradients are added to it, flat and in the order of ``rnn.state_dict()``; of no
                         elements: they are not computed
    """
    _check_rnn_step(weights, (x, d_x, d_parameters), (h, d_h), (d_h, d_x, d_parameters))
    _step_backward(weights, x, h, h, d_h, d_h, d_x, d_parameters)
