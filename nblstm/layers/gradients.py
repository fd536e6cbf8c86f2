"""What `vjp` returns besides the output: the function that takes gradients back through the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.engine.packing import BackwardWeights, DirectionWeights
from nblstm.engine.run import Dropout, new_records, run_layers
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.call import SequenceCall
from nblstm.sequences import PackedSequence, check_packed

if TYPE_CHECKING:  # the way back comes with its first use: programs that only run a layer start sooner
    from nblstm.engine.backward import DirectionGradients, Tape


class Gradients(NamedTuple):
    """Gradients of a scalar, from the function that `vjp` returns: fresh arrays of the layer's dtype."""

    input: Any  # in the form of the input; None if it was not asked for
    hx: Any  # of the initial states, with the structure of hx, also where hx was None
    parameters: dict[str, Array]  # by name, in torch's order


def run_taped(
    call: SequenceCall,
    packed: list[list[DirectionWeights]],
    packed_backward: list[list[BackwardWeights]],
    dropout: Dropout | None = None,
) -> tuple[tuple[Array, ...], Tape]:
    """Run a call, which writes to its y; return the last states, (L*D, B, size) each, and what it left."""
    from nblstm.engine.backward import Tape

    records = new_records(packed, call.y, call.layout)
    initial = [None if state is None else np.array(state, order="C") for state in call.states]
    states = run_layers(packed, call.x, call.layout, initial, call.y, dropout, records)
    return states, Tape(packed, packed_backward, call.x, call.layout, initial, records, dropout)


class _WayBack:
    """What the ways back through a call of a layer and through a step of a cell have in common."""

    def __init__(
        self,
        name: str,
        call: SequenceCall,
        tape: Tape | None,  # None: it goes back on another device, and this one checks its arguments
        last: Sequence[Array],
        parameters: Mapping[str, Array],
        suffixes: list[list[str]],
        input: bool,
    ) -> None:
        self._name, self._call, self._tape, self._input = name, call, tape, input
        self._parameters, self._suffixes = parameters, suffixes
        self._state_shapes = [(state.shape, self._shaped_state(state).shape) for state in last]
        self._dtype = last[0].dtype

    def _shaped_input(self, gradient: Array) -> Any:
        """Return the gradient of the input in the input's form."""
        return self._call.shaped(gradient)

    def _shaped_state(self, state: Array) -> Array:
        """Return a state, (L*D, B, size), in the user's form."""
        return state if self._call.batched else state[:, 0]

    def _run(self, dy: Array | None, d_states: list[Array]) -> Gradients:
        """Return all gradients; the arguments are those of `run_backward`."""
        call = self._call
        if call.layout.batch == 0:
            named = {name: np.zeros_like(array) for name, array in self._parameters.items()}
            dx = np.empty(call.x.shape, self._dtype) if self._input else None
        else:
            from nblstm.engine.backward import run_backward

            assert self._tape is not None
            gradients, dx = run_backward(self._tape, dy, d_states, self._input)
            named = self._named(gradients)
        states = [self._shaped_state(state) for state in d_states]
        hx = (states[0], states[1]) if len(states) > 1 else states[0]
        return Gradients(None if dx is None else self._shaped_input(dx), hx, named)

    def _state_gradients(self, value: Any) -> list[Array]:
        """Return fresh gradients of the last states in the engine's shape, (L*D, B, size) each."""
        argument, found = f"{self._name} backward d_state", []
        count = len(self._state_shapes)
        values = checks.check_states(f"{self._name} backward", value, count, self._dtype, name="d_state")
        for array, (shape, expected) in zip(values, self._state_shapes, strict=True):
            if array.shape != expected:
                raise ValueError(message(argument, str(expected), array.shape, because="the last state has that shape"))
            found.append(np.array(array.reshape(shape), self._dtype, order="C"))
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


class Backward(_WayBack):
    """The way back through one call: ``gradients = backward(d_output, d_state)``; any number of times, from any thread.

    It holds what the call went through, six numbers a unit and step (seven with a projection; units in whole vectors),
    until it is dropped. It reads the input once more: do not change that in between.
    """

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
        dy, d_states = self._checked(d_output, d_state)
        if dy is not None and not (dy.strides[-1] == dy.itemsize and dy.flags.aligned):
            dy = np.ascontiguousarray(dy)
        return self._run(dy, d_states)

    def _checked(self, d_output: Any, d_state: Any) -> tuple[Array | None, list[Array]]:
        """Return the gradients of the output and of the last states, the latter fresh, in the engine's shapes."""
        if d_output is None and d_state is None:
            raise ValueError(message(f"{self._name} backward", "d_output or d_state", "neither"))
        dy = None if d_output is None else self._output_gradient(d_output)
        if d_state is None:
            return dy, [np.zeros(shape, self._dtype) for shape, _ in self._state_shapes]
        return dy, self._state_gradients(d_state)

    def _output_gradient(self, value: Any) -> Array:
        """Return the gradient of the output in the engine's shape."""
        call, argument = self._call, f"{self._name} backward d_output"
        packed = isinstance(call.output, PackedSequence)
        if hasattr(value, "batch_sizes") and isinstance(call.output, PackedSequence):
            value = _data_in_the_order_of(call.output, argument, value)
        array = checks.check_array(argument, value, self._dtype)
        expected = (call.output.data if isinstance(call.output, PackedSequence) else call.output).shape
        if array.shape != expected:
            raise ValueError(message(argument, str(expected), array.shape, because="the output has that shape"))
        if not packed:
            array = array[:, None] if not call.batched else array.swapaxes(0, 1) if call.batch_first else array
        return array


def _data_in_the_order_of(output: PackedSequence, argument: str, value: Any) -> Any:
    """Return the data of a packed sequence whose rows lie as those of the output; ValueError for one of others."""
    given = check_packed(argument, value)
    for field in ("batch_sizes", "sorted_indices"):
        own, other = (getattr(packed, field) for packed in (output, given))
        if (own is None) != (other is None) or (own is not None and not np.array_equal(own, other)):
            hint = "Pack it with the lengths and the order of the output, or pass data laid out as the output's"
            raise ValueError(message(argument, f"the {field} of the output", "others", hint=hint))
    return given.data


class StepBackward(_WayBack):
    """The way back through one step of a cell: ``gradients = backward(d_state)``; any number of times, from any thread.

    It holds what the step went through, six numbers a unit, until it is dropped. It reads the input once more: do not
    change that in between.
    """

    def __call__(self, d_state: Any) -> Gradients:
        """Return the gradients of a scalar whose gradients by the next states are these.

        Parameters
        ----------
        d_state : array or (array, array)
            Shaped like the states that the cell returned, and like these a tuple for an LSTMCell.

        Raises
        ------
        ValueError
            Another dtype, another shape.
        TypeError
            Something that is no array of numbers; a tuple where the state is one array, or the other way round.
        RuntimeError
            Another number of arrays than two for an LSTMCell.
        """
        return self._run(None, self._state_gradients(d_state))

    def _shaped_input(self, gradient: Array) -> Any:
        return super()._shaped_input(gradient)[0]

    def _shaped_state(self, state: Array) -> Array:
        first: Array = super()._shaped_state(state)[0]
        return first
