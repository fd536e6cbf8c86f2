"""What the backward of a layer of this folder returns, and the check of what it is given."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message
from nblstm.layers import checks


class Gradients(NamedTuple):
    """Gradients of a scalar, from the function that `vjp` returns: fresh arrays of the layer's dtype."""

    input: Any  # in the shape of the input; None if it was not asked for, or is no array of real numbers
    parameters: dict[str, Array]  # by name, in torch's order


def check_gradient(argument: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the gradient of an output of this shape and dtype as a contiguous array; ValueError for any other."""
    array = checks.check_array(argument, value, dtype)
    if array.shape != shape:
        raise ValueError(message(argument, str(shape), array.shape, because="the output has that shape"))
    return np.ascontiguousarray(array).reshape(shape)
