"""Single time steps as layers: torch.nn.LSTMCell's constructor, parameters, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array
from nblstm.engine.packing import DirectionWeights
from nblstm.engine.run import SequenceLayout, run_lstm
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.base import Layer, common_dtype
from nblstm.layers.lstm import pack_parameters
from nblstm.weights.names import find_cell


class LSTMCell(Layer):
    """One time step of an LSTM layer, as ``torch.nn.LSTMCell``. Equations: `nblstm.reference.lstm_step`.

    The cell's own parameters are attributes, read-only arrays: ``weight_ih`` (4H, I), ``weight_hh`` (4H, H),
    ``bias_ih`` and ``bias_hh`` (4H,). The 4H rows are those of the gates i, f, g, o. All start from
    U(-1/sqrt(H), 1/sqrt(H)).

    Parameters
    ----------
    input_size : int
        I, the features of the input; 0 is allowed, as in torch.
    hidden_size : int
        H, the hidden units.
    bias : bool
        False: no ``bias_ih`` and ``bias_hh``.
    dtype : dtype
        float32 or float64: the type of parameters, inputs and outputs.
    seed : int, optional
        Determines the initial parameters; None: different ones each time.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> cell = LSTMCell(10, 20, seed=0)
    >>> h, c = cell(np.zeros((3, 10), np.float32))
    >>> h, c = cell(np.ones((3, 10), np.float32), (h, c))
    >>> h.shape, c.shape
    ((3, 20), (3, 20))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.input_size = checks.check_integer(name, "input_size", input_size)
        if input_size < 0:
            raise ValueError(message(f"{name} input_size", "0 or more", input_size))
        self.hidden_size = checks.check_size(name, "hidden_size", hidden_size)
        self.bias = checks.check_flag(name, "bias", bias)
        rows = 4 * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        self._initialise(shapes, hidden_size, dtype, np.random.SeedSequence(checks.check_seed(name, seed)))

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Any], prefix: str = "", *, dtype: npt.DTypeLike | None = None
    ) -> LSTMCell:
        """Build the cell whose parameters are in `state_dict`, as `LSTM.from_state_dict` does for a layer.

        >>> LSTMCell.from_state_dict({"cell." + name: array for name, array in LSTMCell(3, 4).state_dict().items()})
        LSTMCell(3, 4)
        """
        found = find_cell(state_dict, prefix)
        dtype = common_dtype(found.parameters) if dtype is None else dtype
        sizes = found.input_size, found.hidden_size
        return cls._with_parameters(found.parameters, *sizes, bias=found.bias, dtype=dtype)

    def __call__(self, x: Any, hx: tuple[Any, Any] | None = None) -> tuple[Array, Array]:
        """Take one step.

        Parameters
        ----------
        x : array
            (B, I), or (I,) unbatched; of the cell's dtype. Never written to.
        hx : (array, array), optional
            h and c, each (B, H), or (H,) if x is unbatched. None: zeros.

        Returns
        -------
        (h, c) : (array, array)
            The next states, shaped like hx.

        Raises
        ------
        ValueError
            Another number of axes, or another dtype.
        RuntimeError
            Other sizes than these.
        TypeError
            Something that is no array of numbers.
        """
        weights, name = self._weights, type(self).__name__
        array = checks.check_array(f"{name} input", x, weights.dtype)
        batched, unbatched = f"(B, {self.input_size})", f"({self.input_size},)"
        checks.check_axes(name, "input", array, batched, unbatched)
        if array.shape[-1] != self.input_size:
            expected = unbatched if array.ndim == 1 else batched
            because = f"input_size={self.input_size}"
            raise RuntimeError(message(f"{name} input", expected, array.shape, because=because))
        rows = array if array.ndim == 2 else array[None]
        h_0 = c_0 = None
        if hx is not None:
            h_0, c_0 = self._states(name, hx, array)
        y = np.empty((1, len(rows), self.hidden_size), weights.dtype)
        layout = SequenceLayout(1, len(rows))
        h_n, c_n = run_lstm(weights.packed(self._pack), rows[None], layout, h_0, c_0, y)
        return (h_n[0], c_n[0]) if array.ndim == 2 else (h_n[0, 0], c_n[0, 0])

    def _states(self, name: str, hx: Any, x: Array) -> list[Array]:
        """Return the states in `hx`, which fit the input `x`, as (1, B, H) each."""
        size = self.hidden_size
        states = checks.check_states(name, hx, 2, x.dtype)
        for index, state in enumerate(states):
            checks.check_axes(name, f"hx[{index}]", state, f"(B, {size})", f"({size},)")
        checks.check_state_shapes(name, states, [(*x.shape[:-1], size)] * 2, x.ndim == 2)
        return [state.reshape(1, -1, size) for state in states]

    def _pack(self, parameters: Mapping[str, Array]) -> list[list[DirectionWeights]]:
        """Return the parameters as the panels that the kernels read: one layer, one direction."""
        return [[pack_parameters(parameters, "")]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{'' if self.bias else ', bias=False'})"
