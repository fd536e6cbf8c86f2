"""Dropout as a layer of its own: torch.nn.Dropout with masks that are computed, never stored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from nblstm.arrays import Array, as_array, float_dtype
from nblstm.engine.run import Dropout as DropoutOfCall
from nblstm.engine.run import drop_rows
from nblstm.layers import checks
from nblstm.layers.base import Layer
from nblstm.training.gradients import Gradients, check_gradient


class Dropout(Layer):
    """Sets each number to zero with probability p in training mode, as ``torch.nn.Dropout``, and scales the others.

    The others are divided by 1 - p; in evaluation mode (``dropout.eval()``) all stay as they are. Whether a number is
    dropped depends on the seed, the number of the call and its position: its row, counted over all axes but the last,
    and its place in it. So nothing has to be kept for the way back. What is dropped is 0 even if it was NaN.

    Parameters
    ----------
    p : float
        The probability of a number to be dropped.
    seed : int, optional
        Determines the masks; None: different ones each time.

    Raises
    ------
    ValueError, TypeError
        p is no number from 0 to 1, or `seed` none from 0 on.

    Examples
    --------
    >>> import numpy as np
    >>> dropout = Dropout(0.5, seed=0)
    >>> sorted(set(dropout(np.ones((4, 100), np.float32)).ravel().tolist()))
    [0.0, 2.0]
    >>> bool((dropout.eval()(np.ones(9)) == 1).all())
    True
    """

    def __init__(self, p: float = 0.5, seed: int | None = None) -> None:
        name = type(self).__name__
        self.p = checks.check_dropout(name, p, None)
        sequence = np.random.SeedSequence(checks.check_seed(name, seed))
        self._seed = int(sequence.generate_state(1, np.uint64)[0])
        # Threads draw call numbers from this: next() is atomic, and a range iterator can be copied and pickled.
        self._calls = iter(range(2**62))
        self._start({}, np.float32, None, lambda random, shape: np.zeros(shape))

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts its calls for itself.
        return {**self.__dict__, "_calls": copy.copy(self._calls)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.p})"

    def __call__(self, x: Any, *, dropout_call: int | None = None) -> Array:
        """Return x, of float32 or float64 and any shape, with some of it dropped; a fresh array.

        `dropout_call` is the number of the mask, from 0 to 2**64 - 1; None: the next one of this layer. Raises
        TypeError for what is no array of float32 or float64.
        """
        array = self._input(x)
        return _dropped(array, self._of_call(dropout_call))

    def vjp(self, x: Any, *, dropout_call: int | None = None) -> tuple[Array, Callable[[Any], Gradients]]:
        """Return the output, and the way back: ``gradients = backward(d_output)``, which drops the same.

        >>> import numpy as np
        >>> output, backward = Dropout(0.5, seed=0).vjp(np.ones((3, 4)))
        >>> bool((backward(np.ones((3, 4))).input == output).all())
        True
        """
        array = self._input(x)
        call, shape, dtype = self._of_call(dropout_call), array.shape, array.dtype

        def backward(d_output: Any) -> Gradients:
            argument = f"{type(self).__name__} backward d_output"
            return Gradients(_dropped(check_gradient(argument, d_output, shape, dtype), call), {})

        return _dropped(array, call), backward

    def _input(self, x: Any) -> Array:
        argument = f"{type(self).__name__} input"
        array = as_array(argument, x)
        float_dtype(argument, array.dtype)
        return array

    def _of_call(self, call: int | None) -> DropoutOfCall | None:
        """Return the dropout of this call, if there is any."""
        if call is not None:
            call = checks.check_dropout_call(type(self).__name__, call)
        if not self.training or self.p == 0:
            return None
        return DropoutOfCall(self.p, self._seed, next(self._calls) if call is None else call)


def _dropped(array: Array, dropout: DropoutOfCall | None) -> Array:
    """Return a copy with some of it dropped."""
    output = np.array(array, order="C")
    if dropout is not None and output.size:
        rows = output.reshape(-1, output.shape[-1] if output.ndim else 1)
        count = len(rows)
        drop_rows(rows, np.zeros(count, np.int64), np.arange(count), 0, 0, dropout)
    return output
