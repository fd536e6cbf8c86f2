"""Single time steps as layers: torch.nn.LSTMCell, GRUCell and RNNCell with their constructors, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array
from nblstm.engine.packing import BackwardWeights, DirectionWeights
from nblstm.engine.run import SequenceLayout, run_layers
from nblstm.engine.stepping import is_plain, step_of
from nblstm.errors import message
from nblstm.kernels import cells
from nblstm.layers import checks
from nblstm.layers.base import Layer, common_dtype
from nblstm.layers.call import SequenceCall
from nblstm.layers.gradients import StepBackward, run_taped
from nblstm.layers.recurrent import pack_for_backward, pack_parameters
from nblstm.layers.rnn import CELLS

Self = TypeVar("Self", bound="RecurrentCell")  # typing.Self needs Python 3.11


class RecurrentCell(Layer):
    """What LSTMCell, GRUCell and RNNCell have in common: parameters, and one step of the engine."""

    _CELL: ClassVar[cells.Cell]  # its number of gates is that of all cells of the class

    @property
    def _cell(self) -> cells.Cell:
        return self._CELL

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
        rows = self._cell.gates * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        self._initialise(shapes, hidden_size, dtype, np.random.SeedSequence(checks.check_seed(name, seed)))

    @classmethod
    def from_state_dict(
        cls: type[Self],
        state_dict: Mapping[str, Any],
        prefix: str = "",
        *,
        dtype: npt.DTypeLike | None = None,
        **options: Any,
    ) -> Self:
        """Build the cell whose parameters are in `state_dict`, as `LSTM.from_state_dict` does for a layer.

        >>> from nblstm import LSTMCell
        >>> LSTMCell.from_state_dict({"cell." + name: array for name, array in LSTMCell(3, 4).state_dict().items()})
        LSTMCell(3, 4)
        """
        from nblstm.weights.names import find_cell

        found = find_cell(state_dict, prefix, gates=cls._CELL.gates)
        dtype = common_dtype(found.parameters) if dtype is None else dtype
        sizes = found.input_size, found.hidden_size
        return cls._with_parameters(found.parameters, *sizes, bias=found.bias, dtype=dtype, **options)

    def _step(self, x: Any, hx: Any) -> tuple[Array, ...]:
        """Return the next states."""
        return self._quick_step(x, hx) or self._thorough_step(x, hx)

    def _quick_step(self, x: Any, hx: Any) -> tuple[Array, ...] | None:
        """Return the next states, or None if an argument is not a contiguous batch of the right type and size.

        In a step of a few microseconds a check takes as long as the computation: the kernel refuses what does not fit,
        and the thorough way says why, or finds a way round.
        """
        weights, size = self._weights, self.hidden_size
        first = weights.packed(self._pack)[0][0]
        try:
            rows = len(x)
            if (step := step_of(first, rows)) is None:
                return None
            dtype = weights.dtype
            h_next = np.empty((rows, size), dtype)
            found: tuple[Array, ...] = (h_next,)
            if step.has_cell_state:
                h, c = (np.zeros_like(h_next),) * 2 if hx is None else hx
                found = h_next, np.empty((rows, size), dtype)
            else:
                h = c = np.zeros_like(h_next) if hx is None else hx
            # Numba's choice by type alone would not do: it takes some arrays of another byte order for plain ones.
            plain = is_plain(x, dtype) and is_plain(h, dtype) and (c is h or is_plain(c, dtype))
            return found if plain and step.run(x, h, c, h_next, found[-1]) else None
        except (AttributeError, TypeError, ValueError):  # no arrays, of another type, or not two states
            return None

    def _thorough_step(self, x: Any, hx: Any) -> tuple[Array, ...]:
        weights = self._weights
        call = self._prepare(weights.dtype, x, hx)
        return self._shaped(call, run_layers(weights.packed(self._pack), call.x, call.layout, call.states, call.y))

    def _vjp(self, x: Any, hx: Any, input: bool) -> tuple[tuple[Array, ...], StepBackward]:
        """Return the next states, and the way back through the step."""
        name = type(self).__name__
        input = checks.check_flag(f"{name}.vjp", "input", input)
        weights = self._weights
        call = self._prepare(weights.dtype, x, hx)
        states, tape = run_taped(call, weights.packed(self._pack), weights.packed(self._pack_backward))
        return self._shaped(call, states), StepBackward(name, call, tape, states, weights.parameters, [[""]], input)

    def _prepare(self, dtype: np.dtype[Any], x: Any, hx: Any) -> SequenceCall:
        """Check a call's arguments; return them as a call of one step."""
        name = type(self).__name__
        array = checks.check_array(f"{name} input", x, dtype)
        batched, unbatched = f"(B, {self.input_size})", f"({self.input_size},)"
        checks.check_axes(name, "input", array, batched, unbatched)
        if array.shape[-1] != self.input_size:
            expected = unbatched if array.ndim == 1 else batched
            because = f"input_size={self.input_size}"
            raise RuntimeError(message(f"{name} input", expected, array.shape, because=because))
        rows = array if array.ndim == 2 else array[None]
        count = 2 if self._cell.has_cell_state else 1
        initial: list[Array] | list[None] = [None] * count if hx is None else self._states(name, hx, count, array)
        y = np.empty((1, len(rows), self.hidden_size), dtype)
        layout = SequenceLayout(1, len(rows))
        return SequenceCall(rows[None], layout, initial, y, y, y, batched=array.ndim == 2, batch_first=False)

    def _shaped(self, call: SequenceCall, states: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return the states, (1, B, H) each, as (B, H), or (H,) unbatched."""
        return tuple(state[0] if call.batched else state[0, 0] for state in states)

    def _states(self, name: str, hx: Any, count: int, x: Array) -> list[Array]:
        """Return the states in `hx`, which fit the input `x`, as (1, B, H) each."""
        size = self.hidden_size
        states = checks.check_states(name, hx, count, x.dtype)
        for index, state in enumerate(states):
            checks.check_axes(name, f"hx[{index}]" if count > 1 else "hx", state, f"(B, {size})", f"({size},)")
        checks.check_state_shapes(name, states, [(*x.shape[:-1], size)] * count, x.ndim == 2)
        return [state.reshape(1, -1, size) for state in states]

    def _pack(self, parameters: Mapping[str, Array]) -> list[list[DirectionWeights]]:
        """Return the parameters as the panels that the kernels read: one layer, one direction."""
        return [[pack_parameters(self._cell, parameters, "")]]

    def _pack_backward(self, parameters: Mapping[str, Array]) -> list[list[BackwardWeights]]:
        """Return the parameters as the panels that the way back reads."""
        return [[pack_for_backward(self._cell, parameters, "")]]

    def __repr__(self) -> str:
        given = [str(self.input_size), str(self.hidden_size), *([] if self.bias else ["bias=False"])]
        return f"{type(self).__name__}({', '.join(given)})"


class LSTMCell(RecurrentCell):
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

    _CELL = cells.LSTM

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
        h, c = self._step(x, hx)
        return h, c

    def vjp(
        self, x: Any, hx: tuple[Any, Any] | None = None, *, input: bool = True
    ) -> tuple[tuple[Array, Array], StepBackward]:
        """Take one step, and return the way back through it: the vector-Jacobian product.

        ``(h, c), backward = cell.vjp(x, hx)`` gives what a call gives, and ``gradients = backward((d_h, d_c))`` the
        gradients of a scalar whose gradients by h and c these are: `Gradients` of the input, of hx, also where that
        was None, and of every parameter. The arguments are those of a call, and so are the errors; with ``input=False``
        the gradient of the input is not computed. To go back through several steps, hand ``gradients.hx`` to the way
        back of the step before, and add up ``gradients.parameters``.

        >>> import numpy as np
        >>> cell = LSTMCell(10, 20, seed=0)
        >>> (h, c), backward = cell.vjp(np.ones((3, 10), np.float32))
        >>> gradients = backward((np.ones_like(h), np.zeros_like(c)))
        >>> gradients.input.shape, gradients.hx[1].shape, gradients.parameters["weight_hh"].shape
        ((3, 10), (3, 20), (80, 20))
        """
        (h, c), backward = self._vjp(x, hx, input)
        return (h, c), backward


class HiddenStateCell(RecurrentCell):
    """What GRUCell and RNNCell have in common: a state of h alone, handed in and out as one array."""

    def __call__(self, x: Any, hx: Any = None) -> Array:
        """Take one step.

        Parameters
        ----------
        x : array
            (B, I), or (I,) unbatched; of the cell's dtype. Never written to.
        hx : array, optional
            h (B, H), or (H,) if x is unbatched. None: zeros.

        Returns
        -------
        h : array
            The next state, shaped like hx.

        Raises
        ------
        ValueError
            Another number of axes, or another dtype.
        RuntimeError
            Other sizes than these.
        TypeError
            Something that is no array of numbers, or a tuple for hx.
        """
        (h,) = self._step(x, hx)
        return h

    def vjp(self, x: Any, hx: Any = None, *, input: bool = True) -> tuple[Array, StepBackward]:
        """Take one step, and return the way back through it: the vector-Jacobian product.

        ``h, backward = cell.vjp(x, hx)`` gives what a call gives, and ``gradients = backward(d_h)`` the gradients of a
        scalar whose gradient by h that is: `Gradients` of the input, of hx, also where that was None, and of every
        parameter. The arguments are those of a call, and so are the errors; with ``input=False`` the gradient of the
        input is not computed. To go back through several steps, hand ``gradients.hx`` to the way back of the step
        before, and add up ``gradients.parameters``.

        >>> import numpy as np
        >>> from nblstm import GRUCell
        >>> cell = GRUCell(10, 20, seed=0)
        >>> h, backward = cell.vjp(np.ones((3, 10), np.float32))
        >>> gradients = backward(np.ones_like(h))
        >>> gradients.input.shape, gradients.hx.shape, gradients.parameters["weight_hh"].shape
        ((3, 10), (3, 20), (60, 20))
        """
        (h,), backward = self._vjp(x, hx, input)
        return h, backward


class GRUCell(HiddenStateCell):
    """One time step of a GRU layer, as ``torch.nn.GRUCell``. Equations: `nblstm.reference.gru_step`.

    The cell's own parameters are attributes, read-only arrays: ``weight_ih`` (3H, I), ``weight_hh`` (3H, H),
    ``bias_ih`` and ``bias_hh`` (3H,). The 3H rows are those of the gates r, z, n. All start from
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
    >>> cell = GRUCell(10, 20, seed=0)
    >>> h = cell(np.zeros((3, 10), np.float32))
    >>> cell(np.ones((3, 10), np.float32), h).shape
    (3, 20)
    """

    _CELL = cells.GRU


class RNNCell(HiddenStateCell):
    """One time step of an RNN layer, as ``torch.nn.RNNCell``. Equations: `nblstm.reference.rnn_step`.

    The cell's own parameters are attributes, read-only arrays: ``weight_ih`` (H, I), ``weight_hh`` (H, H),
    ``bias_ih`` and ``bias_hh`` (H,). All start from U(-1/sqrt(H), 1/sqrt(H)).

    Parameters
    ----------
    input_size : int
        I, the features of the input; 0 is allowed, as in torch.
    hidden_size : int
        H, the hidden units.
    bias : bool
        False: no ``bias_ih`` and ``bias_hh``.
    nonlinearity : {"tanh", "relu"}
        What makes h of the sums.
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
    >>> cell = RNNCell(10, 20, seed=0)
    >>> h = cell(np.zeros((3, 10), np.float32))
    >>> cell(np.ones((3, 10), np.float32), h).shape
    (3, 20)
    """

    _FIXED = HiddenStateCell._FIXED | {"nonlinearity"}
    _CELL = cells.RNN_TANH

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: npt.DTypeLike = np.float32,
        seed: int | None = None,
    ) -> None:
        self.nonlinearity = checks.check_nonlinearity(type(self).__name__, nonlinearity)
        super().__init__(input_size, hidden_size, bias, dtype=dtype, seed=seed)

    def __repr__(self) -> str:
        nonlinearity = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return f"{super().__repr__()[:-1]}{nonlinearity})"

    @property
    def _cell(self) -> cells.Cell:
        return CELLS[self.nonlinearity]
