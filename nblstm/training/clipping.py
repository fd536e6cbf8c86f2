"""Gradients made smaller in place, by their norm or number by number: torch.nn.utils.clip_grad_norm_ and _value_."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nblstm.arrays import Array, address_of, as_number
from nblstm.engine.updates import run_over_arrays
from nblstm.errors import message
from nblstm.kernels import updates
from nblstm.training.gradient_entries import entries_of, named_arrays

_WORKERS = {np.dtype(np.float32): updates.sum_float32, np.dtype(np.float64): updates.sum_float64}
_KINDS = {0.0: updates.NONZERO, 1.0: updates.ABSOLUTE, 2.0: updates.SQUARE, math.inf: updates.LARGEST}
_SMALL, _LARGE = 1e-280, math.inf  # between them no term that counts was lost to underflow


def clip_grad_norm(gradients: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> float:
    """Scale gradients in place so that their norm, over all numbers of all of them, is at most `max_norm`.

    All are multiplied by min(1, max_norm / (norm + 1e-6)). The norm is that of the norms of the arrays, in sums of
    float64 that do not overflow or vanish, and has the same bits for any number of threads.

    Parameters
    ----------
    gradients : list
        What an optimiser's ``step`` takes: for each layer what its backward returned, or a mapping of names to arrays.
        Of the former ``parameters`` alone count. The arrays are float32 or float64 and can be written to.
    max_norm : float
        0 or more. With inf nothing is scaled as long as the norm is finite.
    norm_type : float
        The p of the p-norm; "inf" or infinity for the largest absolute value, -inf for the smallest.
    error_if_nonfinite : bool
        Raise RuntimeError if the norm is NaN or infinite. Otherwise it is scaled by all the same: NaN spreads to
        every gradient.

    Returns
    -------
    float
        The norm before scaling; 0.0 if there are no gradients.

    Raises
    ------
    ValueError
        `max_norm` or `norm_type` out of range; an array of another dtype, or one that is read-only.
    TypeError
        Something that is no NumPy array, mapping, list or number.
    RuntimeError
        The norm is not finite and `error_if_nonfinite`.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm.training import clip_grad_norm
    >>> gradients = [{"bias": np.array([3.0, 4.0])}]
    >>> clip_grad_norm(gradients, max_norm=1.0)
    5.0
    >>> gradients[0]["bias"].round(3)
    array([0.6, 0.8])
    """
    limit = _limit("clip_grad_norm max_norm", max_norm)
    power = _power(norm_type)
    arrays = _arrays("clip_grad_norm gradients", gradients)
    total = _norm_of_norms(np.array(_norms(arrays, power)), power) if arrays else 0.0
    if error_if_nonfinite and not math.isfinite(total):
        hint = (
            "To disable this error and scale the gradients by the non-finite norm anyway, set error_if_nonfinite=False"
        )
        what = f"clip_grad_norm: The total norm of order {power} for gradients is non-finite, so it cannot be clipped"
        raise RuntimeError(f"{what}: {total}. {hint}")
    scale = limit / (total + 1e-6)
    if not scale >= 1:
        with np.errstate(all="ignore"):
            for array in arrays:
                np.multiply(array, array.dtype.type(scale), out=array)
    return total


def clip_grad_value(gradients: Any, clip_value: float) -> None:
    """Limit every number of the gradients to the range from -clip_value to clip_value, in place. NaN stays.

    Parameters
    ----------
    gradients : list
        As in `clip_grad_norm`.
    clip_value : float
        0 or more.

    Raises
    ------
    ValueError, TypeError
        As in `clip_grad_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from nblstm.training import clip_grad_value
    >>> gradients = {"bias": np.array([3.0, -0.5])}
    >>> clip_grad_value(gradients, 1.0)
    >>> gradients["bias"]
    array([ 1. , -0.5])
    """
    limit = _limit("clip_grad_value clip_value", clip_value)
    for array in _arrays("clip_grad_value gradients", gradients):
        np.clip(array, array.dtype.type(-limit), array.dtype.type(limit), out=array)


def _limit(argument: str, value: Any) -> float:
    number = as_number(argument, value)
    if not number >= 0:
        raise ValueError(message(argument, "a number of 0 or more", value))
    return number


def _power(norm_type: Any) -> float:
    number = as_number("clip_grad_norm norm_type", math.inf if norm_type == "inf" else norm_type)  # as in torch
    if math.isnan(number):
        raise ValueError(message("clip_grad_norm norm_type", "a number, inf or -inf", norm_type))
    return number


def _arrays(argument: str, gradients: Any) -> list[Array]:
    """Return all arrays that have elements; they can be written to."""
    found = []
    for index, entry in enumerate(entries_of(argument, gradients)):
        for name, array in named_arrays(f"{argument}[{index}]", entry).items():
            where = f"{argument}[{index}][{name!r}]"
            if not isinstance(array, np.ndarray):
                raise TypeError(message(where, "a NumPy array", type(array).__name__, because="it changes in place"))
            if array.dtype not in _WORKERS:
                raise ValueError(message(where, "dtype float32 or float64", f"dtype {array.dtype}"))
            if not array.flags.writeable:
                raise ValueError(message(where, "a writeable array", "a read-only one"))
            if array.size:
                found.append(array)
    return found


def _norms(arrays: list[Array], power: float) -> list[float]:
    """Return the norm of each array."""
    if abs(power) == math.inf:
        return _ends(arrays, power > 0)
    kind = _KINDS.get(power, updates.POWER)
    totals = _sums(arrays, kind, power, [1.0] * len(arrays))
    scales = [1.0] * len(arrays)
    if power not in (0.0, 1.0):
        # Powers leave the range of float64 sooner than their root would: those sums again, of |x| / scale.
        again = [n for n, total in enumerate(totals) if not _SMALL < total < _LARGE]
        if again:
            ends = _ends([arrays[n] for n in again], power > 0)
            worth = [(n, end) for n, end in zip(again, ends, strict=True) if 0 < end < math.inf]
            sums = _sums([arrays[n] for n, _ in worth], updates.POWER, power, [end for _, end in worth])
            for (n, end), total in zip(worth, sums, strict=True):
                scales[n], totals[n] = end, total
    return [scale * _root(total, power) for scale, total in zip(scales, totals, strict=True)]


def _norm_of_norms(norms: Array, power: float) -> float:
    """Return the norm of the arrays' norms; as in torch that of power 0 is how many of them are not 0."""
    end = float(norms.max() if power > 0 else norms.min())
    scale = end if 0 < end < math.inf and power != 0 else 1.0  # of a count there is none
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(norms / scale, power)) * scale


def _root(total: float, power: float) -> float:
    if power in (0.0, 1.0):
        return total
    with np.errstate(all="ignore"):
        return float(np.sqrt(total) if power == 2 else np.power(total, 1 / power))


def _ends(arrays: list[Array], largest: bool) -> list[float]:
    """Return the largest |x| of each array, or the smallest; NaN if there is one."""
    found = _by_block(arrays, updates.LARGEST if largest else updates.SMALLEST, 0.0, [1.0] * len(arrays))
    return [float(blocks.max() if largest else blocks.min()) for blocks in found]


def _sums(arrays: list[Array], kind: int, power: float, scales: list[float]) -> list[float]:
    """Return the sum of the terms of each array, those of blocks added in NumPy's order."""
    with np.errstate(all="ignore"):
        return [float(blocks.sum()) for blocks in _by_block(arrays, kind, power, scales)]


def _by_block(arrays: list[Array], kind: int, power: float, scales: list[float]) -> list[Array]:
    """Return what the kernel makes of each block of the arrays."""
    kept = [np.ascontiguousarray(array) for array in arrays]
    found = [np.empty(-(-array.size // updates.BLOCK)) for array in arrays]
    records: dict[np.dtype[Any], list[tuple[Any, ...]]] = {}
    for array, blocks, scale in zip(kept, found, scales, strict=True):
        record = array.size, address_of(array), address_of(blocks), kind, power, scale
        records.setdefault(array.dtype, []).append(record)
    for dtype, rows in records.items():
        table = np.array(rows, updates.SUM)
        run_over_arrays(_WORKERS[dtype], table, int(table["count"].sum()))
    return found
