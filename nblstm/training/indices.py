"""Whole numbers that stand for words, characters or classes: their check, and the vectors of 0 and 1 made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, as_array, float_dtype
from nblstm.errors import message
from nblstm.layers import checks


def one_hot(indices: Any, num_classes: int, *, dtype: npt.DTypeLike = np.float32) -> Array:
    """Return vectors that are 1 at the place of their number and 0 elsewhere: torch's one_hot, as floats for a layer.

    A matrix product with such a vector picks a column of the matrix, and nothing is rounded.

    Parameters
    ----------
    indices : (...) array of whole numbers
        From 0 to num_classes - 1.
    num_classes : int
        C, the length of the vectors.
    dtype : dtype
        float32 or float64.

    Returns
    -------
    (..., C) array

    Raises
    ------
    IndexError
        A number out of range.
    TypeError, ValueError
        No whole numbers, another dtype, no classes.

    Examples
    --------
    >>> one_hot([2, 0], 3)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """
    size = checks.check_size("one_hot", "num_classes", num_classes)
    found = float_dtype("one_hot dtype", dtype)
    rows = as_indices("one_hot indices", indices, size, f"num_classes={size}")
    vectors = np.zeros((*rows.shape, size), found)
    vectors.reshape(-1)[np.arange(rows.size) * size + rows.reshape(-1)] = 1
    return vectors


def as_indices(argument: str, value: Any, count: int, because: str) -> Array:
    """Return contiguous int64 numbers from 0 to count - 1; IndexError for others, TypeError for no whole numbers.

    >>> as_indices("indices", [3, 1], 4, "there are 4").tolist()
    [3, 1]
    """
    array = as_array(argument, value)
    if array.dtype.kind not in "iu":
        raise TypeError(message(argument, "whole numbers", f"dtype {array.dtype}"))
    lowest, highest = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if lowest < 0 or highest >= count:
        got = lowest if lowest < 0 else highest
        raise IndexError(message(argument, f"0 ... {count - 1}", got, because=because))
    return np.ascontiguousarray(array, np.int64).reshape(array.shape)
