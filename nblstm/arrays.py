"""Whatever holds numbers in memory, as a NumPy array."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nblstm.errors import message

Array: TypeAlias = npt.NDArray[Any]


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
    else:
        try:
            array = np.asarray(value) if hasattr(value, "__array__") else _without_array_method(value)
        except Exception as error:
            raise TypeError(message(argument, "an array", type(value).__name__, hint=_hint(value, error))) from error
    if array.dtype.kind not in "fiubc":
        got = array.dtype if array.dtype.kind != "O" else type(value).__name__
        raise TypeError(message(argument, "an array of numbers", got))
    return array if array.flags.aligned else array.copy()


def _without_array_method(value: Any) -> Array:
    return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)


def _hint(value: Any, error: Exception) -> str:
    if getattr(value, "requires_grad", False):
        return "Pass tensor.detach(): what is computed here is not recorded for torch's autograd"
    return str(error)


def float_dtype(argument: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return `dtype` if it is one the kernels compute in: float32 or float64. Raises TypeError otherwise.

    >>> float_dtype("LSTM dtype", "float64")
    dtype('float64')
    """
    found = np.dtype(dtype)
    if dtype is None or found not in (np.float32, np.float64):
        raise TypeError(message(argument, "float32 or float64", dtype))
    return found
