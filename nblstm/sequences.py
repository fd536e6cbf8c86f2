"""Packed sequences: batches of sequences of different lengths, without their padding.

The counterpart of ``torch.nn.utils.rnn`` on NumPy arrays, with its names, arguments and layouts. A packed sequence
holds its rows step by step: all rows at step 0, then those still running at step 1, and so on, longest row first.
Shapes: T steps, B rows, N = sum of all lengths, ``*`` any number of axes (none is fine).

Where torch reads past the end (lengths beyond T) or drops a fraction (lengths of 2.5), these functions raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, as_array, as_whole_number
from nblstm.errors import message


class PackedSequence(NamedTuple):
    """A batch of sequences without padding; made by `pack_padded_sequence` and `pack_sequence`.

    Attributes
    ----------
    data : array
        (N, *): the rows of step 0, then those of step 1, and so on.
    batch_sizes : array
        (T,) int64, never rising: how many rows each step has.
    sorted_indices : array or None
        (B,) int64: packed row r is row ``sorted_indices[r]`` of the batch; None: row r.
    unsorted_indices : array or None
        (B,) int64: the inverse permutation.

    Examples
    --------
    >>> packed = pack_sequence([np.array([1.0, 2.0, 3.0]), np.array([10.0])])
    >>> packed.data.tolist(), packed.batch_sizes.tolist()
    ([1.0, 10.0, 2.0, 3.0], [2, 1, 1])
    """

    data: Array
    batch_sizes: Array
    sorted_indices: Array | None = None
    unsorted_indices: Array | None = None

    def to(self, dtype: npt.DTypeLike) -> PackedSequence:
        """Return the sequence with its data in another dtype; itself if they have it already."""
        return self if self.data.dtype == dtype else self._replace(data=self.data.astype(dtype))

    def float(self) -> PackedSequence:
        """Return the sequence in float32."""
        return self.to(np.float32)

    def double(self) -> PackedSequence:
        """Return the sequence in float64."""
        return self.to(np.float64)


class PackedLike(Protocol):
    """What a layer takes for a packed sequence: ours, torch's, or anything else with these members."""

    @property
    def data(self) -> Any:
        """(N, *)."""

    @property
    def batch_sizes(self) -> Any:
        """(T,) whole numbers."""

    @property
    def sorted_indices(self) -> Any:
        """(B,) whole numbers, or None."""

    @property
    def unsorted_indices(self) -> Any:
        """(B,) whole numbers, or None."""


def check_lengths(argument: str, lengths: Any, batch: int, steps: int, minimum: int = 1) -> Array:
    """Return `lengths` as a (B,) int64 array of whole numbers from `minimum` to T.

    Raises TypeError for anything but whole numbers, RuntimeError for another number of axes or rows or a length below
    `minimum`, ValueError for a length beyond T.

    >>> check_lengths("lengths", [3, 4], batch=2, steps=3)
    Traceback (most recent call last):
    ValueError: lengths: expected lengths of at most 3 because the input has T=3 steps, got 4
    """
    found = _integers(argument, lengths)
    if found.ndim != 1:
        raise RuntimeError(message(argument, "a 1D array of B lengths", f"{found.ndim}D of shape {found.shape}"))
    if len(found) != batch:
        raise RuntimeError(message(argument, f"{batch} lengths", len(found), because=f"the input has B={batch} rows"))
    if batch and found.min() < minimum:
        least = "greater than 0" if minimum else "0 or more"
        raise RuntimeError(message(argument, f"every length to be {least}", found.min()))
    if batch and found.max() > steps:
        because = f"the input has T={steps} steps"
        raise ValueError(message(argument, f"lengths of at most {steps}", found.max(), because=because))
    return found


def batch_sizes_of(lengths: Array, steps: int) -> Array:
    """Return how many rows are still running at each of the T = `steps` steps: (T,) int64.

    >>> batch_sizes_of(np.array([1, 3, 3]), steps=4).tolist()
    [3, 2, 2, 0]
    """
    ended = np.cumsum(np.bincount(lengths, minlength=steps + 1)[:steps])
    return len(lengths) - ended


def longest_first(lengths: Array) -> Array:
    """Return the (B,) order of the rows by falling length; rows of equal length stay in their order."""
    return np.argsort(-lengths, kind="stable")


def check_packed(argument: str, sequence: PackedLike) -> PackedSequence:
    """Return `sequence` as arrays, with both permutations or neither, after checking that its members fit together.

    Raises RuntimeError for batch sizes that are not those of a packed sequence, ValueError for indices that are no
    permutation of the rows, TypeError for anything that is not a packed sequence of arrays.
    """
    if not all(hasattr(sequence, name) for name in PackedSequence._fields):
        raise TypeError(message(argument, "a PackedSequence", type(sequence).__name__))
    data = as_array(f"{argument}.data", sequence.data)
    sizes = _integers(f"{argument}.batch_sizes", sequence.batch_sizes)
    if sizes.ndim != 1 or len(sizes) == 0 or sizes.min() < 1 or (sizes[1:] > sizes[:-1]).any():
        expected = "1D, positive, never rising sizes of at least one step"
        raise RuntimeError(message(f"{argument}.batch_sizes", expected, sizes.tolist()))
    if data.ndim == 0 or sizes[0] > len(data) or sizes.sum() != len(data):  # a sum of larger ones may overflow
        rows = sum(sizes.tolist())
        because = f"batch_sizes add up to {rows}"
        raise RuntimeError(message(f"{argument}.data", f"({rows}, ...)", data.shape, because=because))
    order, inverse = sequence.sorted_indices, sequence.unsorted_indices
    if order is None and inverse is None:
        return PackedSequence(data, sizes)
    order = None if order is None else _permutation(f"{argument}.sorted_indices", order, int(sizes[0]))
    inverse = None if inverse is None else _permutation(f"{argument}.unsorted_indices", inverse, int(sizes[0]))
    if order is None and inverse is not None:
        order = np.argsort(inverse)
    elif inverse is None and order is not None:
        inverse = np.argsort(order)
    elif order is not None and inverse is not None and (order[inverse] != np.arange(len(order))).any():
        raise ValueError(message(f"{argument}.unsorted_indices", "the inverse of sorted_indices", inverse.tolist()))
    return PackedSequence(data, sizes, order, inverse)


def pack_padded_sequence(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Pack a padded batch.

    Parameters
    ----------
    input : array
        (T, B, *), or (B, T, *) if `batch_first`.
    lengths : (B,) whole numbers
        The valid steps of each row, from 1 to T.
    batch_first : bool
        The layout of `input`.
    enforce_sorted : bool
        True: the rows must stand longest first. False: they are sorted here.

    Raises
    ------
    RuntimeError
        An empty input, lengths below 1, too few or too many lengths, or unsorted ones under `enforce_sorted`.
    ValueError
        Lengths beyond T.
    TypeError
        Lengths that are not whole numbers, or something that is no array.

    Examples
    --------
    >>> packed = pack_padded_sequence([[1, 2, 0], [3, 0, 0], [4, 5, 6]], [2, 1, 3], True, enforce_sorted=False)
    >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
    ([4, 1, 3, 5, 2, 6], [3, 2, 1], [2, 0, 1])
    """
    padded = _time_major("pack_padded_sequence input", input, batch_first)
    steps, batch = padded.shape[:2]
    if steps == 0 or batch == 0:
        because = "Cannot pack empty arrays"
        raise RuntimeError(message("pack_padded_sequence input", "T > 0 and B > 0", padded.shape[:2], because=because))
    lengths = check_lengths("pack_padded_sequence lengths", lengths, batch, steps)
    order = None if enforce_sorted else longest_first(lengths)
    if order is None and (lengths[1:] > lengths[:-1]).any():
        raise RuntimeError(
            message(
                "pack_padded_sequence lengths",
                "an array sorted in decreasing order when `enforce_sorted` is True",
                lengths.tolist(),
                hint="Pass enforce_sorted=False to have the rows sorted",
            )
        )
    sizes = batch_sizes_of(lengths, int(lengths.max()))
    step, row = _positions(sizes)
    if order is None:
        return PackedSequence(padded[step, row], sizes)
    return PackedSequence(padded[step, order[row]], sizes, order, np.argsort(order))


def pad_packed_sequence(
    sequence: PackedLike, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Array, Array]:
    """Pad a packed batch; the inverse of `pack_padded_sequence`.

    Parameters
    ----------
    sequence : PackedSequence
        Ours, torch's, or anything with the same members.
    batch_first : bool
        The layout of the result.
    padding_value : float
        What stands past each length.
    total_length : int, optional
        T of the result; None: the longest length.

    Returns
    -------
    padded : array
        (T, B, *), or (B, T, *) if `batch_first`; the rows in the order they had before they were packed.
    lengths : array
        (B,) int64.

    Raises
    ------
    ValueError
        A `total_length` below the longest length, indices that are no permutation of the rows, or a `padding_value`
        that the dtype does not have.
    RuntimeError
        Batch sizes that are not those of a packed sequence.
    TypeError
        Something that is no packed sequence, or no number.

    Examples
    --------
    >>> packed = pack_padded_sequence([[1, 2, 0], [3, 0, 0]], [2, 1], batch_first=True)
    >>> padded, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=-1)
    >>> padded.tolist(), lengths.tolist()
    ([[1, 2], [3, -1]], [2, 1])
    """
    data, sizes, order, inverse = check_packed("pad_packed_sequence sequence", sequence)
    steps, batch = len(sizes), int(sizes[0])
    if total_length is not None:
        total_length = as_whole_number("pad_packed_sequence total_length", total_length)
        if total_length < steps:
            expected = "at least the length of the longest sequence"
            raise ValueError(message("pad_packed_sequence total_length", f"{expected}, {steps}", total_length))
        steps = total_length
    padding = _padding("pad_packed_sequence padding_value", padding_value, data.dtype)
    padded = np.full(((batch, steps) if batch_first else (steps, batch)) + data.shape[1:], padding, data.dtype)
    step, row = _positions(sizes)
    lengths = np.bincount(row, minlength=batch)
    if order is not None:
        row, lengths = order[row], lengths[inverse]
    (padded.swapaxes(0, 1) if batch_first else padded)[step, row] = data
    return padded, lengths


def pack_sequence(sequences: Iterable[Any], enforce_sorted: bool = True) -> PackedSequence:
    """Pack sequences of shape (L, *), each with its own length L; raises as `pad_sequence` and `pack_padded_sequence`.

    >>> pack_sequence([[1, 2, 3], [4, 5], [6]]).data.tolist()
    [1, 4, 6, 2, 5, 3]
    """
    arrays = _sequences("pack_sequence sequences", sequences)
    return pack_padded_sequence(pad_sequence(arrays), [len(array) for array in arrays], enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedLike) -> list[Array]:
    """Return the sequences, each (L, *), of a packed batch; the inverse of `pack_sequence`.

    >>> [sequence.tolist() for sequence in unpack_sequence(pack_sequence([[1, 2, 3], [4, 5], [6]]))]
    [[1, 2, 3], [4, 5], [6]]
    """
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)


def pad_sequence(
    sequences: Iterable[Any],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: Literal["left", "right"] = "right",
) -> Array:
    """Stack sequences of different lengths into one padded batch.

    Parameters
    ----------
    sequences : iterable of arrays
        (L, *), each with its own length L; of one dtype.
    batch_first : bool
        The layout of the result.
    padding_value : float
        What fills each sequence up to the longest length.
    padding_side : {"right", "left"}
        Where it stands: after or before the sequence.

    Returns
    -------
    padded : array
        (T, B, *), or (B, T, *) if `batch_first`, where T is the longest length.

    Raises
    ------
    RuntimeError
        No sequences, one without a time axis, different trailing axes, or an unknown `padding_side`.
    ValueError
        Different dtypes, or a `padding_value` that theirs does not have.

    Examples
    --------
    >>> pad_sequence([[1, 2, 3], [4]], batch_first=True, padding_side="left").tolist()
    [[1, 2, 3], [0, 0, 4]]
    """
    arrays = _sequences("pad_sequence sequences", sequences)
    if padding_side not in ("left", "right"):
        raise RuntimeError(message("pad_sequence padding_side", "one of left or right", padding_side))
    lengths = np.array([len(array) for array in arrays])
    batch, steps, first = len(arrays), int(lengths.max()), arrays[0]
    padding = _padding("pad_sequence padding_value", padding_value, first.dtype)
    padded = np.full(((batch, steps) if batch_first else (steps, batch)) + first.shape[1:], padding, first.dtype)
    step = np.arange(steps)
    valid = step < lengths[:, None] if padding_side == "right" else step >= steps - lengths[:, None]
    (padded if batch_first else padded.swapaxes(0, 1))[valid] = np.concatenate(arrays)
    return padded


def unpad_sequence(padded_sequences: Any, lengths: Any, batch_first: bool = False) -> list[Array]:
    """Return the sequences, each (L, *), of a padded batch; the inverse of `pad_sequence`.

    padded_sequences is (T, B, *), or (B, T, *) if `batch_first`; lengths is (B,), whole numbers from 0 to T.

    >>> [sequence.tolist() for sequence in unpad_sequence([[1, 2, 3], [4, 0, 0]], [3, 1], batch_first=True)]
    [[1, 2, 3], [4]]
    """
    padded = _time_major("unpad_sequence padded_sequences", padded_sequences, batch_first)
    steps, batch = padded.shape[:2]
    lengths = check_lengths("unpad_sequence lengths", lengths, batch, steps, minimum=0)
    return [padded[:length, row].copy() for row, length in enumerate(lengths)]


def _time_major(argument: str, value: Any, batch_first: bool) -> Array:
    """Return `value` as an array whose first axes are (T, B)."""
    array = as_array(argument, value)
    if array.ndim < 2:
        letters = "(B, T, ...)" if batch_first else "(T, B, ...)"
        raise RuntimeError(message(argument, letters, array.shape))
    return array.swapaxes(0, 1) if batch_first else array


def _integers(argument: str, value: Any) -> Array:
    """Return `value` as an int64 array; no fraction is dropped on the way."""
    array = as_array(argument, value)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(message(argument, "whole numbers", array.dtype))
    return array.astype(np.int64)


def _padding(argument: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """Return `value` as one number of `dtype`: rounded to a floating one, exact in any other."""
    given = as_array(argument, value)
    with np.errstate(all="ignore"):
        number = given.astype(dtype) if given.dtype.kind != "c" or dtype.kind == "c" else None
    if given.ndim or number is None or (dtype.kind in "iub" and number != given):
        raise ValueError(message(argument, f"a number of dtype {dtype}", value))
    return number


def _permutation(argument: str, value: Any, batch: int) -> Array:
    indices = _integers(argument, value)
    if indices.shape != (batch,) or (np.sort(indices) != np.arange(batch)).any():
        raise ValueError(message(argument, f"a permutation of 0 ... {batch - 1}", indices.tolist()))
    return indices


def _positions(sizes: Array) -> tuple[Array, Array]:
    """Return (step, packed row) of each of the N rows of packed data, both (N,) int64."""
    step = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum(sizes) - sizes
    return step, np.arange(len(step)) - first[step]


def _sequences(argument: str, sequences: Iterable[Any]) -> Sequence[Array]:
    """Return the sequences as arrays of one dtype and one shape behind their first axis."""
    if not isinstance(sequences, Iterable):
        raise RuntimeError(message(argument, "an iterable of sequences", type(sequences).__name__))
    arrays = [as_array(f"{argument}[{index}]", sequence) for index, sequence in enumerate(sequences)]
    if not arrays:
        raise RuntimeError(message(argument, "at least one sequence", "an empty list of sequences"))
    for index, array in enumerate(arrays):
        if array.ndim == 0 or array.shape[1:] != arrays[0].shape[1:]:
            letters = ["L", *map(str, arrays[0].shape[1:])] if arrays[0].ndim else ["L", "..."]
            raise RuntimeError(message(f"{argument}[{index}]", f"({', '.join(letters)})", array.shape))
        if array.dtype != arrays[0].dtype:
            raise ValueError(message(f"{argument}[{index}]", f"dtype {arrays[0].dtype}", array.dtype))
    return arrays
