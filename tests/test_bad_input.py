"""Every kind of bad input: the stated exception and wording, torch's family, and nothing touched.

Each entry is a call on (new, zeros), where new is the constructor of a layer of nblstm or torch.nn and zeros makes an
array or a tensor of it: what torch refuses must be refused here with the same family of exceptions. In the words NAME
is the name of the class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nblstm

# (call, exception, words, whether torch refuses it too). Where torch raises AttributeError, IndexError or nothing at
# all, or only its other family, the last entry is False.
CONSTRUCTORS = [
    (lambda new, z: new(0, 4), ValueError, "NAME: input_size must be greater than zero, got 0", True),
    (lambda new, z: new(-3, 4), ValueError, "input_size must be greater than zero, got -3", True),
    (lambda new, z: new(3, 0), ValueError, "hidden_size must be greater than zero, got 0", True),
    (lambda new, z: new(3, 4, 0), ValueError, "num_layers must be greater than zero, got 0", True),
    (lambda new, z: new(3.0, 4), TypeError, "input_size should be of type int, got: float", True),
    (lambda new, z: new("3", 4), TypeError, "input_size should be of type int, got: str", True),
    (lambda new, z: new(3, 4.0), TypeError, "hidden_size should be of type int, got: float", True),
    (lambda new, z: new(3, None), TypeError, "hidden_size should be of type int, got: NoneType", True),
    (lambda new, z: new(3, 4, 1.5), TypeError, "num_layers should be of type int, got: float", True),
    (lambda new, z: new(True, 4), TypeError, "input_size should be of type int, got: bool", False),
    (lambda new, z: new(3, 4, bias=1), TypeError, "bias should be of type bool, got: int", True),
    (lambda new, z: new(3, 4, batch_first=None), TypeError, "batch_first should be of type bool", True),
    (lambda new, z: new(3, 4, bidirectional=1), TypeError, "bidirectional should be of type bool", False),
    (lambda new, z: new(3, 4, dropout=1.5), ValueError, r"dropout should be a number in range \[0, 1\]", True),
    (lambda new, z: new(3, 4, dropout=-0.1), ValueError, r"dropout should be a number in range \[0, 1\]", True),
    (lambda new, z: new(3, 4, dropout=float("nan")), ValueError, r"in range \[0, 1\].*, got nan", True),
    (lambda new, z: new(3, 4, dropout=True), ValueError, r"in range \[0, 1\].*, got True", True),
    (lambda new, z: new(3, 4, dropout="much"), ValueError, r"in range \[0, 1\].*, got 'much'", True),
    (lambda new, z: new(3), TypeError, "hidden_size", True),
    (lambda new, z: new(3, 4, hidden=5), TypeError, "hidden", True),
    (lambda new, z: new(3, 4, dtype=np.float16), TypeError, "NAME dtype: expected float32 or float64", False),
    (lambda new, z: new(3, 4, dtype=int), TypeError, "NAME dtype: expected float32 or float64", False),
    (lambda new, z: new(3, 4, dtype=None), TypeError, "NAME dtype: expected float32 or float64, got None", False),
    (lambda new, z: new(3, 4, seed=-1), ValueError, "NAME seed: expected 0 or more, got -1", False),
    (lambda new, z: new(3, 4, seed=1.5), TypeError, "NAME seed: expected a whole number or None", False),
]

PROJECTIONS = [
    (lambda new, z: new(3, 4, proj_size=-1), ValueError, "proj_size should be a positive integer or zero", True),
    (lambda new, z: new(3, 4, proj_size=4), ValueError, "proj_size has to be smaller than hidden_size", True),
    (lambda new, z: new(3, 4, proj_size=1.0), TypeError, "proj_size should be of type int, got: float", True),
    (lambda new, z: new(3, 4, nonlinearity="tanh"), TypeError, "nonlinearity", True),
]

NO_PROJECTIONS = [(lambda new, z: new(3, 4, proj_size=2), TypeError, "proj_size", False)]  # ValueError in torch

NONLINEARITIES = [
    (lambda new, z: new(3, 4, nonlinearity="sine"), ValueError, "^NAME: Unknown nonlinearity 'sine'. Select", True),
    (
        lambda new, z: new(3, 4, 1, "sine"),
        ValueError,
        "Unknown nonlinearity 'sine'. Select from 'tanh' or 'relu'",
        True,
    ),
    (lambda new, z: new(3, 4, nonlinearity=None), ValueError, "Unknown nonlinearity None", True),
    (lambda new, z: new(3, 4, nonlinearity=["tanh"]), ValueError, "Unknown nonlinearity", True),
    (lambda new, z: new(3, 4, 1, True), ValueError, "Unknown nonlinearity True", True),  # where others have bias
]


def _masked(*shape: int) -> Any:
    return np.ma.masked_invalid(np.full(shape, np.nan, np.float32))


INPUTS = [
    (
        lambda new, z: new(3, 4)(z(3)),
        ValueError,
        r"^NAME: Expected input to be 2D or 3D, got 1D instead: shape \(3,\) is neither \(T, B, 3\) nor, unbatched, "
        r"\(T, 3\)$",
        True,
    ),
    (lambda new, z: new(3, 4)(z(1, 2, 3, 3)), ValueError, "Expected input to be 2D or 3D, got 4D instead", True),
    (lambda new, z: new(3, 4)(z()), ValueError, "Expected input to be 2D or 3D, got 0D instead", True),
    (
        lambda new, z: new(3, 4)(z(5, 2, 8)),
        RuntimeError,
        r"^NAME input: expected \(T, B, 3\) because input_size=3, got \(5, 2, 8\)$",
        True,
    ),
    (
        lambda new, z: new(3, 4, batch_first=True)(z(5, 2, 8)),
        RuntimeError,
        r"^NAME input: expected \(B, T, 3\) because input_size=3, got \(5, 2, 8\)$",
        True,
    ),
    (lambda new, z: new(3, 4)(z(5, 8)), RuntimeError, r"expected \(T, 3\) because input_size=3, got \(5, 8\)", True),
    (lambda new, z: new(3, 4)(z(5, 2, 0)), RuntimeError, r"expected \(T, B, 3\)", True),
    (lambda new, z: new(3, 4)(z(0, 2, 3)), RuntimeError, "Expected sequence length to be larger than 0", True),
    (lambda new, z: new(3, 4)(z(0, 3)), RuntimeError, "Expected sequence length to be larger than 0", True),
    (
        lambda new, z: new(3, 4, batch_first=True)(z(2, 0, 3)),
        RuntimeError,
        "Expected sequence length to be larger than 0",
        True,
    ),
    (lambda new, z: new(3, 4)(z(5, 2, 3, "float64")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda new, z: new(3, 4)(z(5, 2, 3, "int32")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda new, z: new(3, 4)(z(5, 2, 3, "float16")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda new, z: new(3, 4)(z(5, 2, 3, "bool")), ValueError, "dtype .* does not match weight dtype", True),
    (lambda new, z: new(3, 4)(z(5, 2, 3, "complex64")), ValueError, "dtype .* does not match weight dtype", True),
    (
        lambda new, z: new(3, 4)(_masked(5, 2, 3)),
        TypeError,
        r"NAME input: expected an array without masked elements.*Fill them: array.filled",
        False,
    ),
    (lambda new, z: new(3, 4)(None), TypeError, "NAME input: expected an array of numbers, got NoneType", False),
    (lambda new, z: new(3, 4)("text"), TypeError, "NAME input: expected an array of numbers, got <U4", False),
    (lambda new, z: new(3, 4)([[1.0, 2.0], [1.0]]), TypeError, "NAME input: expected an array, got list", False),
    (lambda new, z: new(3, 4)(object()), TypeError, "expected an array of numbers, got object", False),
    (lambda new, z: new(3, 4)([[1.0, 2.0, 3.0]]), ValueError, "dtype float64, which does not match", False),
]


def _states(z: Any, *shapes: Any) -> Any:
    return tuple(z(*shape) for shape in shapes)


LSTM_STATES = [
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), _states(z, (1, 3, 4), (1, 2, 4))),
        RuntimeError,
        r"Expected hidden\[0\] size \(1, 2, 4\), got \[1, 3, 4\]",
        True,
    ),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 3, 4))),
        RuntimeError,
        r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 3, 4\]",
        True,
    ),
    (
        lambda new, z: new(3, 4, bidirectional=True)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        RuntimeError,
        r"Expected hidden\[0\] size \(2, 2, 4\), got \[1, 2, 4\]",
        True,
    ),
    (
        lambda new, z: new(3, 4, proj_size=2)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        RuntimeError,
        r"Expected hidden\[0\] size \(1, 2, 2\), got \[1, 2, 4\]",
        True,
    ),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), _states(z, (1, 4), (1, 4))),
        RuntimeError,
        r"For batched 3-D input, hx and cx should also be 3-D but got \(2-D, 2-D\)",
        True,
    ),
    (
        lambda new, z: new(3, 4)(z(5, 3), _states(z, (1, 1, 4), (1, 1, 4))),
        RuntimeError,
        r"For unbatched 2-D input, hx and cx should also be 2-D but got \(3-D, 3-D\)",
        True,
    ),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), _states(z, *[(1, 2, 4)] * 3)),
        RuntimeError,
        "NAME hx: expected 2 arrays, as NAME has so many states, got 3",
        True,
    ),
    (lambda new, z: new(3, 4)(z(5, 2, 3), _states(z, (1, 2, 4))), RuntimeError, "expected 2 arrays.*got 1", False),
    (lambda new, z: new(3, 4)(z(5, 2, 3), z(1, 2, 4)), TypeError, "NAME hx: expected a tuple of 2 arrays, got", False),
    (lambda new, z: new(3, 4)(z(5, 2, 3), (None, z(1, 2, 4))), TypeError, r"NAME hx\[0\]: expected an array", False),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), (z(1, 2, 4), z(1, 2, 4, "float64"))),
        ValueError,
        r"NAME hx\[1\]: expected dtype float32, got dtype float64",
        False,
    ),
    (lambda new, z: new(3, 4)(z(5, 3), _states(z, (4,), (4,))), RuntimeError, "For unbatched 2-D input", True),
]

HIDDEN_STATES = [
    (lambda new, z: new(3, 4)(z(5, 2, 3), z(1, 3, 4)), RuntimeError, r"hidden size \(1, 2, 4\), got \[1, 3, 4\]", True),
    (lambda new, z: new(3, 4)(z(5, 2, 3), z(1, 2, 5)), RuntimeError, r"Expected hidden size \(1, 2, 4\)", True),
    (lambda new, z: new(3, 4, 2)(z(5, 3), z(1, 4)), RuntimeError, r"Expected hidden size \(2, 4\), got \[1, 4\]", True),
    (
        lambda new, z: new(3, 4, bidirectional=True)(z(5, 2, 3), z(1, 2, 4)),
        RuntimeError,
        r"^NAME hx: Expected hidden size \(2, 2, 4\), got \[1, 2, 4\]",
        True,
    ),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), z(1, 4)),
        RuntimeError,
        "For batched 3-D input, hx should also be 3-D but got 2-D",
        True,
    ),
    (
        lambda new, z: new(3, 4)(z(5, 3), z(1, 1, 4)),
        RuntimeError,
        "For unbatched 2-D input, hx should also be 2-D but got 3-D",
        True,
    ),
    (lambda new, z: new(3, 4)(z(5, 3), z(4)), RuntimeError, "For unbatched 2-D input, hx should also be 2-D", True),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        TypeError,
        "^NAME hx: expected one array because NAME has no cell state, got a tuple of 2",
        False,
    ),
    (lambda new, z: new(3, 4)(z(5, 2, 3), (z(1, 2, 4),)), TypeError, "NAME hx: .* got a tuple of 1", False),
    (lambda new, z: new(3, 4)(z(5, 2, 3), "text"), TypeError, "NAME hx: expected an array of numbers", False),
    (
        lambda new, z: new(3, 4)(z(5, 2, 3), z(1, 2, 4, "float64")),
        ValueError,
        "^NAME hx: expected dtype float32, got dtype float64",
        False,
    ),
]

# torch's cells check less: a constructor fails where the parameters are made, or not at all; a call where the kernel
# fails. The last entry is False where that gives another family, which is named beside it.
CELLS = [
    (lambda new, z: new(-3, 4), ValueError, "NAME input_size: expected 0 or more, got -3", False),  # Runtime
    (lambda new, z: new(3, -1), ValueError, "hidden_size must be greater than zero, got -1", False),  # Runtime
    (lambda new, z: new(3, 0), ValueError, "hidden_size must be greater than zero, got 0", False),  # accepted
    (lambda new, z: new(3.0, 4), TypeError, "input_size should be of type int, got: float", True),
    (lambda new, z: new(3, None), TypeError, "hidden_size should be of type int, got: NoneType", True),
    (lambda new, z: new(True, 4), TypeError, "input_size should be of type int, got: bool", False),  # accepted
    (lambda new, z: new(3, 4, 1), TypeError, "bias should be of type bool, got: int", False),  # accepted
    (lambda new, z: new(3), TypeError, "hidden_size", True),
    (lambda new, z: new(3, 4)(z(2, 1, 3)), ValueError, "Cell: Expected input to be 1D or 2D, got 3D instead", True),
    (
        lambda new, z: new(3, 4)(z()),
        ValueError,
        r"^NAME: Expected input to be 1D or 2D, got 0D instead: shape \(\) is neither \(B, 3\) nor, unbatched, "
        r"\(3,\)$",
        True,
    ),
    (lambda new, z: new(3, 4)(z(2, 5)), RuntimeError, r"expected \(B, 3\) because input_size=3, got \(2, 5\)", True),
    (lambda new, z: new(3, 4)(z(5)), RuntimeError, r"expected \(3,\) because input_size=3, got \(5,\)", True),
    (lambda new, z: new(3, 4)(z(2, 3, "float64")), ValueError, "does not match weight dtype", False),  # Runtime
    (lambda new, z: new(3, 4)(_masked(2, 3)), TypeError, "NAME input: expected .* without masked elements", False),
]

LSTM_CELL_STATES = [
    (
        lambda new, z: new(3, 4)(z(2, 3), _states(z, (1, 2, 4), (1, 2, 4))),
        ValueError,
        r"^NAME: Expected hx\[0\] to be 1D or 2D, got 3D instead: shape \(1, 2, 4\) is neither",
        True,
    ),
    (lambda new, z: new(3, 4)(z(2, 3), _states(z, (2, 4), (1, 2, 4))), ValueError, r"hx\[1\] to be 1D or 2D", True),
    (lambda new, z: new(3, 4)(z(3), _states(z, (), ())), ValueError, r"hx\[0\] to be 1D or 2D, got 0D", True),
    (lambda new, z: new(3, 4)(z(2, 3), _states(z, (4,), (4,))), RuntimeError, "For batched 2-D", False),  # accepted
    (lambda new, z: new(3, 4)(z(3), _states(z, (1, 4), (1, 4))), RuntimeError, "For unbatched 1-D input", True),
    (lambda new, z: new(3, 4)(z(2, 3), _states(z, (2, 5), (2, 5))), RuntimeError, r"hidden\[0\] size \(2, 4\)", True),
    (lambda new, z: new(3, 4)(z(2, 3), _states(z, (3, 4), (3, 4))), RuntimeError, r"hidden\[0\] size \(2, 4\)", True),
    (lambda new, z: new(3, 4)(z(2, 3), _states(z, (2, 4))), RuntimeError, "expected 2 arrays.*got 1", True),
    (lambda new, z: new(3, 4)(z(2, 3), _states(z, *[(2, 4)] * 3)), RuntimeError, "expected 2 arrays.*got 3", True),
    (lambda new, z: new(3, 4)(z(2, 3), z(2, 4)), TypeError, "NAME hx: expected a tuple of 2 arrays", True),
    (lambda new, z: new(3, 4)(z(2, 3), (z(2, 4), _masked(2, 4))), TypeError, r"NAME hx\[1\]: .* masked", False),
]

HIDDEN_CELL_STATES = [
    (
        lambda new, z: new(3, 4)(z(2, 3), z(1, 2, 4)),
        ValueError,
        r"^NAME: Expected hx to be 1D or 2D, got 3D instead: shape \(1, 2, 4\) is neither",
        True,
    ),
    (lambda new, z: new(3, 4)(z(3), z()), ValueError, "Expected hx to be 1D or 2D, got 0D", True),
    (lambda new, z: new(3, 4)(z(2, 3), z(4)), RuntimeError, "For batched 2-D input, hx should also be 2-D", True),
    (lambda new, z: new(3, 4)(z(3), z(1, 4)), RuntimeError, "For unbatched 1-D input, hx should also be 1-D", True),
    (lambda new, z: new(3, 4)(z(2, 3), z(2, 5)), RuntimeError, r"hidden size \(2, 4\), got \[2, 5\]", True),
    (lambda new, z: new(3, 4)(z(2, 3), z(3, 4)), RuntimeError, r"hidden size \(2, 4\), got \[3, 4\]", True),
    (lambda new, z: new(3, 4)(z(2, 3), (z(2, 4),)), TypeError, "NAME hx: expected one array", False),  # Attribute
    (lambda new, z: new(3, 4)(z(2, 3), z(2, 4, "float64")), ValueError, "NAME hx: expected dtype", False),  # Runtime
    (lambda new, z: new(3, 4)(z(2, 3), _masked(2, 4)), TypeError, "NAME hx: .* without masked elements", False),
]

CELL_NONLINEARITIES = [
    (lambda new, z: new(3, 4, nonlinearity="sine"), ValueError, "Unknown nonlinearity 'sine'", False),  # at the call
    (lambda new, z: new(3, 4, True, "sine"), ValueError, "Unknown nonlinearity 'sine'", False),
]

LAYERS, CELL_CLASSES = ["LSTM", "GRU", "RNN"], ["LSTMCell", "GRUCell", "RNNCell"]
TABLES = [
    (LAYERS, CONSTRUCTORS + INPUTS),
    (["LSTM"], PROJECTIONS + LSTM_STATES),
    (["GRU", "RNN"], NO_PROJECTIONS + HIDDEN_STATES),
    (["RNN"], NONLINEARITIES),
    (CELL_CLASSES, CELLS),
    (["LSTMCell"], LSTM_CELL_STATES),
    (["GRUCell", "RNNCell"], HIDDEN_CELL_STATES),
    (["RNNCell"], CELL_NONLINEARITIES),
]
ALL = [(name, *entry) for names, entries in TABLES for name in names for entry in entries]
IN_TORCH = [(name, call, error) for name, call, error, _, in_torch in ALL if in_torch]


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


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize(("name", "call", "error", "words"), [entry[:4] for entry in ALL])
def test_stated_exception(name: str, call: Any, error: type[Exception], words: str, ours: Any) -> None:
    module, zeros = ours
    with pytest.raises(error, match=words.replace("NAME", name)):
        call(getattr(module, name), zeros)


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize(("name", "call", "error"), IN_TORCH)
def test_torch_raises_the_same_family(name: str, call: Any, error: type[Exception], theirs: Any) -> None:
    module, zeros = theirs
    with pytest.raises(error):
        call(getattr(module, name), zeros)
