"""A network that goes on step by step, as its input comes in: what `stream` of LSTM, GRU and RNN returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nblstm.arrays import Array
from nblstm.engine.packing import DirectionWeights
from nblstm.engine.run import SequenceLayout, run_layers
from nblstm.engine.stepping import Stepper, is_plain, runs_alone
from nblstm.errors import message
from nblstm.layers import checks


class Stream:
    """A network that goes on step by step: ``y = stream(x)``, with the bits of one call over all steps.

    It keeps the weights that the layer had when it was made, and applies no dropout. It is not for two threads at once;
    `copy` gives another one that goes on from the same states.

    >>> import numpy as np
    >>> from nblstm import LSTM
    >>> lstm = LSTM(3, 4, num_layers=2, seed=0)
    >>> x = np.ones((5, 1, 3), np.float32)
    >>> stream = lstm.stream()
    >>> steps = [stream(step) for step in x]
    >>> output, (h_n, c_n) = lstm(x)
    >>> bool((output == np.stack(steps)).all()), bool((stream.state[0] == h_n).all())
    (True, True)
    """

    def __init__(
        self,
        name: str,
        weights: list[list[DirectionWeights]],
        batch_size: int,
        states_of: Callable[[Any], Sequence[Array | None]],
        hx: Any,
    ) -> None:
        self._name, self._layers, self._batch, self._states_of = name, weights, batch_size, states_of
        first = weights[0][0]
        self._dtype = first.dtype
        self._shapes = (batch_size, first.inputs), (batch_size, first.outputs)
        states = [np.zeros((len(weights), batch_size, size), self._dtype) for size in first.state_sizes]
        self._stepper = Stepper([layer[0] for layer in weights], batch_size, states)
        self._alone = all(runs_alone(layer[0], batch_size) for layer in weights)
        self.reset(hx)

    def __call__(self, x: Any, out: Array | None = None) -> Array:
        """Go a step on.

        Parameters
        ----------
        x : array
            (B, I), or (I,) for a stream of one row; of the layer's dtype. Never written to.
        out : array, optional
            Where to write the output: contiguous, no memory in common with x. Then nothing is allocated.

        Returns
        -------
        y : array
            (B, P), or (P,) if x has one axis: the output of the last layer. `out`, or a new array.

        Raises
        ------
        ValueError
            Another dtype, another number of axes, an `out` that does not fit.
        RuntimeError
            Other sizes than these.
        TypeError
            Something that is no array of numbers.
        """
        try:
            dtype, axes = self._dtype, x.ndim
            y = np.empty(self._shapes[1] if axes == 2 else self._shapes[1][1:], dtype) if out is None else out
            plain = is_plain(x, dtype) and (out is None or is_plain(out, dtype))
            if self._alone and plain and axes == y.ndim and self._stepper.step(x, y):
                return y
        except (AttributeError, TypeError):  # no array, or not a contiguous one of the right dtype
            pass
        return self._thorough_step(x, out)

    def _thorough_step(self, x: Any, out: Any) -> Array:
        """Do what the quick way would not: say what is wrong with the arguments, or find a way round."""
        array = checks.check_array(f"{self._name} stream input", x, self._dtype)
        (rows, inputs), (_, outputs) = self._shapes
        one = array.ndim == 1
        expected = f"({rows}, {inputs})" + (f" or ({inputs},)" if rows == 1 else "")
        if array.ndim not in (1, 2) or (one and rows != 1):
            because = f"the stream has batch_size={rows}"
            raise ValueError(message(f"{self._name} stream input", expected, array.shape, because=because))
        if array.size != rows * inputs or array.shape[-1] != inputs:
            because = f"input_size={inputs} and batch_size={rows}"
            raise RuntimeError(message(f"{self._name} stream input", expected, array.shape, because=because))
        shape = (outputs,) if one else (rows, outputs)
        y = np.empty(shape, self._dtype)
        if out is not None:
            y = checks.check_out(f"{self._name} stream", out, shape, self._dtype, [array])
        x, result = np.array(array, order="C").reshape(rows, inputs), np.empty((rows, outputs), self._dtype)
        if self._alone:
            self._stepper.step(x, result)
        else:
            states = run_layers(self._layers, x[None], SequenceLayout(1, rows), self._stepper.states, result[None])
            for own, state in zip(self._stepper.states, states, strict=True):
                own[...] = state
        y[...] = result.reshape(shape)
        return y

    @property
    def state(self) -> Any:
        """The states after the last step, a copy: (h, c) of an LSTM, h of the others; (L, B, P) and (L, B, H)."""
        states = [state.copy() for state in self._stepper.states]
        return tuple(states) if len(states) > 1 else states[0]

    def reset(self, hx: Any = None) -> None:
        """Begin anew, from the states `hx`, shaped like `state`; None: zeros. Raises what a call of the layer does."""
        given = self._states_of(hx)
        for own, state in zip(self._stepper.states, given, strict=True):
            own[...] = 0 if state is None else state

    def copy(self) -> Stream:
        """Return another stream that goes on from the same states, and shares the weights: for a beam search."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._stepper = self._stepper.copy()
        return twin

    def __reduce__(self) -> Any:
        raise TypeError("a stream is bound to this process: pickle the layer and `stream.state`, and begin another one")

    def __deepcopy__(self, memo: Any) -> Stream:
        return self.copy()

    __copy__ = copy
