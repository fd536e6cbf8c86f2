"""What training makes small: the loss of a batch, with its gradient in the same pass.

    loss, gradient = cross_entropy(logits, targets)

The loss is a float, summed in float64; the gradient is that of the loss by the first argument, in its shape and dtype:
what a layer's backward takes. Results depend neither on the number of threads nor, for each row's gradient but for the
divisor of a mean, on the other rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nblstm.arrays import Array, as_array, as_whole_number, float_dtype
from nblstm.engine.losses import cross_entropy_rows
from nblstm.errors import message


def cross_entropy(
    logits: Any, targets: Any, *, ignore_index: int = -100, reduction: str = "mean"
) -> tuple[float, Array]:
    """Return the cross-entropy between scores of classes and the right classes, and its gradient by the scores.

    A row's loss is log(sum of exp(x)) - x[target]. The classes are the *last* axis, as a network puts them out: where
    torch takes (N, C, d1, ...) with targets (N, d1, ...), this takes (N, d1, ..., C). Targets are the numbers of
    classes, not probabilities.

    Parameters
    ----------
    logits : (..., C) array
        float32 or float64; need not be normalised.
    targets : (...) array of whole numbers
        From 0 to C - 1, or `ignore_index`.
    ignore_index : int
        Rows of this target count for nothing: neither in the loss, nor in the gradient, nor in the mean.
    reduction : str
        ``"mean"`` over the rows that count, or ``"sum"``.

    Returns
    -------
    loss : float
        NaN for a mean over no rows, as in torch; NaN in a row that counts, and +inf there, give NaN.
    gradient : (..., C) array
        In the dtype of the logits; zeros in rows that do not count.

    Raises
    ------
    TypeError
        Logits that are no array of float32 or float64, targets that are no whole numbers.
    ValueError
        Targets of another shape than the logits without their last axis, no classes, another reduction.
    IndexError
        A target out of range.

    Examples
    --------
    >>> import numpy as np
    >>> loss, gradient = cross_entropy(np.zeros((2, 3, 4)), [[0, 1, 2], [3, -100, -100]])
    >>> round(loss, 6), gradient[0, 0].tolist()
    (1.386294, [-0.1875, 0.0625, 0.0625, 0.0625])
    """
    name = "cross_entropy"
    scores, mean = _floats(f"{name} logits", logits), _is_mean(name, reduction)
    ignored = as_whole_number(f"{name} ignore_index", ignore_index)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(message(f"{name} logits", "(..., C) with one class or more", scores.shape))
    classes = scores.shape[-1]
    numbers = _targets(f"{name} targets", targets, scores.shape[:-1], classes, ignored)
    count = int(np.count_nonzero(numbers >= 0))
    rows = np.ascontiguousarray(scores).reshape(-1, classes)
    losses, gradient = cross_entropy_rows(rows, numbers, max(1, count) if mean else 1)
    return _reduced(losses, count, mean), gradient.reshape(scores.shape)


def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> tuple[float, Array]:
    """Return the squared error, (input - target)^2, and its gradient by `input`.

    Both are of one shape and dtype, float32 or float64; nothing is broadcast. `reduction` is ``"mean"`` over all
    numbers or ``"sum"``. Raises TypeError for other dtypes than these, ValueError for two shapes or dtypes, and for
    another reduction.

    >>> import numpy as np
    >>> loss, gradient = mse_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> loss, gradient.tolist()
    (2.0, [0.0, -2.0])
    """
    difference, mean = _difference("mse_loss", input, target, reduction)
    divisor = max(1, difference.size) if mean else 1
    with np.errstate(all="ignore"):
        loss = _reduced(np.square(difference, dtype=np.float64), difference.size, mean)
        return loss, np.asarray(difference * difference.dtype.type(2 / divisor))


def l1_loss(input: Any, target: Any, *, reduction: str = "mean") -> tuple[float, Array]:
    """Return the absolute error, |input - target|, and its gradient by `input`, which is 0 where both are equal.

    Arguments and errors are those of `mse_loss`.

    >>> import numpy as np
    >>> loss, gradient = l1_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    >>> loss, gradient.tolist()
    (1.0, [0.0, -0.5])
    """
    difference, mean = _difference("l1_loss", input, target, reduction)
    divisor = max(1, difference.size) if mean else 1
    with np.errstate(all="ignore"):
        loss = _reduced(np.abs(difference, dtype=np.float64), difference.size, mean)
        return loss, np.asarray(np.sign(difference) * difference.dtype.type(1 / divisor))


def perplexity_of(loss: float) -> float:
    """Return exp of a mean cross-entropy; inf where that is too large for a float.

    >>> perplexity_of(0.0), perplexity_of(1e6)
    (1.0, inf)
    """
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def _reduced(losses: Array, count: int, mean: bool) -> float:
    total = float(losses.sum(dtype=np.float64))
    if not mean:
        return total
    return total / count if count else float("nan")


def _difference(name: str, input: Any, target: Any, reduction: str) -> tuple[Array, bool]:
    """Return input - target, once both are known to be of one kind; and whether the mean is wanted."""
    one, other = _floats(f"{name} input", input), _floats(f"{name} target", target)
    mean = _is_mean(name, reduction)
    if one.shape != other.shape:
        raise ValueError(message(f"{name} target", str(one.shape), other.shape, because="the input has that shape"))
    if one.dtype != other.dtype:
        raise ValueError(message(f"{name} target", f"dtype {one.dtype}, as the input", f"dtype {other.dtype}"))
    with np.errstate(all="ignore"):
        return np.asarray(one - other), mean


def _floats(argument: str, value: Any) -> Array:
    array = as_array(argument, value)
    float_dtype(argument, array.dtype)
    return array


def _is_mean(name: str, reduction: Any) -> bool:
    if reduction not in ("mean", "sum"):
        raise ValueError(message(f"{name} reduction", "'mean' or 'sum'", repr(reduction)))
    return bool(reduction == "mean")


def _targets(argument: str, value: Any, shape: tuple[int, ...], classes: int, ignored: int) -> Array:
    """Return the classes of all rows, (N,) int64, with -1 for those that do not count."""
    array = as_array(argument, value)
    if array.dtype.kind not in "iu":
        raise TypeError(message(argument, "whole numbers", f"dtype {array.dtype}", because="they are those of classes"))
    if array.shape != shape:
        raise ValueError(message(argument, str(shape), array.shape, because="of the logits without their last axis"))
    out_of_range = ((array < 0) | (array >= classes)) & (array != ignored)
    if out_of_range.any():
        hint = f"ignore_index={ignored}"
        got = int(array[out_of_range][0])
        raise IndexError(message(argument, f"0 ... {classes - 1}", got, because=f"there are {classes} classes; {hint}"))
    return np.where(array == ignored, -1, array).astype(np.int64).reshape(-1)
