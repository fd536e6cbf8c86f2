"""What `vjp` returns besides the output: the function that takes gradients back through the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.engine.backward import DirectionGradients, Tape, run_backward
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.call import SequenceCall
from nblstm.sequences import PackedSequence


class Gradients(NamedTuple):
    """Gradients of a scalar, from the function that `vjp` returns: fresh arrays of the layer's dtype."""

    input: Any  # in the form of the input; None if it was not asked for
    hx: Any  # of the initial states, with the structure of hx, also where hx was None
    parameters: dict[str, Array]  # by name, in torch's order


class Backward:
    """The way back through one call: ``gradients = backward(d_output, d_state)``; any number of times, from any thread.

    It holds what the call went through, six numbers a unit and step (seven with a projection), until it is dropped. It
    reads the input once more: do not change that in between.
    """

    def __init__(
        self,
        name: str,
        call: SequenceCall,
        tape: Tape,
        last: Sequence[Array],
        parameters: Mapping[str, Array],
        suffixes: list[list[str]],
        input: bool,
    ) -> None:
        self._name, self._call, self._tape, self._input = name, call, tape, input
        self._parameters, self._suffixes = parameters, suffixes
        self._state_shapes = [state.shape for state in last]

    def __call__(self, d_output: Any = None, d_state: Any = None) -> Gradients:
        """Return the gradients of a scalar whose gradients by the output and the last states are these.

        Parameters
        ----------
        d_output : array or PackedSequence, optional
            Shaped like the output; of a packed one its data will do. None: zeros.
        d_state : array or (array, array), optional
            Shaped like the last states, and like these a tuple for an LSTM. None: zeros.

        Raises
        ------
        ValueError
            Neither of them, another dtype, another shape.
        TypeError
            Something that is no array of numbers.
        """
        if d_output is None and d_state is None:
            raise ValueError(message(f"{self._name} backward", "d_output or d_state", "neither"))
        call, tape = self._call, self._tape
        dtype = tape.weights[0][0].dtype
        dy = None if d_output is None else self._output_gradient(d_output, dtype)
        d_states = self._state_gradients(d_state, dtype)
        dx = np.zeros(call.x.shape, dtype) if self._input else None
        if call.layout.batch == 0:
            named = {name: np.zeros_like(array) for name, array in self._parameters.items()}
        else:
            named = self._named(run_backward(tape, dy, d_states, dx))
        states = [state if call.batched else state[:, 0] for state in d_states]
        hx = (states[0], states[1]) if len(states) > 1 else states[0]
        return Gradients(None if dx is None else call.shaped(dx), hx, named)

    def _output_gradient(self, value: Any, dtype: np.dtype[Any]) -> Array:
        """Return the gradient of the output in the engine's shape."""
        call, argument = self._call, f"{self._name} backward d_output"
        packed = isinstance(call.output, PackedSequence)
        if packed and hasattr(value, "batch_sizes"):
            value = value.data
        array = checks.check_array(argument, value, dtype)
        expected = (call.output.data if isinstance(call.output, PackedSequence) else call.output).shape
        if array.shape != expected:
            raise ValueError(message(argument, str(expected), array.shape, because="the output has that shape"))
        if not packed:
            array = array[:, None] if not call.batched else array.swapaxes(0, 1) if call.batch_first else array
        dense = array.strides[-1] == array.itemsize and array.flags.aligned
        return array if dense else np.ascontiguousarray(array)

    def _state_gradients(self, value: Any, dtype: np.dtype[Any]) -> list[Array]:
        """Return fresh gradients of the last states in the engine's shape, (L*D, B, size) each."""
        shapes = self._state_shapes
        if value is None:
            return [np.zeros(shape, dtype) for shape in shapes]
        found = []
        argument = f"{self._name} backward d_state"
        values = checks.check_states(f"{self._name} backward", value, len(shapes), dtype, name="d_state")
        for array, shape in zip(values, shapes, strict=True):
            expected = shape if self._call.batched else (shape[0], shape[2])
            if array.shape != expected:
                raise ValueError(message(argument, str(expected), array.shape, because="the last state has that shape"))
            found.append(np.array(array.reshape(shape), dtype, order="C"))
        return found

    def _named(self, gradients: list[list[DirectionGradients]]) -> dict[str, Any]:
        """Return the gradients by the names of the parameters."""
        kinds = "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"
        named = {
            kind + suffix: array
            for suffixes, directions in zip(self._suffixes, gradients, strict=True)
            for suffix, found in zip(suffixes, directions, strict=True)
            for kind, array in zip(kinds, found, strict=True)
        }
        return {name: named[name] for name in self._parameters}
