"""Every kind of bad input: the stated exception and wording, torch's family, and nothing touched.

Each entry is a call on (module, zeros), where module is nblstm or torch.nn and zeros makes an array or a tensor of it:
what torch refuses must be refused here with the same family of exceptions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm import LSTM

FEATURES, UNITS = 3, 4


def _layer(nn: Any, **arguments: Any) -> Any:
    return nn.LSTM(FEATURES, UNITS, **arguments)


def _cell(nn: Any) -> Any:
    return nn.LSTMCell(FEATURES, UNITS)


# (call, exception, words, whether torch refuses it too). Where torch raises AttributeError, IndexError or nothing at
# all, or only its other family, the last entry is False.
CONSTRUCTORS = [
    (lambda nn, z: nn.LSTM(0, 4), ValueError, "LSTM: input_size must be greater than zero, got 0", True),
    (lambda nn, z: nn.LSTM(-3, 4), ValueError, "input_size must be greater than zero, got -3", True),
    (lambda nn, z: nn.LSTM(3, 0), ValueError, "hidden_size must be greater than zero, got 0", True),
    (lambda nn, z: nn.LSTM(3, 4, 0), ValueError, "num_layers must be greater than zero, got 0", True),
    (lambda nn, z: nn.LSTM(3.0, 4), TypeError, "input_size should be of type int, got: float", True),
    (lambda nn, z: nn.LSTM("3", 4), TypeError, "input_size should be of type int, got: str", True),
    (lambda nn, z: nn.LSTM(3, 4.0), TypeError, "hidden_size should be of type int, got: float", True),
    (lambda nn, z: nn.LSTM(3, None), TypeError, "hidden_size should be of type int, got: NoneType", True),
    (lambda nn, z: nn.LSTM(3, 4, 1.5), TypeError, "num_layers should be of type int, got: float", True),
    (lambda nn, z: nn.LSTM(True, 4), TypeError, "input_size should be of type int, got: bool", False),
    (lambda nn, z: nn.LSTM(3, 4, bias=1), TypeError, "bias should be of type bool, got: int", True),
    (lambda nn, z: nn.LSTM(3, 4, batch_first=None), TypeError, "batch_first should be of type bool", True),
    (lambda nn, z: nn.LSTM(3, 4, bidirectional=1), TypeError, "bidirectional should be of type bool", False),
    (lambda nn, z: nn.LSTM(3, 4, dropout=1.5), ValueError, r"dropout should be a number in range \[0, 1\]", True),
    (lambda nn, z: nn.LSTM(3, 4, dropout=-0.1), ValueError, r"dropout should be a number in range \[0, 1\]", True),
    (lambda nn, z: nn.LSTM(3, 4, dropout=float("nan")), ValueError, r"in range \[0, 1\].*, got nan", True),
    (lambda nn, z: nn.LSTM(3, 4, dropout=True), ValueError, r"in range \[0, 1\].*, got True", True),
    (lambda nn, z: nn.LSTM(3, 4, dropout="much"), ValueError, r"in range \[0, 1\].*, got 'much'", True),
    (lambda nn, z: nn.LSTM(3, 4, proj_size=-1), ValueError, "proj_size should be a positive integer or zero", True),
    (lambda nn, z: nn.LSTM(3, 4, proj_size=4), ValueError, "proj_size has to be smaller than hidden_size", True),
    (lambda nn, z: nn.LSTM(3, 4, proj_size=1.0), TypeError, "proj_size should be of type int, got: float", True),
    (lambda nn, z: nn.LSTM(3), TypeError, "hidden_size", True),
    (lambda nn, z: nn.LSTM(3, 4, hidden=5), TypeError, "hidden", True),
    (lambda nn, z: nn.LSTM(3, 4, dtype=np.float16), TypeError, "LSTM dtype: expected float32 or float64", False),
    (lambda nn, z: nn.LSTM(3, 4, dtype=int), TypeError, "LSTM dtype: expected float32 or float64", False),
    (lambda nn, z: nn.LSTM(3, 4, dtype=None), TypeError, "LSTM dtype: expected float32 or float64, got None", False),
    (lambda nn, z: nn.LSTM(3, 4, seed=-1), ValueError, "LSTM seed: expected 0 or more, got -1", False),
    (lambda nn, z: nn.LSTM(3, 4, seed=1.5), TypeError, "LSTM seed: expected a whole number or None", False),
]

INPUTS = [
    (
        lambda nn, z: _layer(nn)(z(3)),
        ValueError,
        r"^LSTM: Expected input to be 2D or 3D, got 1D instead: shape \(3,\) is neither \(T, B, 3\) nor, unbatched, "
        r"\(T, 3\)$",
        True,
    ),
    (lambda nn, z: _layer(nn)(z(1, 2, 3, 3)), ValueError, "Expected input to be 2D or 3D, got 4D instead", True),
    (lambda nn, z: _layer(nn)(z()), ValueError, "Expected input to be 2D or 3D, got 0D instead", True),
    (
        lambda nn, z: _layer(nn)(z(5, 2, 8)),
        RuntimeError,
        r"^LSTM input: expected \(T, B, 3\) because input_size=3, got \(5, 2, 8\)$",
        True,
    ),
    (
        lambda nn, z: _layer(nn, batch_first=True)(z(5, 2, 8)),
        RuntimeError,
        r"^LSTM input: expected \(B, T, 3\) because input_size=3, got \(5, 2, 8\)$",
        True,
    ),
    (lambda nn, z: _layer(nn)(z(5, 8)), RuntimeError, r"expected \(T, 3\) because input_size=3, got \(5, 8\)", True),
    (lambda nn, z: _layer(nn)(z(5, 2, 0)), RuntimeError, r"expected \(T, B, 3\)", True),
    (lambda nn, z: _layer(nn)(z(0, 2, 3)), RuntimeError, "Expected sequence length to be larger than 0", True),
    (lambda nn, z: _layer(nn)(z(0, 3)), RuntimeError, "Expected sequence length to be larger than 0", True),
    (
        lambda nn, z: _layer(nn, batch_first=True)(z(2, 0, 3)),
        RuntimeError,
        "Expected sequence length to be larger than 0",
        True,
    ),
    (lambda nn, z: _layer(nn)(z(5, 2, 3, "float64")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda nn, z: _layer(nn)(z(5, 2, 3, "int32")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda nn, z: _layer(nn)(z(5, 2, 3, "float16")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda nn, z: _layer(nn)(z(5, 2, 3, "bool")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda nn, z: _layer(nn)(z(5, 2, 3, "complex64")), ValueError, "dtype .* does not match weight dtype", True),
    (
        lambda nn, z: _layer(nn)(np.ma.masked_invalid(np.full((5, 2, 3), np.nan, "f4"))),
        TypeError,
        r"LSTM input: expected an array without masked elements.*Fill them: array.filled",
        False,
    ),
    (lambda nn, z: _layer(nn)(None), TypeError, "LSTM input: expected an array of numbers, got NoneType", False),
    (lambda nn, z: _layer(nn)("text"), TypeError, "LSTM input: expected an array of numbers, got <U4", False),
    (lambda nn, z: _layer(nn)([[1.0, 2.0], [1.0]]), TypeError, "LSTM input: expected an array, got list", False),
    (lambda nn, z: _layer(nn)(object()), TypeError, "expected an array of numbers, got object", False),
    (lambda nn, z: _layer(nn)([[1.0, 2.0, 3.0]]), ValueError, "dtype float64, which does not match", False),
]


def _states(z: Any, *shapes: Any) -> Any:
    return tuple(z(*shape) for shape in shapes)


STATES = [
    (
        lambda nn, z: _layer(nn)(z(5, 2, 3), _states(z, (1, 3, 4), (1, 2, 4))),
        RuntimeError,
        r"Expected hidden\[0\] size \(1, 2, 4\), got \[1, 3, 4\]",
        True,
    ),
    (
        lambda nn, z: _layer(nn)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 3, 4))),
        RuntimeError,
        r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 3, 4\]",
        True,
    ),
    (
        lambda nn, z: _layer(nn, bidirectional=True)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        RuntimeError,
        r"Expected hidden\[0\] size \(2, 2, 4\), got \[1, 2, 4\]",
        True,
    ),
    (
        lambda nn, z: _layer(nn, proj_size=2)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        RuntimeError,
        r"Expected hidden\[0\] size \(1, 2, 2\), got \[1, 2, 4\]",
        True,
    ),
    (
        lambda nn, z: _layer(nn)(z(5, 2, 3), _states(z, (1, 4), (1, 4))),
        RuntimeError,
        r"For batched 3-D input, hx and cx should also be 3-D but got \(2-D, 2-D\)",
        True,
    ),
    (
        lambda nn, z: _layer(nn)(z(5, 3), _states(z, (1, 1, 4), (1, 1, 4))),
        RuntimeError,
        r"For unbatched 2-D input, hx and cx should also be 2-D but got \(3-D, 3-D\)",
        True,
    ),
    (
        lambda nn, z: _layer(nn)(z(5, 2, 3), _states(z, *[(1, 2, 4)] * 3)),
        RuntimeError,
        "LSTM hx: expected 2 arrays, as LSTM has so many states, got 3",
        True,
    ),
    (lambda nn, z: _layer(nn)(z(5, 2, 3), _states(z, (1, 2, 4))), RuntimeError, "expected 2 arrays.*got 1", False),
    (lambda nn, z: _layer(nn)(z(5, 2, 3), z(1, 2, 4)), TypeError, "LSTM hx: expected a tuple of 2 arrays, got", False),
    (lambda nn, z: _layer(nn)(z(5, 2, 3), (None, z(1, 2, 4))), TypeError, r"LSTM hx\[0\]: expected an array", False),
    (
        lambda nn, z: _layer(nn)(z(5, 2, 3), (z(1, 2, 4), z(1, 2, 4, "float64"))),
        ValueError,
        r"LSTM hx\[1\]: expected dtype float32, got dtype float64",
        False,
    ),
    (lambda nn, z: _layer(nn)(z(5, 3), _states(z, (4,), (4,))), RuntimeError, "For unbatched 2-D input", True),
]

# torch's cells check less: a constructor fails where the parameters are made, or not at all; a call where the kernel
# fails. The last entry is False where that gives another family, which is named beside it.
CELLS = [
    (lambda nn, z: nn.LSTMCell(-3, 4), ValueError, "LSTMCell input_size: expected 0 or more, got -3", False),  # Runtime
    (lambda nn, z: nn.LSTMCell(3, -1), ValueError, "hidden_size must be greater than zero, got -1", False),  # Runtime
    (lambda nn, z: nn.LSTMCell(3, 0), ValueError, "hidden_size must be greater than zero, got 0", False),  # accepted
    (lambda nn, z: nn.LSTMCell(3.0, 4), TypeError, "input_size should be of type int, got: float", True),
    (lambda nn, z: nn.LSTMCell(3, None), TypeError, "hidden_size should be of type int, got: NoneType", True),
    (lambda nn, z: nn.LSTMCell(True, 4), TypeError, "input_size should be of type int, got: bool", False),  # accepted
    (lambda nn, z: nn.LSTMCell(3, 4, 1), TypeError, "bias should be of type bool, got: int", False),  # accepted
    (lambda nn, z: nn.LSTMCell(3), TypeError, "hidden_size", True),
    (lambda nn, z: _cell(nn)(z(2, 1, 3)), ValueError, "Cell: Expected input to be 1D or 2D, got 3D instead", True),
    (
        lambda nn, z: _cell(nn)(z()),
        ValueError,
        r"^LSTMCell: Expected input to be 1D or 2D, got 0D instead: shape \(\) is neither \(B, 3\) nor, unbatched, "
        r"\(3,\)$",
        True,
    ),
    (lambda nn, z: _cell(nn)(z(2, 5)), RuntimeError, r"expected \(B, 3\) because input_size=3, got \(2, 5\)", True),
    (lambda nn, z: _cell(nn)(z(5)), RuntimeError, r"expected \(3,\) because input_size=3, got \(5,\)", True),
    (lambda nn, z: _cell(nn)(z(2, 3, "float64")), ValueError, "does not match weight dtype", False),  # Runtime
    (
        lambda nn, z: _cell(nn)(z(2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        ValueError,
        r"^LSTMCell: Expected hx\[0\] to be 1D or 2D, got 3D instead: shape \(1, 2, 4\) is neither",
        True,
    ),
    (lambda nn, z: _cell(nn)(z(2, 3), _states(z, (2, 4), (1, 2, 4))), ValueError, r"hx\[1\] to be 1D or 2D", True),
    (lambda nn, z: _cell(nn)(z(3), _states(z, (), ())), ValueError, r"hx\[0\] to be 1D or 2D, got 0D", True),
    (lambda nn, z: _cell(nn)(z(2, 3), _states(z, (4,), (4,))), RuntimeError, "For batched 2-D", False),  # accepted
    (lambda nn, z: _cell(nn)(z(3), _states(z, (1, 4), (1, 4))), RuntimeError, "For unbatched 1-D input", True),
    (lambda nn, z: _cell(nn)(z(2, 3), _states(z, (2, 5), (2, 5))), RuntimeError, r"hidden\[0\] size \(2, 4\)", True),
    (lambda nn, z: _cell(nn)(z(2, 3), _states(z, (3, 4), (3, 4))), RuntimeError, r"hidden\[0\] size \(2, 4\)", True),
    (lambda nn, z: _cell(nn)(z(2, 3), _states(z, (2, 4))), RuntimeError, "expected 2 arrays.*got 1", True),
    (lambda nn, z: _cell(nn)(z(2, 3), _states(z, *[(2, 4)] * 3)), RuntimeError, "expected 2 arrays.*got 3", True),
    (lambda nn, z: _cell(nn)(z(2, 3), z(2, 4)), TypeError, "LSTMCell hx: expected a tuple of 2 arrays", True),
]


@pytest.fixture
def ours() -> Any:
    def zeros(*shape: Any) -> Any:
        dtype = shape[-1] if shape and isinstance(shape[-1], str) else "float32"
        return np.zeros([size for size in shape if size != dtype], dtype)

    return nblstm, zeros


@pytest.fixture
def theirs(torch: Any) -> Any:
    def zeros(*shape: Any) -> Any:
        dtype = shape[-1] if shape and isinstance(shape[-1], str) else "float32"
        return torch.zeros([size for size in shape if size != dtype], dtype=getattr(torch, dtype))

    return torch.nn, zeros


ALL = CONSTRUCTORS + INPUTS + STATES + CELLS
IN_TORCH = [(call, error) for call, error, _, in_torch in ALL if in_torch]


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize(("call", "error", "words"), [entry[:3] for entry in ALL])
def test_stated_exception(call: Any, error: type[Exception], words: str, ours: Any) -> None:
    with pytest.raises(error, match=words):
        call(*ours)


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize(("call", "error"), IN_TORCH)
def test_torch_raises_the_same_family(call: Any, error: type[Exception], theirs: Any) -> None:
    with pytest.raises(error):
        call(*theirs)


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
