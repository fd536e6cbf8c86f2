"""Packed sequences hold what torch.nn.utils.rnn puts into them, and refuse what it misreads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nblstm
from nblstm import PackedSequence

BATCHES = [[5], [3, 3, 3], [4, 2, 1], [1, 5, 2, 5, 3], [2, 1, 2, 1, 2, 1, 7]]


def _padded(lengths: list[int], trailing: tuple[int, ...], batch_first: bool, extra: int = 0) -> Any:
    steps, batch = max(lengths) + extra, len(lengths)
    x = np.random.default_rng(1).standard_normal((steps, batch, *trailing), np.float32)
    return x.swapaxes(0, 1).copy() if batch_first else x


def _assert_equal(ours: Any, theirs: Any) -> None:
    for name in PackedSequence._fields:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other.numpy(), err_msg=name)
            assert str(one.dtype) in str(other.dtype)


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_torch(lengths: list[int], trailing: tuple[int, ...], batch_first: bool, torch: Any) -> None:
    theirs = torch.nn.utils.rnn
    for extra in (0, 2):
        x = _padded(lengths, trailing, batch_first, extra)
        packed = nblstm.pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        expected = theirs.pack_padded_sequence(
            torch.tensor(x), torch.tensor(lengths), batch_first, enforce_sorted=False
        )
        _assert_equal(packed, expected)
        for options in ({}, {"batch_first": batch_first, "padding_value": -7.0, "total_length": max(lengths) + 3}):
            padded, found = nblstm.pad_packed_sequence(packed, **options)
            expected_padded, expected_lengths = theirs.pad_packed_sequence(expected, **options)
            np.testing.assert_array_equal(padded, expected_padded.numpy())
            np.testing.assert_array_equal(found, expected_lengths.numpy())
            assert padded.dtype == np.float32
            assert found.dtype == np.int64
        for one, other in zip(nblstm.unpack_sequence(expected), theirs.unpack_sequence(expected), strict=True):
            np.testing.assert_array_equal(one, other.numpy())
    if lengths == sorted(lengths, reverse=True):
        expected = theirs.pack_padded_sequence(torch.tensor(x), torch.tensor(lengths), batch_first)
        _assert_equal(nblstm.pack_padded_sequence(x, lengths, batch_first), expected)


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_torch_on_lists_of_sequences(
    lengths: list[int], trailing: tuple[int, ...], batch_first: bool, torch: Any
) -> None:
    theirs, random = torch.nn.utils.rnn, np.random.default_rng(1)
    sequences = [random.integers(-9, 9, (length, *trailing)) for length in lengths]
    tensors = [torch.tensor(sequence) for sequence in sequences]
    _assert_equal(nblstm.pack_sequence(sequences, False), theirs.pack_sequence(tensors, False))
    for options in ({}, {"padding_value": 3.0}, {"padding_side": "left"}):
        padded = nblstm.pad_sequence(sequences, batch_first, **options)
        expected = theirs.pad_sequence(tensors, batch_first, **options)
        np.testing.assert_array_equal(padded, expected.numpy())
        assert padded.dtype == np.int64
    padded = nblstm.pad_sequence(sequences, batch_first)
    for found, sequence in zip(nblstm.unpad_sequence(padded, lengths, batch_first), sequences, strict=True):
        np.testing.assert_array_equal(found, sequence)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), features=st.integers(0, 3))
def test_round_trips(lengths: list[int], features: int) -> None:
    sequences = [np.full((length, features), row) for row, length in enumerate(lengths)]
    packed = nblstm.pack_sequence(iter(sequences), enforce_sorted=False)
    assert packed.data.shape == (sum(lengths), features)
    for found, sequence in zip(nblstm.unpack_sequence(packed), sequences, strict=True):
        np.testing.assert_array_equal(found, sequence)
    padded, found_lengths = nblstm.pad_packed_sequence(packed)
    assert found_lengths.tolist() == lengths
    np.testing.assert_array_equal(padded, nblstm.pad_sequence(sequences))


def test_results_own_their_memory() -> None:
    x = np.zeros((3, 2, 1), np.float32)
    packed = nblstm.pack_padded_sequence(x, [3, 2])
    padded, _ = nblstm.pad_packed_sequence(packed)
    for array in (packed.data, padded, *nblstm.unpad_sequence(x, [3, 2]), nblstm.pad_sequence([x])):
        assert not np.shares_memory(array, x)
        assert array.flags.writeable
    assert nblstm.pad_packed_sequence(packed, batch_first=True)[0].flags.c_contiguous


def test_any_padding_value_that_the_dtype_has() -> None:
    for dtype, values in (("int8", (-128, 127.0, True)), ("float32", (np.nan, 0.1, 1e300)), ("bool", (0.0, True))):
        for value in values:
            padded = nblstm.pad_sequence([np.ones(2, dtype), np.ones(1, dtype)], padding_value=value)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(padded[1, 1], np.array(value).astype(dtype))


def test_sequences_without_steps() -> None:
    assert nblstm.pad_sequence([np.zeros((0, 2)), np.zeros((0, 2))]).shape == (0, 2, 2)
    assert [len(found) for found in nblstm.unpad_sequence(np.zeros((3, 2, 4)), [0, 2])] == [0, 2]


def test_permutation_given_one_way() -> None:
    x = np.arange(6.0).reshape(3, 2)
    both = nblstm.pack_padded_sequence(x, [1, 3], enforce_sorted=False)
    for one in (both._replace(sorted_indices=None), both._replace(unsorted_indices=None)):
        for found, expected in zip(nblstm.pad_packed_sequence(one), nblstm.pad_packed_sequence(both), strict=True):
            np.testing.assert_array_equal(found, expected)


X = np.zeros((4, 2, 3), np.float32)
INTEGERS = nblstm.pack_sequence([np.ones(2, np.int8)])
GOOD = nblstm.pack_padded_sequence(X, [2, 4], enforce_sorted=False)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: nblstm.pack_padded_sequence(X, [5, 2]),
            ValueError,
            "at most 4 because the input has T=4 steps, got 5",
        ),
        (lambda: nblstm.pack_padded_sequence(X, [4, 0]), RuntimeError, "every length to be greater than 0, got 0"),
        (lambda: nblstm.pack_padded_sequence(X, [4, -1]), RuntimeError, "every length to be greater than 0, got -1"),
        (lambda: nblstm.pack_padded_sequence(X, [2.5, 1]), TypeError, "expected whole numbers, got float64"),
        (lambda: nblstm.pack_padded_sequence(X, [2.0, 1.0]), TypeError, "expected whole numbers, got float64"),
        (lambda: nblstm.pack_padded_sequence(X, [True, True]), TypeError, "expected whole numbers, got bool"),
        (lambda: nblstm.pack_padded_sequence(X, [[2, 1]]), RuntimeError, r"1D array of B lengths, got 2D of shape"),
        (lambda: nblstm.pack_padded_sequence(X, 2), RuntimeError, r"1D array of B lengths, got 0D of shape"),
        (lambda: nblstm.pack_padded_sequence(X, [3, 2, 1]), RuntimeError, "2 lengths because the input has B=2 rows"),
        (lambda: nblstm.pack_padded_sequence(X, "42"), TypeError, "expected an array of numbers"),
        (lambda: nblstm.pack_padded_sequence(X, None), TypeError, "expected an array of numbers, got NoneType"),
        (lambda: nblstm.pack_padded_sequence(X, [2**70, 1]), TypeError, "expected an array of numbers"),
        (
            lambda: nblstm.pack_padded_sequence(X, [1, 2]),
            RuntimeError,
            "sorted in decreasing order when `enforce_sorted`",
        ),
        (lambda: nblstm.pack_padded_sequence(X[:0], [1, 1]), RuntimeError, "Cannot pack empty"),
        (lambda: nblstm.pack_padded_sequence(X[:, :0], []), RuntimeError, "Cannot pack empty"),
        (lambda: nblstm.pack_padded_sequence(np.zeros(4), [2]), RuntimeError, r"expected \(T, B, ...\), got \(4,\)"),
        (lambda: nblstm.pack_padded_sequence(None, [2]), TypeError, "got NoneType"),
        (lambda: nblstm.pad_packed_sequence(GOOD, total_length=3), ValueError, "longest sequence, 4, got 3"),
        (lambda: nblstm.pad_packed_sequence(GOOD, total_length="5"), TypeError, "length: expected a whole number"),
        (lambda: nblstm.pad_packed_sequence(GOOD, total_length=4.5), TypeError, "length: expected a whole number"),
        (lambda: nblstm.pad_packed_sequence(GOOD, total_length=True), TypeError, "length: expected a whole number"),
        (lambda: nblstm.pad_packed_sequence(INTEGERS, padding_value=np.nan), ValueError, "of dtype int8, got nan"),
        (lambda: nblstm.pad_packed_sequence(INTEGERS, padding_value=0.5), ValueError, "of dtype int8, got 0.5"),
        (lambda: nblstm.pad_packed_sequence(INTEGERS, padding_value=300), ValueError, "of dtype int8, got 300"),
        (lambda: nblstm.pad_packed_sequence(GOOD, padding_value=1j), ValueError, "of dtype float32, got 1j"),
        (lambda: nblstm.pad_packed_sequence(GOOD, padding_value=[1, 2]), ValueError, r"of dtype float32, got \[1, 2\]"),
        (lambda: nblstm.pad_packed_sequence(GOOD, padding_value="0"), TypeError, "padding_value: expected an array of"),
        (lambda: nblstm.pad_sequence([[1]], padding_value=0.5), ValueError, "of dtype int64, got 0.5"),
        (lambda: nblstm.pad_packed_sequence(X), TypeError, "expected a PackedSequence, got ndarray"),
        (lambda: nblstm.unpack_sequence(None), TypeError, "expected a PackedSequence, got NoneType"),
        (lambda: nblstm.pad_sequence([]), RuntimeError, "got an empty list of sequences"),
        (lambda: nblstm.pack_sequence([]), RuntimeError, "got an empty list of sequences"),
        (lambda: nblstm.pad_sequence(3), RuntimeError, "expected an iterable of sequences, got int"),
        (lambda: nblstm.pad_sequence([X, 3.0]), RuntimeError, r"sequences\[1\]: expected \(L, 2, 3\), got \(\)"),
        (lambda: nblstm.pad_sequence([3.0]), RuntimeError, r"sequences\[0\]: expected \(L, ...\), got \(\)"),
        (lambda: nblstm.pad_sequence([X, X[:, :, :1]]), RuntimeError, r"expected \(L, 2, 3\), got \(4, 2, 1\)"),
        (lambda: nblstm.pad_sequence([X, X.astype(int)]), ValueError, r"expected dtype float32, got int64"),
        (lambda: nblstm.pad_sequence([X, "x"]), TypeError, r"sequences\[1\]: expected an array of numbers"),
        (lambda: nblstm.pad_sequence([X], padding_side="top"), RuntimeError, "one of left or right, got top"),
        (lambda: nblstm.pack_sequence([X[:1], X]), RuntimeError, "sorted in decreasing order"),
        (lambda: nblstm.pack_sequence([X, X[:0]]), RuntimeError, "greater than 0, got 0"),
        (lambda: nblstm.unpad_sequence(X, [5, 1]), ValueError, "at most 4"),
        (lambda: nblstm.unpad_sequence(X, [-1, 1]), RuntimeError, "every length to be 0 or more, got -1"),
        (lambda: nblstm.unpad_sequence(X, [1]), RuntimeError, "expected 2 lengths"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"batch_sizes": [2, 2, 2, 1]}, RuntimeError, r"data: expected \(7, ...\) because batch_sizes add up to 7"),
        (
            {"batch_sizes": [2**63 - 1, 2**63 - 1, 8]},
            RuntimeError,
            r"data: expected \(18446744073709551622, ...\) because .* add up to 18446744073709551622",
        ),
        ({"batch_sizes": [1, 2, 2, 1]}, RuntimeError, "never rising"),
        ({"batch_sizes": [2, 2, 2, 0]}, RuntimeError, "positive"),
        ({"batch_sizes": [[2, 2, 1, 1]]}, RuntimeError, "1D"),
        ({"batch_sizes": []}, RuntimeError, "at least one step"),
        ({"batch_sizes": [2.0, 2.0, 1.0, 1.0]}, TypeError, "whole numbers"),
        ({"batch_sizes": None}, TypeError, "array of numbers"),
        ({"data": np.zeros(())}, RuntimeError, r"expected \(6, ...\)"),
        ({"data": "data"}, TypeError, "array of numbers"),
        ({"sorted_indices": [0, 0]}, ValueError, "sorted_indices: expected a permutation of 0 ... 1"),
        ({"sorted_indices": [1, 2]}, ValueError, "sorted_indices: expected a permutation of 0 ... 1"),
        ({"sorted_indices": [1]}, ValueError, "sorted_indices: expected a permutation of 0 ... 1"),
        ({"unsorted_indices": [-1, 0]}, ValueError, "unsorted_indices: expected a permutation of 0 ... 1"),
        ({"sorted_indices": [0, 1]}, ValueError, "unsorted_indices: expected the inverse of sorted_indices"),
    ],
)
def test_bad_packed_sequences(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    bad = SimpleNamespace(**{**GOOD._asdict(), **fields})
    layer = nblstm.LSTM(3, 4)
    for call in (nblstm.pad_packed_sequence, nblstm.unpack_sequence, layer):
        with pytest.raises(error, match=words):
            call(bad)


def test_a_packed_sequence_changes_its_dtype_as_torchs_does() -> None:
    packed = nblstm.pack_sequence([np.array([[1.5], [2.5]], np.float32), np.array([[3.5]], np.float32)])
    double = packed.double()
    assert double.data.dtype == np.float64 and np.array_equal(double.data, packed.data)
    assert packed.float() is packed and double.to(np.float32).data.dtype == np.float32
    assert np.array_equal(double.batch_sizes, packed.batch_sizes)
