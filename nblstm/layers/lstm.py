"""The LSTM layer: torch.nn.LSTM's constructor, parameters, inputs and outputs, on the engine of this package."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array
from nblstm.engine.compiled import LSTMWeights
from nblstm.kernels import cells
from nblstm.layers.gradients import Backward
from nblstm.layers.recurrent import RecurrentLayer
from nblstm.sequences import PackedLike, PackedSequence


class LSTMTrace(NamedTuple):
    """What one layer and direction of an LSTM went through, from `LSTM.trace`; each (T, B, H) in the form of the input.

    The letters are those of `nblstm.reference.lstm_step`.
    """

    h: Any  # hidden state (T, B, P)
    c: Any  # cell state
    i: Any  # input gate
    f: Any  # forget gate
    g: Any  # candidate
    o: Any  # output gate


class LSTM(RecurrentLayer):
    """A long short-term memory network of one or more layers in one or two directions, as ``torch.nn.LSTM``.

    The equations, and where they come from, stand in `nblstm.reference.lstm_step`. The layer's own parameters are
    attributes, read-only arrays with torch's names. For each layer l, and then again with the ending ``_reverse``:
    ``weight_ih_l`` (4H, I), or (4H, D*P) if l > 0; ``weight_hh_l`` (4H, P); ``bias_ih_l`` and ``bias_hh_l`` (4H,);
    with a projection ``weight_hr_l`` (P, H). The 4H rows are those of the gates i, f, g, o. All start from
    U(-1/sqrt(H), 1/sqrt(H)).

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
        True: input and output are (B, T, ...) instead of (T, B, ...); states are not concerned.
    dropout : float
        Probability with which an output of a layer but the last is set to zero, in training mode alone.
    bidirectional : bool
        True: D = 2 directions, their outputs side by side; else D = 1.
    proj_size : int
        P, the size of h after a projection; 0: no projection, and P = H.
    dtype : dtype
        float32 or float64: the type of parameters, inputs and outputs.
    seed : int, optional
        Determines the initial parameters and the dropout masks; None: different ones each time.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or out of range, where torch.nn.LSTM raises the same.

    Warns
    -----
    UserWarning
        Dropout where no layer follows, as in torch.

    Examples
    --------
    >>> import numpy as np
    >>> lstm = LSTM(input_size=10, hidden_size=20, num_layers=2, seed=0)
    >>> output, (h_n, c_n) = lstm(np.zeros((5, 3, 10), np.float32))
    >>> output.shape, h_n.shape, c_n.shape
    ((5, 3, 20), (2, 3, 20), (2, 3, 20))
    """

    _CELL = cells.LSTM
    _TRACE = LSTMTrace
    _COMPILED = LSTMWeights
    _TRACE_SLOTS = 4, 0, 1, 2, 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, dtype, seed
        )

    @overload
    def __call__(
        self,
        x: PackedLike,
        hx: tuple[Any, Any] | None = None,
        *,
        lengths: None = None,
        out: Array | None = None,
        dropout_call: int | None = None,
    ) -> tuple[PackedSequence, tuple[Array, Array]]: ...

    @overload
    def __call__(
        self,
        x: Any,
        hx: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        out: Array | None = None,
        dropout_call: int | None = None,
    ) -> tuple[Array, tuple[Array, Array]]: ...

    def __call__(
        self,
        x: Any,
        hx: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        out: Array | None = None,
        dropout_call: int | None = None,
    ) -> tuple[Any, Any]:
        """Run the network over whole sequences.

        Parameters
        ----------
        x : array or PackedSequence
            (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched; of the layer's dtype. Anything that is an array
            to NumPy, or has ``__dlpack__``, or holds such arrays as a packed sequence. Never written to.
        hx : (array, array), optional
            h_0 (L*D, B, P) and c_0 (L*D, B, H), without B if x is unbatched. None: zeros.
        lengths : (B,) whole numbers, optional
            The valid steps of each row of a padded x, from 1 to T. What stands past them is never read.
        out : array, optional
            Where to write the output: any strides, but no memory in common with x and hx.
        dropout_call : int, optional
            The number of the dropout mask, from 0 to 2**64 - 1. None: the next one of this layer.

        Returns
        -------
        output : array or PackedSequence
            (T, B, D*P), (B, T, D*P), (T, D*P) or packed, as x is; zero past each row's length.
        (h_n, c_n) : (array, array)
            Shaped like h_0 and c_0; the states at each row's last valid step.

        Raises
        ------
        ValueError
            Another number of axes, another dtype, an `out` that cannot be written to, lengths beyond T.
        RuntimeError
            Other sizes than these, T = 0, lengths below 1.
        TypeError
            Something that is no array of numbers.

        Examples
        --------
        >>> import numpy as np
        >>> lstm = LSTM(2, 3, batch_first=True, seed=0)
        >>> x = np.ones((2, 5, 2), np.float32)
        >>> output, (h_n, c_n) = lstm(x, lengths=[5, 2])
        >>> bool((output[1, 1] == h_n[0, 1]).all()), float(abs(output[1, 2:]).max())
        (True, 0.0)
        """
        output, (h_n, c_n) = self._run(x, hx, lengths, out, dropout_call)
        return output, (h_n, c_n)

    def vjp(
        self,
        x: Any,
        hx: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        input: bool = True,
        dropout_call: int | None = None,
    ) -> tuple[tuple[Any, tuple[Array, Array]], Backward]:
        """Run the network, and return the way back through it: the vector-Jacobian product.

        ``(output, (h_n, c_n)), backward = lstm.vjp(x)`` gives what a call gives, and ``gradients = backward(d_output,
        d_state)`` the gradients of a scalar whose gradients by the output and the last states these are:
        `Gradients` of the input, of hx and of every parameter. The arguments are those of a call; with ``input=False``
        the gradient of the input is not computed. For truncated backpropagation hand the states on to the next call:
        no gradient flows through them.

        >>> import numpy as np
        >>> from nblstm import LSTM
        >>> lstm = LSTM(2, 3, seed=0)
        >>> (output, (h_n, c_n)), backward = lstm.vjp(np.ones((5, 1, 2), np.float32))
        >>> gradients = backward(d_output=np.ones_like(output))
        >>> gradients.input.shape, gradients.parameters["weight_hh_l0"].shape
        ((5, 1, 2), (12, 3))
        """
        output, (h_n, c_n), backward = self._vjp(x, hx, lengths, input, dropout_call)
        return (output, (h_n, c_n)), backward
