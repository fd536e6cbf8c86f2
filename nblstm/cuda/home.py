"""What a layer on a GPU does where one on the CPU calls its engine: `Layer.to` finds this by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nblstm.arrays import Array, as_array
from nblstm.cuda import device
from nblstm.cuda.backward import Tape, pack_back, run_backward
from nblstm.cuda.device import DeviceArray, as_device_array, empty, on_device, strided, upload
from nblstm.cuda.engine import Place, copy, fill, pack_layer, run_layers
from nblstm.engine.run import SequenceLayout
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.call import SequenceCall
from nblstm.layers.gradients import Backward, Gradients
from nblstm.sequences import PackedSequence

if TYPE_CHECKING:
    from nblstm.layers.recurrent import RecurrentLayer


class DeviceCall(NamedTuple):
    """One call of a layer on a device; everything in it has been checked."""

    checked: SequenceCall  # with arrays that have shapes and no memory
    x: DeviceArray  # (T, B, I), or (1, N, I) packed; any strides
    states: list[DeviceArray]  # fresh, contiguous, (L*D, B, size) each
    output: DeviceArray  # in the user's shape

    @property
    def layout(self) -> SequenceLayout:
        """Return where the rows lie."""
        return self.checked.layout

    @property
    def y(self) -> DeviceArray:
        """Return the output as the kernels write it: (T, B, D*P), or (1, N, D*P) packed."""
        return steps_first(self.checked, self.output)

    def finish(self) -> tuple[Any, tuple[DeviceArray, ...]]:
        """Return the output and the last states in the user's shapes."""
        output = self.checked.output
        whole = output._replace(data=self.output) if isinstance(output, PackedSequence) else self.output
        return whole, tuple(shaped_state(self.checked, state) for state in self.states)


def steps_first(call: SequenceCall, array: DeviceArray) -> DeviceArray:
    """Return an array in the user's shape as (T, B, size), or (1, N, size) packed."""
    shape, strides = tuple(array.shape), tuple(array.strides)
    if isinstance(call.output, PackedSequence):
        return strided(array, (1, *shape), (0, *strides))
    if not call.batched:
        return strided(array, (shape[0], 1, shape[1]), (strides[0], 0, strides[1]))
    if call.batch_first:
        return strided(array, (shape[1], shape[0], shape[2]), (strides[1], strides[0], strides[2]))
    return array


def shaped_state(call: SequenceCall, state: DeviceArray) -> DeviceArray:
    """Return a contiguous state (L*D, B, size) in the user's shape."""
    if call.batched:
        return state
    return strided(state, (state.shape[0], state.shape[2]), (state.strides[0], state.strides[2]))


def stand_in(value: Any) -> Any:
    """Return what stands in for a device's array where the CPU's checks look at it; anything else as it is.

    That is a NumPy array of its shape and dtype, without memory.
    """
    if not on_device(value):
        return value
    if getattr(value, "__cuda_ndarray__", False):
        shape, dtype = tuple(value.shape), value.dtype
    else:
        interface = value.__cuda_array_interface__
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    return np.broadcast_to(np.zeros((), dtype), shape)


def _each(states: Any, count: int) -> list[Any] | None:
    """Return the arrays of `states` if they are in a tuple, or in a list where there are several; None if not."""
    return list(states) if isinstance(states, tuple) or (count > 1 and isinstance(states, list)) else None


class Home:
    """A GPU as the home of layers: what their calls do there. Pickles to its number alone."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __str__(self) -> str:
        return f"cuda:{self.index}"

    def run(
        self, layer: RecurrentLayer, x: Any, hx: Any, lengths: Any, out: Any, dropout_call: int | None
    ) -> tuple[Any, tuple[DeviceArray, ...]]:
        """Return the output and the last states of a call."""
        device.check_device(f"{type(layer).__name__} device", str(self))  # it may come from a pickle
        weights = layer._weights
        with device.selected(self.index):
            place = Place(self.index, device.current_stream())
            call = self._prepare(layer, weights.dtype, x, hx, lengths, out, place)
            dropout = layer._dropout_of_call(dropout_call)
            packed = weights.packed(_Pack(layer, place))
            run_layers(packed, call.x, call.layout, call.states, call.y, dropout, place)
            return call.finish()

    def vjp(
        self, layer: RecurrentLayer, x: Any, hx: Any, lengths: Any, input: bool, dropout_call: int | None
    ) -> tuple[Any, tuple[DeviceArray, ...], DeviceBackward]:
        """Return the output and the last states of a call, and the way back through it."""
        name = type(layer).__name__
        device.check_device(f"{name} device", str(self))
        weights = layer._weights
        with device.selected(self.index):
            place = Place(self.index, device.current_stream())
            call = self._prepare(layer, weights.dtype, x, hx, lengths, None, place)
            dropout = layer._dropout_of_call(dropout_call)
            packed, back = weights.packed(_Pack(layer, place)), weights.packed(_Pack(layer, place, back=True))
            records = run_layers(packed, call.x, call.layout, call.states, call.y, dropout, place, keeps=True)
            tape = Tape(packed, back, call.layout, records, dropout)
            backward = DeviceBackward(name, call, tape, weights.parameters, layer._suffixes(), input, place)
            output, states = call.finish()
            return output, states, backward

    def _prepare(
        self, layer: RecurrentLayer, dtype: Any, x: Any, hx: Any, lengths: Any, out: Any, place: Place
    ) -> DeviceCall:
        """Check a call's arguments as the CPU's are checked; bring them to the device."""
        name = type(layer).__name__
        packed = not isinstance(x, np.ndarray) and hasattr(x, "batch_sizes")
        source = x.data if packed else x
        stand = _packed_on_host(x, stand_in(source)) if packed else stand_in(source)
        several = _each(hx, 1 + layer._cell.has_cell_state)
        values = [hx] if several is None else several
        states_in = stand_in(hx) if several is None else tuple(map(stand_in, several))
        checked = layer._prepare(dtype, stand, states_in, lengths, None)
        given = moved(f"{name} input", source, place)
        rows = layer.num_layers * layer._directions
        states = []
        sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)
        for number, state in enumerate(checked.states):
            fresh = empty((rows, checked.layout.batch, sizes[number]), dtype, place.stream)
            if state is None:
                fill(fresh, place)
            else:
                copy(fresh, _with_rows(checked, moved(f"{name} hx", values[number], place)), place)
            states.append(fresh)
        plain = checked.output.data if isinstance(checked.output, PackedSequence) else checked.output
        output = empty(plain.shape, dtype, place.stream) if out is None else check_out(name, out, plain, given, place)
        return DeviceCall(checked, steps_first(checked, given), states, output)


class _Pack:
    """What `Weights.packed` calls once for each version of the weights and device, and once more for the way back."""

    def __init__(self, layer: RecurrentLayer, place: Place, back: bool = False) -> None:
        self._layer, self._place, self._back = layer, place, back
        self.__name__ = f"cuda:{place.index}{' back' if back else ''}"

    def __call__(self, parameters: Mapping[str, Array]) -> list[Any]:
        kinds = "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"
        layers = [
            [[parameters.get(kind + suffix) for kind in kinds] for suffix in suffixes]
            for suffixes in self._layer._suffixes()
        ]
        packed: list[Any]
        if self._back:
            packed = [pack_back(layer, self._place) for layer in layers]
        else:
            packed = [pack_layer(self._layer._cell, layer, self._place) for layer in layers]
        device.synchronize(self._place.stream)  # other calls read them on other streams
        return packed


class DeviceBackward:
    """The way back through one call on a device: ``gradients = backward(d_output, d_state)``, as `Backward` is called.

    Its gradients are arrays in the memory of the device. It may be called any number of times, from any thread. It
    reads the input once more: do not change that in between.
    """

    def __init__(
        self,
        name: str,
        call: DeviceCall,
        tape: Tape,
        parameters: Mapping[str, Array],
        suffixes: list[list[str]],
        input: bool,
        place: Place,
    ) -> None:
        # Not the call, whose output and states would lie in memory as long as this.
        self._checked, self._x_shape = call.checked, tuple(call.x.shape)
        self._tape, self._parameters, self._input, self._place = tape, parameters, input, place
        stands = [np.broadcast_to(np.zeros((), state.dtype), tuple(state.shape)) for state in call.states]
        self._states = stands
        # The CPU's, for its checks of what comes and its names of what goes.
        self._host = Backward(name, call.checked, None, stands, parameters, suffixes, input)
        self._name = name

    def __call__(self, d_output: Any = None, d_state: Any = None) -> Gradients:
        """Return the gradients of a scalar; arguments and errors are those of `nblstm.layers.gradients.Backward`."""
        with device.selected(self._place.index):
            place = Place(self._place.index, device.current_stream())
            device.order_after(self._place.stream, place.stream)
            dy, d_states = self._given(d_output, d_state, place)
            checked = self._checked
            if checked.layout.batch == 0:
                named = {name: _zeros_like(array, place) for name, array in self._parameters.items()}
                dx = empty(self._x_shape, self._states[0].dtype, place.stream) if self._input else None
            else:
                found, dx = run_backward(self._tape, dy, d_states, self._input, place)
                named = self._host._named(found)
            states = [shaped_state(checked, state) for state in d_states]
            hx = (states[0], states[1]) if len(states) > 1 else states[0]
            return Gradients(None if dx is None else _shaped(checked, dx), hx, named)

    def _given(self, d_output: Any, d_state: Any, place: Place) -> tuple[DeviceArray | None, list[DeviceArray]]:
        """Check the gradients that a call is given; bring them to the device, the states in fresh arrays."""
        checked, name = self._checked, f"{self._name} backward"
        packed = d_output is not None and not isinstance(d_output, np.ndarray) and hasattr(d_output, "batch_sizes")
        data = d_output.data if packed else d_output
        stand = stand_in(data)
        several = _each(d_state, len(self._states))
        values = [d_state] if several is None else several
        states_in = stand_in(d_state) if several is None else tuple(map(stand_in, several))
        self._host._checked(_packed_on_host(d_output, stand) if packed else stand, states_in)
        dy = None if data is None else steps_first(checked, moved(f"{name} d_output", data, place))
        d_states = []
        for number, state in enumerate(self._states):
            fresh = empty(state.shape, state.dtype, place.stream)
            if d_state is None:
                fill(fresh, place)
            else:
                copy(fresh, _with_rows(checked, moved(f"{name} d_state", values[number], place)), place)
            d_states.append(fresh)
        return dy, d_states


def _shaped(call: SequenceCall, dx: DeviceArray) -> Any:
    """Return a gradient (T, B, I), or (1, N, I), in the form of the input."""
    (_, rows, size), (step, row, item) = dx.shape, dx.strides
    if isinstance(call.output, PackedSequence):
        return call.output._replace(data=strided(dx, (rows, size), (row, item)))
    if not call.batched:
        return strided(dx, (dx.shape[0], size), (step, item))
    return dx if not call.batch_first else strided(dx, (rows, dx.shape[0], size), (row, step, item))


def _zeros_like(array: Array, place: Place) -> DeviceArray:
    return upload(np.zeros(array.shape, array.dtype), place.stream)


def moved(argument: str, value: Any, place: Place) -> DeviceArray:
    """Return an array that has been checked in the memory of the device: itself if it lies there."""
    if on_device(value):
        array = as_device_array(argument, value, place.stream)
        device.check_there(argument, array, place.index)
        return array
    return upload(as_array(argument, value), place.stream)


def _with_rows(call: SequenceCall, state: DeviceArray) -> DeviceArray:
    """Return a state in the user's shape as (L*D, B, size)."""
    if call.batched:
        return state
    (rows, size), (step, item) = state.shape, state.strides
    return strided(state, (rows, 1, size), (step, 0, item))


def _packed_on_host(x: Any, data: Any) -> PackedSequence:
    """Return a packed sequence whose tables are the host's: those of torch may lie on the device."""
    tables = (getattr(x, name, None) for name in ("batch_sizes", "sorted_indices", "unsorted_indices"))
    sizes, order, inverse = (to_host(table) for table in tables)
    return PackedSequence(data, sizes, order, inverse)


def to_host(value: Any) -> Any:
    """Return a device's array as a NumPy array; anything else as it is."""
    return as_device_array("", value, 0).copy_to_host() if value is not None and on_device(value) else value


def check_out(name: str, out: Any, expected: Array, given: DeviceArray, place: Place) -> DeviceArray:
    """Return `out` if the output can go there, as the CPU's check does."""
    argument = f"{name} out"
    if not on_device(out):
        raise TypeError(message(argument, "an array in the memory of the device", type(out).__name__))
    found = as_device_array(argument, out, place.stream)
    device.check_there(argument, found, place.index)
    if tuple(found.shape) != expected.shape:
        raise ValueError(message(argument, str(expected.shape), tuple(found.shape)))
    if found.dtype != expected.dtype:
        raise ValueError(message(argument, f"dtype {expected.dtype}", found.dtype))
    if checks.may_overlap_itself(found):
        expects = "elements that share no memory with one another"
        raise ValueError(message(argument, expects, f"strides {tuple(found.strides)}"))
    first, last = device.address_range(found)
    begin, end = device.address_range(given)
    if first < end and begin < last:
        raise ValueError(message(argument, "memory of its own", "an array that shares memory with the input"))
    return found


def home(argument: str, name: str) -> Home:
    """Return the home for the name of a device; raises what `check_device` does."""
    return Home(device.check_device(argument, name))
