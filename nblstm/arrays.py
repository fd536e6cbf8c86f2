"""Whatever holds numbers in memory, as a NumPy array."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nblstm.errors import message

Array: TypeAlias = npt.NDArray[Any]

# By names of their own: looked up at each call, they took a fifth of the time of `address_of`.
_addressof, _from_buffer = ctypes.addressof, ctypes.c_char.from_buffer


def as_array(argument: str, value: Any) -> Array:
    """Return `value` as an aligned array of numbers; its memory is shared wherever that is possible.

    Takes whatever ``np.asarray`` takes, and objects that have ``__dlpack__`` alone. A TypeError names the `argument`
    and says why there is no array in it.

    >>> as_array("input", [[1, 2], [3, 4]]).shape
    (2, 2)
    >>> as_array("input", "words")
    Traceback (most recent call last):
    TypeError: input: expected an array of numbers, got <U5
    """
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        hint = "Fill them: array.filled(...)"
        raise TypeError(message(argument, "an array without masked elements", "some", hint=hint))
    else:
        try:
            array = np.asarray(value) if hasattr(value, "__array__") else _without_array_method(value)
        except Exception as error:
            raise TypeError(message(argument, "an array", type(value).__name__, hint=_hint(value, error))) from error
    if array.dtype.kind not in "fiubc":
        got = array.dtype if array.dtype.kind != "O" else type(value).__name__
        raise TypeError(message(argument, "an array of numbers", got))
    return array if array.flags.aligned else array.copy()


def address_of(array: Array) -> int:
    """Return the address of the first element, in a third of the time of ``array.ctypes.data`` for a plain array.

    >>> array = np.arange(6)
    >>> address_of(array[::2]) == address_of(array) == array.ctypes.data
    True
    """
    try:
        return _addressof(_from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # read-only, strided or empty; the flags do not always tell
        return array.ctypes.data


def _without_array_method(value: Any) -> Array:
    return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)


def _hint(value: Any, error: Exception) -> str:
    if getattr(value, "requires_grad", False):
        return "Pass tensor.detach(): what is computed here is not recorded for torch's autograd"
    return str(error)


def as_mapping(argument: str, value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, which is to be of names to arrays. Raises TypeError otherwise.

    >>> as_mapping("state_dict", [1])
    Traceback (most recent call last):
    TypeError: state_dict: expected a mapping of names to arrays, got list
    """
    if not isinstance(value, Mapping):
        raise TypeError(message(argument, "a mapping of names to arrays", type(value).__name__))
    return value


def as_whole_number(argument: str, value: Any) -> int:
    """Return the whole number `value` as an int; TypeError for anything else, also a bool or a fraction of 0.

    >>> as_whole_number("n", np.int8(3))
    3
    >>> as_whole_number("n", 3.0)
    Traceback (most recent call last):
    TypeError: n: expected a whole number, got float
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(message(argument, "a whole number", type(value).__name__)) from None


def as_number(argument: str, value: Any) -> float:
    """Return the number `value` as a float; TypeError for anything else, also a bool or a text.

    >>> as_number("p", np.float32(0.5))
    0.5
    >>> as_number("p", "0.5")
    Traceback (most recent call last):
    TypeError: p: expected a number, got '0.5'
    """
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(message(argument, "a number", repr(value))) from None


def float_dtype(argument: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return `dtype` if it is one the kernels compute in: float32 or float64. Raises TypeError otherwise.

    >>> float_dtype("LSTM dtype", "float64")
    dtype('float64')
    """
    found = np.dtype(dtype)
    if dtype is None or found not in (np.float32, np.float64):
        raise TypeError(message(argument, "float32 or float64", dtype))
    return found
