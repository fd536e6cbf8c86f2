"""What LSTM, GRU and RNN share: torch.nn's constructor, the names of the parameters, and what a call becomes."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array
from nblstm.engine.compiled import compiled_weights
from nblstm.engine.packing import BackwardWeights, DirectionWeights, pack_backward, pack_direction
from nblstm.engine.run import Dropout, LayerRecord, SequenceLayout, new_records, run_layers
from nblstm.errors import message
from nblstm.kernels.cells import Cell
from nblstm.layers import checks
from nblstm.layers.base import Layer, common_dtype
from nblstm.layers.call import SequenceCall, dense
from nblstm.layers.gradients import Backward, run_taped
from nblstm.layers.stream import Stream
from nblstm.sequences import check_packed

Self = TypeVar("Self", bound="RecurrentLayer")  # typing.Self needs Python 3.11

# What repr leaves out; the others are printed in torch's order, which has no nonlinearity.
_DEFAULTS: dict[str, Any] = {
    "proj_size": 0,
    "num_layers": 1,
    "nonlinearity": "tanh",
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
}


def pack_parameters(cell: Cell, parameters: Mapping[str, Array], suffix: str) -> DirectionWeights:
    """Pack the parameters of one layer and direction, whose names end with `suffix`."""
    return pack_direction(
        cell,
        parameters[f"weight_ih{suffix}"],
        parameters[f"weight_hh{suffix}"],
        parameters.get(f"bias_ih{suffix}"),
        parameters.get(f"bias_hh{suffix}"),
        parameters.get(f"weight_hr{suffix}"),
    )


def pack_for_backward(cell: Cell, parameters: Mapping[str, Array], suffix: str) -> BackwardWeights:
    """Pack them for the way back."""
    return pack_backward(
        cell,
        parameters[f"weight_ih{suffix}"],
        parameters[f"weight_hh{suffix}"],
        parameters.get(f"weight_hr{suffix}"),
    )


class RecurrentLayer(Layer):
    """What LSTM, GRU and RNN have in common: torch.nn's constructor arguments, parameters and their order."""

    _CELL: ClassVar[Cell]  # its number of gates is that of all layers of the class
    _COMPILED: ClassVar[Any]  # what `nopython_weights` returns
    # What `trace` returns of a layer and direction: h, and then these slots of `LayerRecord.kept`.
    _TRACE: ClassVar[Any]
    _TRACE_SLOTS: ClassVar[tuple[int, ...]]

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
    def _cell(self) -> Cell:
        """The cell of this layer."""
        return self._CELL

    def _home_on(self, argument: str, device: str) -> Any:
        # By its name: it stands a floor above, and programs on the CPU start without it.
        if device == "cpu" or not importlib.import_module("nblstm.cuda.cells").has_kernels(self._cell):
            return super()._home_on(argument, device)
        return importlib.import_module("nblstm.cuda.home").home(argument, device)

    def _check_on_cpu(self, what: str) -> None:
        if self._home is not None:
            raise ValueError(message(what, "a layer on the CPU", f"one on {self.device}", hint='Call .to("cpu") first'))

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[list[str]]:
        """Return the ends of the parameters' names, by layer and direction: ``_l0``, ``_l0_reverse``, ``_l1``, ..."""
        ends = ["", "_reverse"][: self._directions]
        return [[f"_l{layer}{end}" for end in ends] for layer in range(self.num_layers)]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter, in torch's order."""
        rows, output_size = self._cell.gates * self.hidden_size, self.proj_size or self.hidden_size
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

    @classmethod
    def from_state_dict(
        cls: type[Self],
        state_dict: Mapping[str, Any],
        prefix: str = "",
        *,
        batch_first: bool = False,
        dtype: npt.DTypeLike | None = None,
        **options: Any,
    ) -> Self:
        """Build the layer whose parameters are in `state_dict`; their shapes say how large and of what kind it is.

        Parameters
        ----------
        state_dict : mapping of str to array
            The parameters of this layer, or of a whole model around it.
        prefix : str
            What stands before ``weight_ih_l0`` in the names, ``"encoder.lstm."``; ``module.`` and ``_orig_mod.`` of
            wrapped models may be left out. Not needed if the mapping has but one layer of this kind.
        batch_first : bool
            As in the constructor: no weight tells it.
        dtype : dtype, optional
            None: that of the weights, and float32 where they are narrower.
        options
            Other arguments of the constructor that no weight tells: ``dropout``, ``seed``, an RNN's ``nonlinearity``.

        Raises
        ------
        ValueError
            No such layer has that prefix, or more than one; the error lists all that there are.
        TypeError
            `state_dict` is no mapping of names to arrays, or `prefix` no str.

        Examples
        --------
        >>> import numpy as np
        >>> from nblstm import LSTM
        >>> source = LSTM(3, 4, bidirectional=True, seed=0)
        >>> LSTM.from_state_dict({"encoder." + name: array for name, array in source.state_dict().items()})
        LSTM(3, 4, bidirectional=True)
        """
        from nblstm.weights.names import find_recurrent_layer

        found = find_recurrent_layer(state_dict, prefix, gates=cls._CELL.gates)
        if found.proj_size:
            if not cls._CELL.has_cell_state:
                expected = f"no weight_hr, as {cls.__name__} has no projection"
                raise ValueError(message("state_dict", expected, f"one under {found.prefix!r}"))
            options["proj_size"] = found.proj_size
        return cls._with_parameters(
            found.parameters,
            found.input_size,
            found.hidden_size,
            found.num_layers,
            bias=found.bias,
            batch_first=batch_first,
            bidirectional=found.bidirectional,
            dtype=common_dtype(found.parameters) if dtype is None else dtype,
            **options,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts its dropout calls for itself.
        return {**self.__dict__, "_dropout_calls": copy.copy(self._dropout_calls)}

    def __repr__(self) -> str:
        values = [(name, getattr(self, name, default), default) for name, default in _DEFAULTS.items()]
        given = [f"{name}={value!r}" for name, value, default in values if value != default]
        return f"{type(self).__name__}({', '.join([str(self.input_size), str(self.hidden_size), *given])})"

    def _run(
        self, x: Any, hx: Any, lengths: Any, out: Array | None, dropout_call: int | None
    ) -> tuple[Any, tuple[Array, ...]]:
        """Return the output and the last states of a call."""
        if (home := self._home) is not None:
            output, states = home.run(self, x, hx, lengths, out, dropout_call)
            return output, states
        weights = self._weights
        call = self._prepare(weights.dtype, x, hx, lengths, out)
        dropout = self._dropout_of_call(dropout_call)
        return call.finish(run_layers(weights.packed(self._pack), call.x, call.layout, call.states, call.y, dropout))

    def _vjp(
        self, x: Any, hx: Any, lengths: Any, input: bool, dropout_call: int | None
    ) -> tuple[Any, tuple[Array, ...], Backward]:
        """Return the output and the last states of a call, and the way back through it."""
        input = checks.check_flag(f"{type(self).__name__}.vjp", "input", input)
        if (home := self._home) is not None:
            output, states, way_back = home.vjp(self, x, hx, lengths, input, dropout_call)
            return output, states, way_back
        weights = self._weights
        call = self._prepare(weights.dtype, x, hx, lengths, None)
        packed, back = weights.packed(self._pack), weights.packed(self._pack_backward)
        states, tape = run_taped(call, packed, back, self._dropout_of_call(dropout_call))
        call.y.flags.writeable = False  # the way back reads it
        output = call.shaped(call.y.view())  # which cannot be made writeable again
        backward = Backward(type(self).__name__, call, tape, states, weights.parameters, self._suffixes(), input)
        return output, states if call.batched else tuple(state[:, 0] for state in states), backward

    def stream(self, batch_size: int = 1, hx: Any = None) -> Stream:
        """Return the network as a `Stream`, which goes on by a step a call and carries the states of all layers.

        Parameters
        ----------
        batch_size : int
            B, the rows that go on together.
        hx : array or (array, array), optional
            The first states, as a call takes them: (L, B, P) and, of an LSTM, (L, B, H). None: zeros.

        Raises
        ------
        ValueError
            A layer of both directions, whose reverse one begins with the last step; `batch_size` below 1.
        RuntimeError
            States of other sizes.
        TypeError
            A `batch_size` that is no whole number, or states that are no arrays.
        """
        name = type(self).__name__
        self._check_on_cpu(f"{name} stream")
        self._check_one_direction(f"{name} stream")
        rows = checks.check_size(f"{name} stream", "batch_size", batch_size)
        weights = self._weights
        states = functools.partial(self._states, weights.dtype, batch=rows)
        return Stream(name, weights.packed(self._pack), rows, states, hx)

    def nopython_weights(self, *, backward: bool = False) -> Any:
        """Return the weights for `nblstm.nopython`: a copy, packed, as a named tuple of arrays that Numba knows.

        Its type is the same for all networks of one class and dtype. It stays as it is when weights are set.

        Parameters
        ----------
        backward : bool
            With what a step back needs: the weights a second time.

        Raises
        ------
        ValueError
            A layer of both directions, whose reverse one begins with the last step.
        TypeError
            A `backward` that is not True or False.

        >>> from nblstm import LSTM
        >>> type(LSTM(2, 3, num_layers=2).nopython_weights()).__name__
        'LSTMWeights'
        """
        name = f"{type(self).__name__} nopython_weights"
        backward = checks.check_flag(name, "backward", backward)
        self._check_one_direction(name)
        weights = self._weights
        layers = [layer for (layer,) in weights.packed(self._pack)]
        back = [layer for (layer,) in weights.packed(self._pack_backward)] if backward else None
        return compiled_weights(self._COMPILED, layers, back, self.bias)

    def _check_one_direction(self, name: str) -> None:
        if self.bidirectional:
            because = "the reverse direction begins with the last step"
            raise ValueError(message(name, "one direction", "bidirectional=True", because=because))

    def trace(self, x: Any, hx: Any = None, *, lengths: Any = None, dropout_call: int | None = None) -> tuple[Any, ...]:
        """Run the network and return what every layer and direction went through: states and gates of all steps.

        The arguments are those of a call, but `out`. Returns one tuple of named arrays for each layer and direction, in
        the order of h_n: `LSTMTrace`, `GRUTrace` or `RNNTrace`. Each array is (T, B, H), or (T, B, P) for h, in the
        form that x has: (B, T, H) if `batch_first`, (T, H) unbatched, or packed; zero past each row's length. The gates
        are what came out of sigmoid and tanh, and h of a lower layer is what it was before dropout. The arrays of a
        layer are views of one memory: copy what you keep alone.

        >>> import numpy as np
        >>> from nblstm import LSTM
        >>> lstm = LSTM(2, 3, num_layers=2, seed=0)
        >>> lower, upper = lstm.trace(np.ones((5, 1, 2), np.float32))
        >>> upper.f.shape
        (5, 1, 3)
        >>> bool(np.allclose(upper.c[1:], upper.f[1:] * upper.c[:-1] + upper.i[1:] * upper.g[1:]))
        True
        """
        self._check_on_cpu(f"{type(self).__name__} trace")
        weights = self._weights
        call = self._prepare(weights.dtype, x, hx, lengths, None)
        dropout, packed = self._dropout_of_call(dropout_call), weights.packed(self._pack)
        records = new_records(packed, call.y, call.layout)
        run_layers(packed, call.x, call.layout, call.states, call.y, dropout, records)
        return tuple(self._named(call, record, d) for record in records for d in range(self._directions))

    def _named(self, call: SequenceCall, record: LayerRecord, direction: int) -> Any:
        size = record.h.shape[-1] // self._directions
        h = record.h[..., direction * size : (direction + 1) * size]
        slots = [record.kept[..., direction, slot, : self.hidden_size] for slot in self._TRACE_SLOTS]
        return self._TRACE(*(call.shaped(values) for values in (h, *slots)))

    def _pack(self, parameters: Mapping[str, Array]) -> list[list[DirectionWeights]]:
        """Return the parameters as the panels that the kernels read, by layer and direction."""
        return [[pack_parameters(self._cell, parameters, s) for s in suffixes] for suffixes in self._suffixes()]

    def _pack_backward(self, parameters: Mapping[str, Array]) -> list[list[BackwardWeights]]:
        """Return the parameters as the panels that the way back reads, by layer and direction."""
        return [[pack_for_backward(self._cell, parameters, s) for s in suffixes] for suffixes in self._suffixes()]

    def _prepare(self, dtype: np.dtype[Any], x: Any, hx: Any, lengths: Any, out: Any) -> SequenceCall:
        """Check a call's arguments; return them in the engine's terms."""
        if type(x) is not np.ndarray and hasattr(x, "batch_sizes"):
            return self._prepare_packed(dtype, x, hx, lengths, out)
        name = type(self).__name__
        array = checks.check_array(f"{name} input", x, dtype)
        steps_first = checks.check_sequence_input(name, array, self.input_size, self.batch_first)
        batched = array.ndim == 3
        layout = checks.check_layout(name, steps_first, lengths, batched)
        states = self._states(dtype, hx, layout.batch if batched else None)
        output = self._output(dtype, array, states, out)
        plain = output if out is None else np.asarray(output)  # a subclass may give its views other shapes
        target = plain[:, None] if not batched else plain.swapaxes(0, 1) if self.batch_first else plain
        y = target if out is None else dense(target)  # a new one is dense
        return SequenceCall(steps_first, layout, states, y, target, output, batched, self.batch_first)

    def _prepare_packed(self, dtype: np.dtype[Any], x: Any, hx: Any, lengths: Any, out: Any) -> SequenceCall:
        name = type(self).__name__
        packed = check_packed(f"{name} input", x)
        data = checks.check_array(f"{name} input.data", packed.data, dtype)
        checks.check_packed_data(name, data, self.input_size)
        if lengths is not None:
            raise ValueError(message(f"{name} lengths", "None", "lengths", because="the input is packed"))
        sizes = packed.batch_sizes
        layout = SequenceLayout(len(sizes), int(sizes[0]), sizes, states=packed.sorted_indices, packed=True)
        states = self._states(dtype, hx, layout.batch)
        output = self._output(dtype, data, states, out)
        target = np.asarray(output)
        return SequenceCall(
            data, layout, states, dense(target), target, packed._replace(data=output), batched=True, batch_first=False
        )

    def _states(self, dtype: np.dtype[Any], hx: Any, batch: int | None) -> list[Array] | list[None]:
        """Return the first states as (L*D, B, size) each, or None for zeros; `batch` is None for an unbatched input."""
        if hx is None:
            return [None, None] if self._cell.has_cell_state else [None]
        sizes = [self.proj_size or self.hidden_size, *([self.hidden_size] if self._cell.has_cell_state else [])]
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
