"""Bad arguments of a call beside input and states: the stated exception and wording, and nothing touched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm import GRU, LSTM

FEATURES, UNITS = 3, 4
X = np.zeros((5, 2, FEATURES), np.float32)
HX = np.zeros((1, 2, UNITS), np.float32), np.zeros((1, 2, UNITS), np.float32)


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([6, 2], ValueError, "^LSTM lengths: expected lengths of at most 5 because the input has T=5 steps, got 6$"),
        ([5, 0], RuntimeError, "expected every length to be greater than 0, got 0"),
        ([5, -2], RuntimeError, "expected every length to be greater than 0, got -2"),
        ([2.5, 2], TypeError, "expected whole numbers, got float64"),
        ([5, 2, 1], RuntimeError, "expected 2 lengths because the input has B=2 rows, got 3"),
        ([[5, 2]], RuntimeError, "expected a 1D array of B lengths"),
        (5, RuntimeError, "expected a 1D array of B lengths"),
        ("52", TypeError, "expected an array of numbers"),
        ([None, 2], TypeError, "expected an array of numbers"),
        (np.array([2**64 - 1, 1], np.uint64), RuntimeError, "greater than 0"),
        (np.array([np.nan, 1]), TypeError, "whole numbers"),
    ],
    ids=str,
)
def test_lengths(lengths: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LSTM(FEATURES, UNITS)(X, lengths=lengths)


def test_lengths_of_what_has_none() -> None:
    layer = LSTM(FEATURES, UNITS)
    with pytest.raises(ValueError, match="because the input is unbatched"):
        layer(X[:, 0], lengths=[5])
    with pytest.raises(ValueError, match="because the input is packed"):
        layer(nblstm.pack_padded_sequence(X, [5, 2]), lengths=[5, 2])


def overlapping(shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    return np.lib.stride_tricks.as_strided(np.zeros(100, np.float32), shape, strides)


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.zeros((5, 2, 3), np.float32), ValueError, r"^LSTM out: expected \(5, 2, 4\), got \(5, 2, 3\)$"),
        (np.zeros((2, 5, 4), np.float32), ValueError, r"expected \(5, 2, 4\), got \(2, 5, 4\)"),
        (np.zeros((5, 2, 4)), ValueError, "expected dtype float32, got float64"),
        (np.zeros((5, 2, 4), np.float32).tolist(), TypeError, "expected a NumPy array, got list"),
        (np.broadcast_to(np.float32(0), (5, 2, 4)), ValueError, "expected a writeable array, got a read-only one"),
        (True, TypeError, "expected a NumPy array, got bool"),
        (overlapping((5, 2, 4), (32, 0, 4)), ValueError, "elements that share no memory with one another"),
        (overlapping((5, 2, 4), (4, 16, 4)), ValueError, "elements that share no memory with one another"),
    ],
    ids=["features", "order", "dtype", "list", "read-only", "bool", "stride 0", "stride 4"],
)
def test_out(out: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LSTM(FEATURES, UNITS)(X, out=out)


def test_out_shares_no_memory_with_what_is_read() -> None:
    memory = np.zeros((5, 2, 8), np.float32)
    layer = LSTM(4, 4)
    with pytest.raises(ValueError, match="shares memory with the input or hx"):
        layer(memory[:, :, :4], out=memory[:, :, 2:6])
    state = memory[:1, :, :4]
    with pytest.raises(ValueError, match="shares memory with the input or hx"):
        layer(np.zeros((5, 2, 4), np.float32), (state.copy(), state), out=memory[:, :, :4])
    with pytest.raises(ValueError, match="shares memory with the input or hx"):
        GRU(4, 4)(np.zeros((5, 2, 4), np.float32), state, out=memory[:, :, :4])
    layer(memory[:, :, :4], out=memory[:, :, 4:])  # side by side is fine


def test_out_whose_overlap_is_hard_to_tell_is_refused_at_once() -> None:
    """Whether these share an element would take NumPy hours; the memory is never touched."""
    memory = np.zeros(192163377, np.float32)
    x = np.lib.stride_tricks.as_strided(memory, (1049, 1049, 1049), (4 * 36674, 4 * 61119, 4 * 85569))
    out = np.lib.stride_tricks.as_strided(memory[64023025:], (1049, 1049, 1), (4 * 12223, 4 * 12224, 4))
    with pytest.raises(ValueError, match="shares memory with the input or hx"):
        LSTM(1049, 1)(x, out=out)


def test_out_comes_back_as_it_was_given() -> None:
    class Named(np.ndarray):
        pass

    layer = LSTM(FEATURES, UNITS, seed=1)
    packed = nblstm.pack_padded_sequence(X, [5, 2])
    for given, shape in ((X, (5, 2, UNITS)), (X[:, 0], (5, UNITS)), (packed, (7, UNITS))):
        out = np.zeros(shape, np.float32).view(Named)
        output, expected = layer(given, out=out)[0], layer(given)[0]
        assert (output.data if given is packed else output) is out
        assert out.tobytes() == (expected.data if given is packed else expected).tobytes()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (1.5, TypeError, "LSTM dropout_call: expected a whole number, got float"),
        ("1", TypeError, "LSTM dropout_call: expected a whole number, got str"),
        (True, TypeError, "LSTM dropout_call: expected a whole number, got bool"),
        (-1, ValueError, r"LSTM dropout_call: expected 0 ... 2\*\*64 - 1, got -1"),
        (2**64, ValueError, r"LSTM dropout_call: expected 0 ... 2\*\*64 - 1"),
    ],
)
def test_dropout_call(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LSTM(FEATURES, UNITS, num_layers=2, dropout=0.5)(X, dropout_call=call)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nblstm.pack_padded_sequence(X[:, :, :2], [5, 2]), RuntimeError, r"\(7, 3\) because input_size=3"),
        (lambda: nblstm.pack_padded_sequence(X[:, :, 0], [5, 2]), RuntimeError, r"\(7, 3\) because input_size=3"),
        (lambda: nblstm.pack_padded_sequence(X.astype(float), [5, 2]), ValueError, "does not match weight dtype"),
        (lambda: SimpleNamespace(data=X, batch_sizes=[2]), TypeError, "expected a PackedSequence"),
    ],
)
def test_packed(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LSTM(FEATURES, UNITS)(make())


def test_packed_states() -> None:
    """What torch misreads, or lets fail somewhere inside."""
    packed = nblstm.pack_padded_sequence(X, [2, 5], enforce_sorted=False)
    wide = np.zeros((1, 3, UNITS), np.float32)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 4\), got \[1, 3, 4\]"):
        LSTM(FEATURES, UNITS)(packed, (wide, wide))
    with pytest.raises(RuntimeError, match="For batched 3-D input"):
        LSTM(FEATURES, UNITS)(packed, (wide[0], wide[0]))
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]"):
        GRU(FEATURES, UNITS)(packed, wide)


def test_torch_tensors_that_hold_no_plain_array(torch: Any) -> None:
    layer = LSTM(FEATURES, UNITS)
    with pytest.raises(TypeError, match=r"LSTM input: expected an array, got Tensor. Pass tensor.detach\(\)"):
        layer(torch.zeros(5, 2, FEATURES, requires_grad=True))
    with pytest.raises(TypeError, match="LSTM input: expected an array, got Tensor"):
        layer(torch.zeros(5, 2, FEATURES, device="meta"))
    with pytest.raises(TypeError, match=r"'weight_ih_l0'\]: expected an array, got Parameter. Pass tensor.detach\(\)"):
        layer.load_state_dict(dict(torch.nn.LSTM(FEATURES, UNITS).named_parameters()))


def test_failed_calls_change_nothing() -> None:
    """No output is written, no dropout number is drawn, before everything has been checked."""
    layer = LSTM(FEATURES, UNITS, num_layers=2, dropout=0.5, seed=1)
    expected = layer(X, dropout_call=0)
    out = np.full((5, 2, UNITS), 7, np.float32)
    for bad in ({"hx": HX}, {"lengths": [6, 1]}, {"dropout_call": -1}):
        with pytest.raises((ValueError, RuntimeError)):
            layer(X, out=out, **bad)
    assert (out == 7).all()
    assert layer(X)[0].tobytes() == expected[0].tobytes()
