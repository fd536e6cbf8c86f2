"""What LSTM, GRU and RNN share: torch.nn's constructor, the names of the parameters, and what a call becomes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array
from nblstm.engine.run import Dropout, SequenceLayout
from nblstm.errors import message
from nblstm.layers import checks
from nblstm.layers.base import Layer
from nblstm.sequences import PackedSequence, check_packed

# What repr leaves out, in the order in which torch prints the others.
_DEFAULTS: dict[str, Any] = {
    "proj_size": 0,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}


class SequenceCall(NamedTuple):
    """One call of a layer in the engine's terms; everything in it has been checked."""

    x: Array  # (T, B, I), or (N, I) packed; any strides
    layout: SequenceLayout
    states: Sequence[Array | None]  # each (L*D, B, size); None: zeros
    y: Array  # (T, B, D*P), or (N, D*P) packed: where the kernels write; dense last axis
    target: Array  # the user's output in the shape of y: y itself, or what y is to be copied to
    output: Array | PackedSequence  # the user's output in the user's shape
    batched: bool

    def finish(self, *states: Array) -> tuple[Array | PackedSequence, tuple[Array, ...]]:
        """Return the output and the last states, (L*D, B, size) each, in the shapes that belong to the input's."""
        if self.y is not self.target:
            self.target[...] = self.y
        return self.output, states if self.batched else tuple(state[:, 0] for state in states)


class RecurrentLayer(Layer):
    """What LSTM, GRU and RNN have in common: torch.nn's constructor arguments, parameters and their order."""

    _GATES: int  # rows of a weight matrix: gates * hidden_size

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        dtype: npt.DTypeLike,
        seed: int | None,
    ) -> None:
        name = type(self).__name__
        self.dropout = checks.check_dropout(name, dropout, num_layers)
        self.bias = checks.check_flag(name, "bias", bias)
        self.batch_first = checks.check_flag(name, "batch_first", batch_first)
        self.bidirectional = checks.check_flag(name, "bidirectional", bidirectional)
        self.input_size = checks.check_size(name, "input_size", input_size)
        self.hidden_size = checks.check_size(name, "hidden_size", hidden_size)
        self.num_layers = checks.check_size(name, "num_layers", num_layers)
        self.proj_size = checks.check_proj_size(name, proj_size, hidden_size)
        for_weights, for_dropout = np.random.SeedSequence(checks.check_seed(name, seed)).spawn(2)
        self._dropout_seed = int(for_dropout.generate_state(1, np.uint64)[0])
        # Threads draw call numbers from this: next() is atomic, and a range iterator can be copied and pickled.
        self._dropout_calls = iter(range(2**62))
        self._initialise(self._shapes(), hidden_size, dtype, for_weights)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[list[str]]:
        """Return the ends of the parameters' names, by layer and direction: ``_l0``, ``_l0_reverse``, ``_l1``, ..."""
        ends = ["", "_reverse"][: self._directions]
        return [[f"_l{layer}{end}" for end in ends] for layer in range(self.num_layers)]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter, in torch's order."""
        rows, output_size = self._GATES * self.hidden_size, self.proj_size or self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, suffixes in enumerate(self._suffixes()):
            for suffix in suffixes:
                shapes[f"weight_ih{suffix}"] = rows, output_size * self._directions if layer else self.input_size
                shapes[f"weight_hh{suffix}"] = rows, output_size
                if self.bias:
                    shapes[f"bias_ih{suffix}"] = shapes[f"bias_hh{suffix}"] = (rows,)
                if self.proj_size:
                    shapes[f"weight_hr{suffix}"] = self.proj_size, self.hidden_size
        return shapes

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts its dropout calls for itself.
        return {**self.__dict__, "_dropout_calls": copy.copy(self._dropout_calls)}

    def __repr__(self) -> str:
        values = [(name, getattr(self, name), default) for name, default in _DEFAULTS.items()]
        given = [f"{name}={value}" for name, value, default in values if value != default]
        return f"{type(self).__name__}({', '.join([str(self.input_size), str(self.hidden_size), *given])})"

    def _prepare(
        self, dtype: np.dtype[Any], state_sizes: Sequence[int], x: Any, hx: Any, lengths: Any, out: Any
    ) -> SequenceCall:
        """Check a call's arguments; return them in the engine's terms. `state_sizes`: the last axis of each state."""
        if type(x) is not np.ndarray and hasattr(x, "batch_sizes"):
            return self._prepare_packed(dtype, state_sizes, x, hx, lengths, out)
        name = type(self).__name__
        array = checks.check_array(f"{name} input", x, dtype)
        steps_first = checks.check_sequence_input(name, array, self.input_size, self.batch_first)
        batched = array.ndim == 3
        layout = checks.check_layout(name, steps_first, lengths, batched)
        states = self._states(dtype, state_sizes, hx, layout.batch if batched else None)
        output = self._output(dtype, array, states, out)
        plain = np.asarray(output)  # a subclass may give its views other shapes
        target = plain[:, None] if not batched else plain.swapaxes(0, 1) if self.batch_first else plain
        return SequenceCall(steps_first, layout, states, _dense(target), target, output, batched)

    def _prepare_packed(
        self, dtype: np.dtype[Any], state_sizes: Sequence[int], x: Any, hx: Any, lengths: Any, out: Any
    ) -> SequenceCall:
        name = type(self).__name__
        packed = check_packed(f"{name} input", x)
        data = checks.check_array(f"{name} input.data", packed.data, dtype)
        checks.check_packed_data(name, data, self.input_size)
        if lengths is not None:
            raise ValueError(message(f"{name} lengths", "None", "lengths", because="the input is packed"))
        sizes = packed.batch_sizes
        layout = SequenceLayout(len(sizes), int(sizes[0]), sizes, states=packed.sorted_indices, packed=True)
        states = self._states(dtype, state_sizes, hx, layout.batch)
        output = self._output(dtype, data, states, out)
        target = np.asarray(output)
        return SequenceCall(data, layout, states, _dense(target), target, packed._replace(data=output), batched=True)

    def _states(
        self, dtype: np.dtype[Any], sizes: Sequence[int], hx: Any, batch: int | None
    ) -> list[Array] | list[None]:
        """Return the first states as (L*D, B, size) each, or None for zeros; `batch` is None for an unbatched input."""
        if hx is None:
            return [None] * len(sizes)
        rows = self.num_layers * self._directions
        shapes = [(rows, size) if batch is None else (rows, batch, size) for size in sizes]
        name = type(self).__name__
        states = checks.check_states(name, hx, len(shapes), dtype)
        checks.check_state_shapes(name, states, shapes, batch is not None)
        return states if batch is not None else [state[:, None] for state in states]

    def _output(self, dtype: np.dtype[Any], x: Array, states: Sequence[Array | None], out: Any) -> Array:
        """Return the array for the output of input `x`: a new one, or `out`."""
        shape = (*x.shape[:-1], (self.proj_size or self.hidden_size) * self._directions)
        if out is None:
            return np.empty(shape, dtype)
        inputs = [x, *(state for state in states if state is not None)]
        return checks.check_out(type(self).__name__, out, shape, dtype, inputs)

    def _dropout_of_call(self, call: int | None) -> Dropout | None:
        """Return the dropout of this call, if there is any; its number is `call`, or the layer's next one if None."""
        if call is not None:
            call = checks.check_dropout_call(type(self).__name__, call)
        if not self.training or self.dropout == 0 or self.num_layers == 1:
            return None
        return Dropout(self.dropout, self._dropout_seed, next(self._dropout_calls) if call is None else call)


def _dense(target: Array) -> Array:
    """Return `target` if kernels can write to it, whose last axis must be dense, else a new array of its shape."""
    if target.strides[-1] == target.itemsize and target.flags.aligned:
        return target
    return np.empty(target.shape, target.dtype)
