"""Every check of what a user hands to a layer: constructor arguments, inputs, states, lengths, out.

A check either returns the value in the form the engine takes, or raises ValueError, TypeError or RuntimeError, the
family that torch.nn raises in the same place. They all run before any kernel starts, so a kernel checks nothing.
"""

from __future__ import annotations

import numbers
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from nblstm.arrays import Array, as_array
from nblstm.engine.run import SequenceLayout
from nblstm.errors import message
from nblstm.sequences import batch_sizes_of, check_lengths, longest_first

_MOST_WORK: Any = 10**6  # some 50 ms; Any, because NumPy's annotations know no other numbers than 0 and -1


def check_flag(layer: str, name: str, value: Any) -> bool:
    """Return the bool `value`; TypeError for any other type."""
    if not isinstance(value, bool):
        raise TypeError(f"{layer}: {name} should be of type bool, got: {type(value).__name__}")
    return value


def check_integer(layer: str, name: str, value: Any) -> int:
    """Return the int `value`; TypeError for any other type."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{layer}: {name} should be of type int, got: {type(value).__name__}")
    return value


def check_size(layer: str, name: str, value: Any) -> int:
    """Return the positive int `value`; TypeError for any other type, ValueError below 1."""
    if check_integer(layer, name, value) <= 0:
        raise ValueError(f"{layer}: {name} must be greater than zero, got {value}")
    return int(value)


def check_proj_size(layer: str, value: Any, hidden_size: int) -> int:
    """Return `value` from 0 (no projection) to hidden_size - 1; ValueError outside of it."""
    if check_integer(layer, "proj_size", value) < 0:
        raise ValueError(f"{layer}: proj_size should be a positive integer or zero to disable projections, got {value}")
    if value >= hidden_size:
        raise ValueError(f"{layer}: proj_size has to be smaller than hidden_size={hidden_size}, got {value}")
    return int(value)


def check_nonlinearity(layer: str, value: Any) -> str:
    """Return "tanh" or "relu"; ValueError for anything else."""
    if value not in ("tanh", "relu"):
        raise ValueError(f"{layer}: Unknown nonlinearity {value!r}. Select from 'tanh' or 'relu'.")
    return str(value)


def check_dropout(layer: str, value: Any, num_layers: Any) -> float:
    """Return the probability `value`; warns, like torch, where no layer follows that could be dropped into."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        expected = "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        raise ValueError(f"{layer}: {expected}, got {value!r}")
    if value > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
            f"greater than 1, but got dropout={value} and num_layers={num_layers}",
            stacklevel=_frames_to_the_user(),
        )
    return float(value)


def _frames_to_the_user() -> int:
    """Return the stack level, for the caller's warning, of the first line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("nblstm."):
        frame, level = frame.f_back, level + 1
    return level


def check_seed(layer: str, seed: Any) -> int | None:
    """Return the whole number `seed`, 0 or more, or None; TypeError, ValueError otherwise."""
    if seed is None:
        return None
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise TypeError(message(f"{layer} seed", "a whole number or None", type(seed).__name__))
    if seed < 0:
        raise ValueError(message(f"{layer} seed", "0 or more", seed))
    return int(seed)


def check_dropout_call(layer: str, call: Any) -> int:
    """Return the call number of a dropout mask: a whole number from 0 to 2**64 - 1."""
    if not isinstance(call, (int, np.integer)) or isinstance(call, bool):
        raise TypeError(message(f"{layer} dropout_call", "a whole number", type(call).__name__))
    if not 0 <= call < 2**64:
        raise ValueError(message(f"{layer} dropout_call", "0 ... 2**64 - 1", call))
    return int(call)


def check_array(argument: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """Return `value` as an array of the layer's dtype; ValueError for another dtype, TypeError for no array at all."""
    if type(value) is np.ndarray and value.dtype == dtype and value.flags.aligned:  # most calls end here
        return value
    array = as_array(argument, value)
    if array.dtype != dtype:
        raise ValueError(
            message(
                argument,
                f"dtype {dtype}",
                f"dtype {array.dtype}, which does not match weight dtype",
                hint=f"Convert the array with np.asarray(array, np.{dtype}), or the layer with layer.to(...)",
            )
        )
    return array


def check_axes(layer: str, name: str, array: Array, batched: str, unbatched: str) -> None:
    """Check that `array` has as many axes as one of these two shapes, the second of which has one less."""
    ndim = batched.count(",") + 1
    if array.ndim != ndim and array.ndim != ndim - 1:
        raise ValueError(
            f"{layer}: Expected {name} to be {ndim - 1}D or {ndim}D, got {array.ndim}D instead: "
            f"shape {array.shape} is neither {batched} nor, unbatched, {unbatched}"
        )


def check_sequence_input(layer: str, array: Array, input_size: int, batch_first: bool) -> Array:
    """Return a dense input as (T, B, I): a view of the (T, B, I), (B, T, I) or unbatched (T, I) `array`."""
    ndim, shape = array.ndim, array.shape
    if ndim not in (2, 3) or shape[-1] != input_size:
        batched, unbatched = f"({'B, T' if batch_first else 'T, B'}, {input_size})", f"(T, {input_size})"
        check_axes(layer, "input", array, batched, unbatched)
        expected = unbatched if ndim == 2 else batched
        raise RuntimeError(message(f"{layer} input", expected, shape, because=f"input_size={input_size}"))
    steps_first = array[:, None] if ndim == 2 else array.swapaxes(0, 1) if batch_first else array
    if len(steps_first) == 0:
        reason = "Expected sequence length to be larger than 0"
        raise RuntimeError(f"{layer} input: {reason}, got T=0 in {array.shape}")
    return steps_first


def check_packed_data(layer: str, data: Array, input_size: int) -> None:
    """Check that the data of a packed input is (N, I)."""
    if data.ndim != 2 or data.shape[1] != input_size:
        expected = f"({len(data)}, {input_size})"
        raise RuntimeError(message(f"{layer} input.data", expected, data.shape, because=f"input_size={input_size}"))


def check_states(layer: str, hx: Any, count: int, dtype: np.dtype[Any], name: str = "hx") -> list[Array]:
    """Return the states in `hx`: one array of the layer's dtype if `count` is 1, else a tuple of so many."""
    if count == 1:
        if isinstance(hx, tuple):
            because = f"{layer} has no cell state"
            raise TypeError(message(f"{layer} {name}", "one array", f"a tuple of {len(hx)}", because=because))
        return [check_array(f"{layer} {name}", hx, dtype)]
    if not isinstance(hx, (tuple, list)):
        raise TypeError(message(f"{layer} {name}", f"a tuple of {count} arrays", type(hx).__name__))
    if len(hx) != count:
        raise RuntimeError(message(f"{layer} {name}", f"{count} arrays, as {layer} has so many states", len(hx)))
    return [check_array(f"{layer} {name}[{index}]", state, dtype) for index, state in enumerate(hx)]


def check_state_shapes(layer: str, states: list[Array], shapes: Sequence[tuple[int, ...]], batched: bool) -> None:
    """Check that each of the `states` has its shape."""
    for index, (state, shape) in enumerate(zip(states, shapes, strict=True)):
        if state.ndim != len(shape):
            kind, ndim = "batched" if batched else "unbatched", len(shape)
            names, got = "hx and cx", ", ".join(f"{state.ndim}-D" for state in states)
            names, got = (names, f"({got}) arrays") if len(states) > 1 else ("hx", f"{got} array")
            raise RuntimeError(f"{layer} hx: For {kind} {ndim}-D input, {names} should also be {ndim}-D but got {got}")
        if state.shape != shape:
            which = f"hidden[{index}]" if len(states) > 1 else "hidden"
            raise RuntimeError(f"{layer} hx: Expected {which} size {shape}, got {list(state.shape)}")


def check_layout(layer: str, x: Array, lengths: Any, batched: bool) -> SequenceLayout:
    """Return where the rows of a dense (T, B, I) input lie; `lengths` is None or (B,) whole numbers from 1 to T."""
    steps, batch = x.shape[:2]
    if lengths is None:
        return SequenceLayout(steps, batch)
    if not batched:
        raise ValueError(message(f"{layer} lengths", "None", "lengths", because="the input is unbatched"))
    lengths = check_lengths(f"{layer} lengths", lengths, batch, steps)
    if (lengths == steps).all():
        return SequenceLayout(steps, batch)
    order = longest_first(lengths)
    return SequenceLayout(steps, batch, batch_sizes_of(lengths, steps), rows=order, states=order)


def check_out(layer: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: list[Array]) -> Array:
    """Return `out` if the output can go there: a writeable array of this shape and dtype, apart from the `inputs`.

    Whether two arrays of odd strides share memory is as hard as any problem; what cannot be told soon is refused.
    """
    argument = f"{layer} out"
    if not isinstance(out, np.ndarray):
        raise TypeError(message(argument, "a NumPy array", type(out).__name__))
    if out.shape != shape:
        raise ValueError(message(argument, str(shape), out.shape))
    if out.dtype != dtype:
        raise ValueError(message(argument, f"dtype {dtype}", out.dtype))
    if not out.flags.writeable:
        raise ValueError(message(argument, "a writeable array", "a read-only one"))
    if any(np.may_share_memory(out, array) and _shares_memory(out, array) for array in inputs):
        raise ValueError(message(argument, "memory of its own", "an array that shares memory with the input or hx"))
    if may_overlap_itself(out):
        expected = "elements that share no memory with one another"
        raise ValueError(message(argument, expected, f"strides {out.strides}"))
    return out


def _shares_memory(one: Array, other: Array) -> bool:
    try:
        return np.shares_memory(one, other, max_work=_MOST_WORK)
    except RuntimeError:  # TooHardError, which has another place in each NumPy
        return True


def may_overlap_itself(array: Any) -> bool:
    """Say whether two elements may share memory: False for all that slicing and transposing make; on a device too."""
    reach = array.dtype.itemsize  # bytes from the first to the last byte along the axes with the smaller strides
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False
