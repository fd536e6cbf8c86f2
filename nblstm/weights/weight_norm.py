"""Weights that torch's weight_norm keeps in two parts.

T. Salimans, D. P. Kingma, "Weight Normalization", arXiv:1602.07868, 2016: w = g * v / ||v||. A state_dict then has not
the weight but v and g, under one of two pairs of names: ``NAME_v`` and ``NAME_g`` (``torch.nn.utils.weight_norm``), or
``parametrizations.NAME.original1`` and ``parametrizations.NAME.original0`` (``torch.nn.utils.parametrizations``).
"""

from __future__ import annotations

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message


def join(name: str, g: Array, v: Array) -> Array:
    """Return the weight g * v / ||v||; errors call g `name`.

    The shape of g says along which axes the norm runs: those where g has size one, or all if it has no axes. So it is
    (rows, 1) for a matrix with torch's default dim=0, (1, columns) for dim=1, and () for one norm of the whole. The
    result is computed in float64 and rounded once, to the dtype of v, or float32 if that is narrower. A row of zeros
    has no direction and becomes NaN, as in torch.

    Raises ValueError if g fits v in none of these ways, and for complex numbers.

    >>> join("weight_g", np.array([[10.0], [1.0]]), np.array([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [[6.0, 8.0], [0.0, 1.0]]
    """
    sizes = zip(g.shape, v.shape, strict=False)
    if g.ndim not in (0, v.ndim) or any(size not in (1, whole) for size, whole in sizes):
        expected = str((*v.shape[:1], *(1 for _ in v.shape[1:])))
        raise ValueError(message(name, expected, g.shape, because=f"the directions that belong to it are {v.shape}"))
    if np.iscomplexobj(g) or np.iscomplexobj(v):
        raise ValueError(message(name, "real numbers", f"{g.dtype} with directions of {v.dtype}"))
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    directions = v.astype(np.float64)
    with np.errstate(all="ignore"):
        directions *= g / np.sqrt(np.square(directions).sum(axes, keepdims=True))
        return directions.astype(np.result_type(v.dtype, np.float32), copy=False)
