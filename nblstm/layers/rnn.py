"""The plain recurrent layer: torch.nn.RNN's constructor, parameters, inputs and outputs, on this package's engine."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nblstm.engine.compiled import RNNWeights
from nblstm.kernels import cells
from nblstm.layers import checks
from nblstm.layers.hidden_state import HiddenStateLayer

CELLS = {"tanh": cells.RNN_TANH, "relu": cells.RNN_RELU}


class RNNTrace(NamedTuple):
    """What one layer and direction of an RNN went through, from `RNN.trace`."""

    h: Any  # hidden state (T, B, H), in the form of the input


class RNN(HiddenStateLayer):
    """An Elman network of one or more layers in one or two directions, as ``torch.nn.RNN``.

    The equation, and where it comes from, stands in `nblstm.reference.rnn_step`. The layer's own parameters are
    attributes, read-only arrays with torch's names. For each layer l, and then again with the ending ``_reverse``:
    ``weight_ih_l`` (H, I), or (H, D*H) if l > 0; ``weight_hh_l`` (H, H); ``bias_ih_l`` and ``bias_hh_l`` (H,). All
    start from U(-1/sqrt(H), 1/sqrt(H)).

    Parameters
    ----------
    input_size : int
        I, the features of an input step.
    hidden_size : int
        H, the hidden units of a layer and direction.
    num_layers : int
        L; layer l > 0 reads the output of layer l - 1.
    nonlinearity : {"tanh", "relu"}
        What makes h of the sums.
    bias : bool
        False: no ``bias_ih`` and ``bias_hh``.
    batch_first : bool
        True: input and output are (B, T, ...) instead of (T, B, ...); the state is not concerned.
    dropout : float
        Probability with which an output of a layer but the last is set to zero, in training mode alone.
    bidirectional : bool
        True: D = 2 directions, their outputs side by side; else D = 1.
    dtype : dtype
        float32 or float64: the type of parameters, inputs and outputs.
    seed : int, optional
        Determines the initial parameters and the dropout masks; None: different ones each time.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or out of range, where torch.nn.RNN raises the same.

    Warns
    -----
    UserWarning
        Dropout where no layer follows, as in torch.

    Examples
    --------
    >>> import numpy as np
    >>> rnn = RNN(input_size=10, hidden_size=20, nonlinearity="relu", seed=0)
    >>> output, h_n = rnn(np.zeros((5, 3, 10), np.float32))
    >>> output.shape, h_n.shape
    ((5, 3, 20), (1, 3, 20))
    """

    _FIXED = HiddenStateLayer._FIXED | {"nonlinearity"}
    _CELL = cells.RNN_TANH
    _TRACE = RNNTrace
    _COMPILED = RNNWeights
    _TRACE_SLOTS = ()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        self.nonlinearity = checks.check_nonlinearity(type(self).__name__, nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, dtype, seed)

    @property
    def _cell(self) -> cells.Cell:
        return CELLS[self.nonlinearity]
