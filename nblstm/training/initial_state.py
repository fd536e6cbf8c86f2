"""The states in which a recurrent layer begins, as parameters that are learned with the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nblstm.arrays import Array, as_whole_number
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.base import Layer
from nblstm.layers.recurrent import RecurrentLayer
from nblstm.training.gradients import Gradients


class InitialState(Layer):
    """Learned first states of an `LSTM`, `GRU` or `RNN`: the same for every row of a batch.

    The parameters are ``h_0`` (L*D, P) and, for an LSTM, ``c_0`` (L*D, H), zeros at first, of the layer's dtype. torch
    has no such layer; there one expands two parameters by hand.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Whose states they are; only its sizes are read.

    Raises
    ------
    TypeError
        `layer` is none of these.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm import LSTM
    >>> lstm = LSTM(4, 8, num_layers=2, seed=0)
    >>> initial = InitialState(lstm)
    >>> (h_0, c_0), backward = initial.vjp(3)
    >>> (output, _), lstm_backward = lstm.vjp(np.ones((5, 3, 4), np.float32), (h_0, c_0))
    >>> gradients = backward(lstm_backward(np.ones_like(output)).hx)
    >>> gradients.parameters["c_0"].shape
    (2, 8)
    """

    def __init__(self, layer: RecurrentLayer) -> None:
        name = type(self).__name__
        if not isinstance(layer, RecurrentLayer):
            raise TypeError(message(f"{name} layer", "an LSTM, GRU or RNN", type(layer).__name__))
        rows = layer.num_layers * layer._directions
        shapes = {"h_0": (rows, layer.proj_size or layer.hidden_size)}
        if layer._cell.has_cell_state:
            shapes["c_0"] = (rows, layer.hidden_size)
        self._start(shapes, layer.dtype, None, lambda random, shape: np.zeros(shape))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={array.shape}" for name, array in self.named_parameters())
        return f"{type(self).__name__}({shapes})"

    def __call__(self, batch: int | None = None) -> Any:
        """Return the states for so many rows, as the layer takes them for hx; None: for an unbatched input.

        (h_0, c_0) of an LSTM, h_0 of the others; (L*D, B, size) each, fresh. Raises TypeError for what is no whole
        number, ValueError below 0.
        """
        return self.vjp(batch)[0]

    def vjp(self, batch: int | None = None) -> tuple[Any, Callable[[Any], Gradients]]:
        """Return the states, and the way back: ``gradients = backward(d_hx)``, any number of times.

        d_hx is the ``hx`` of what the recurrent layer's backward returned. The gradients of ``h_0`` and ``c_0`` are its
        sums over the rows, in their order.
        """
        name, weights = type(self).__name__, self._weights
        rows = () if batch is None else (as_whole_number(f"{name} batch", batch),)
        if batch is not None and batch < 0:
            raise ValueError(message(f"{name} batch", "0 or more", batch))
        shapes = {key: (len(array), *rows, array.shape[1]) for key, array in weights.parameters.items()}
        states = [_expanded(array, shapes[key]) for key, array in weights.parameters.items()]

        def backward(d_hx: Any) -> Gradients:
            given = checks.check_states(f"{name} backward", d_hx, len(shapes), weights.dtype, name="d_hx")
            found = {}
            for (key, shape), array in zip(shapes.items(), given, strict=True):
                if array.shape != shape:
                    because = "the state has that shape"
                    raise ValueError(message(f"{name} backward d_hx", str(shape), array.shape, because=because))
                found[key] = _summed(array)
            return Gradients(None, found)

        return tuple(states) if len(states) > 1 else states[0], backward


def _expanded(array: Array, shape: tuple[int, ...]) -> Array:
    return np.array(array if array.ndim == len(shape) else np.broadcast_to(array[:, None], shape), order="C")


def _summed(array: Array) -> Array:
    """Return the sum over the rows of a batch, where there are any."""
    if array.ndim == 2:
        return array.copy()
    with np.errstate(all="ignore"):  # infinities are not for NumPy to warn of
        return np.asarray(np.ascontiguousarray(array).sum(axis=1, dtype=np.float64).astype(array.dtype))
