"""The GRU layer: torch.nn.GRU's constructor, parameters, inputs and outputs, on the engine of this package."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nblstm.engine.compiled import GRUWeights
from nblstm.kernels import cells
from nblstm.layers.hidden_state import HiddenStateLayer


class GRUTrace(NamedTuple):
    """What one layer and direction of a GRU went through, from `GRU.trace`; each (T, B, H) in the form of the input.

    The letters are those of `nblstm.reference.gru_step`.
    """

    h: Any  # hidden state
    r: Any  # reset gate
    z: Any  # update gate
    n: Any  # candidate


class GRU(HiddenStateLayer):
    """A network of gated recurrent units of one or more layers in one or two directions, as ``torch.nn.GRU``.

    The equations, and where they come from, stand in `nblstm.reference.gru_step`. The layer's own parameters are
    attributes, read-only arrays with torch's names. For each layer l, and then again with the ending ``_reverse``:
    ``weight_ih_l`` (3H, I), or (3H, D*H) if l > 0; ``weight_hh_l`` (3H, H); ``bias_ih_l`` and ``bias_hh_l`` (3H,). The
    3H rows are those of the gates r, z, n. All start from U(-1/sqrt(H), 1/sqrt(H)).

    Parameters
    ----------
    input_size : int
        I, the features of an input step.
    hidden_size : int
        H, the hidden units of a layer and direction.
    num_layers : int
        L; layer l > 0 reads the output of layer l - 1.
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
        An argument of another type or out of range, where torch.nn.GRU raises the same.

    Warns
    -----
    UserWarning
        Dropout where no layer follows, as in torch.

    Examples
    --------
    >>> import numpy as np
    >>> gru = GRU(input_size=10, hidden_size=20, num_layers=2, seed=0)
    >>> output, h_n = gru(np.zeros((5, 3, 10), np.float32))
    >>> output.shape, h_n.shape
    ((5, 3, 20), (2, 3, 20))
    """

    _CELL = cells.GRU
    _TRACE = GRUTrace
    _COMPILED = GRUWeights
    _TRACE_SLOTS = 0, 1, 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, dtype, seed)
