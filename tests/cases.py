"""The registry of cases that drives the parity tests and the golden values, and the yardsticks they are held to."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from nblstm import LSTM, reference
from nblstm.arrays import Array
from nblstm.engine import run

Result = tuple[Array, tuple[Array, Array]]


@dataclass(frozen=True)
class Case:
    """One point of the argument space: how to build a layer, and the size of a call."""

    name: str
    input_size: int
    hidden_size: int
    steps: int
    batch: int
    arguments: dict[str, Any]

    def layer(self, dtype: Any = np.float32) -> LSTM:
        """Return the layer; in both dtypes it has the same float32 values."""
        return LSTM(self.input_size, self.hidden_size, **self.arguments, seed=1).to(dtype)

    def inputs(self, dtype: Any = np.float32) -> tuple[Array, tuple[Array, Array]]:
        """Return x (T, B, I) and hx for it."""
        return random_inputs(self.layer(), self.steps, self.batch, dtype=dtype)


def _case(name: str, input_size: int, hidden_size: int, steps: int = 7, batch: int = 3, **arguments: Any) -> Case:
    return Case(name, input_size, hidden_size, steps, batch, arguments)


# Sizes stand on both sides of what the kernels treat alike: vectors of 2 to 16 numbers, tiles of up to 6 rows.
CASES = [
    _case("smallest", 1, 1, steps=1, batch=1),
    _case("plain", 5, 8),
    _case("one row", 10, 20, batch=1),
    _case("one step", 4, 9, steps=1, batch=5),
    _case("no bias", 3, 16, bias=False),
    _case("wide input", 70, 6, batch=2),
    _case("batch of tiles", 6, 17, batch=13),
    _case("vectors and one", 9, 33, batch=6),
    _case("many rows", 3, 24, steps=5, batch=40),
    _case("long", 2, 5, steps=300, batch=2),
    _case("two layers", 5, 12, num_layers=2),
    _case("three layers", 4, 7, batch=4, num_layers=3, bias=False),
    _case("both directions", 5, 11, bidirectional=True),
    _case("deep both directions", 3, 6, batch=7, num_layers=2, bidirectional=True),
    _case("projection", 5, 12, proj_size=4),
    _case("wide projection", 7, 40, batch=6, proj_size=35),
    _case("everything", 4, 10, batch=5, num_layers=2, bidirectional=True, proj_size=3),
    _case("everything but bias", 4, 18, batch=2, num_layers=2, bidirectional=True, proj_size=17, bias=False),
]


def random_inputs(
    layer: LSTM, steps: int, batch: int, *, seed: int = 2, dtype: Any = None
) -> tuple[Array, tuple[Array, Array]]:
    """Return x (T, B, I) and hx of float32 values, in the layer's dtype unless another one is given."""
    random, dtype = np.random.default_rng(seed), layer.dtype if dtype is None else dtype
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    shapes = (
        (steps, batch, layer.input_size),
        (rows, batch, layer.proj_size or layer.hidden_size),
        (rows, batch, layer.hidden_size),
    )
    x, h_0, c_0 = (random.standard_normal(shape, np.float32).astype(dtype) for shape in shapes)
    return x, (h_0, c_0)


def oracle(layer: LSTM, x: Array, hx: tuple[Array, Array] | None = None, lengths: Any = None) -> Result:
    """Return what the layer's parameters make of x (T, B, I), in the reference's float64."""
    return _reference(np.float64, layer, x, hx, lengths)


def _reference(dtype: Any, layer: LSTM, x: Array, hx: tuple[Array, Array] | None, lengths: Any) -> Result:
    parameters = {name: array.astype(dtype) for name, array in layer.named_parameters()}
    states = None if hx is None else (hx[0].astype(dtype), hx[1].astype(dtype))
    return reference.lstm(x.astype(dtype), parameters, states, lengths=None if lengths is None else np.asarray(lengths))


Peer = Callable[[LSTM, Array, "tuple[Array, Array] | None", Any], Result]

# Where torch is not installed the reference in float32 says how large an error is usual.
float32_reference: Peer = partial(_reference, np.float32)


def torch_twin(torch: Any, layer: LSTM) -> Any:
    """Return the torch.nn.LSTM of the same arguments and parameters, in evaluation mode."""
    module = torch.nn.LSTM(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        layer.bias,
        layer.batch_first,
        bidirectional=layer.bidirectional,
        proj_size=layer.proj_size,
        dtype=getattr(torch, str(layer.dtype)),
    )
    module.load_state_dict({name: torch.tensor(array) for name, array in layer.named_parameters()})
    return module.eval()


def torch_result(torch: Any, layer: LSTM, x: Array, hx: tuple[Array, Array] | None, lengths: Any) -> Result:
    """Return what torch makes of x, in the layer's dtype; a padded batch goes through a packed sequence."""
    utilities, module = torch.nn.utils.rnn, torch_twin(torch, layer)
    states = None if hx is None else tuple(torch.tensor(state) for state in hx)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its own projection takes a slow path
        if lengths is None:
            output, (h_n, c_n) = module(torch.tensor(x), states)
        else:
            padded = torch.tensor(x), torch.tensor(np.asarray(lengths))
            packed = utilities.pack_padded_sequence(*padded, layer.batch_first, enforce_sorted=False)
            packed_output, (h_n, c_n) = module(packed, states)
            steps = x.shape[1 if layer.batch_first else 0]
            output, _ = utilities.pad_packed_sequence(packed_output, layer.batch_first, total_length=steps)
    return output.numpy(), (h_n.numpy(), c_n.numpy())


def assert_parity(got: Result, exact: Result, peer: Result | None = None) -> None:
    """Hold every array of a result to its limit.

    float32: at most 3 times the peer's error, plus 2e-7 of the scale of the values. float64: 1e-12 of that scale.
    """
    arrays = zip(_flat(got), _flat(exact), _flat(exact if peer is None else peer), strict=True)
    for name, (found, expected, by_peer) in zip(("output", "h_n", "c_n"), arrays, strict=True):
        assert found.shape == expected.shape, name
        scale = float(np.abs(expected).max(initial=0))
        error, peer_error = (float(np.abs(array - expected).max(initial=0)) for array in (found, by_peer))
        limit = 1e-12 * scale if found.dtype == np.float64 else 3 * peer_error + 2e-7 * scale
        assert error <= limit, f"{name}: error {error:.3g}, limit {limit:.3g}, peer {peer_error:.3g}"


def assert_same_bits(got: Any, expected: Any) -> None:
    """Hold arrays, or nested tuples of them, to equal bytes."""
    if isinstance(expected, tuple):
        assert isinstance(got, tuple)
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same_bits(one, other)
    elif expected is not None:
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()


def _flat(result: Result) -> tuple[Array, Array, Array]:
    return result[0], result[1][0], result[1][1]


def in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let stacks of layers take a few rows at a time; return a list that gains the number of chunks of every call."""
    counts: list[int] = []
    cut = run._chunks

    def counted(*arguments: Any) -> list[tuple[int, int]]:
        chunks = list(cut(*arguments))
        counts.append(len(chunks))
        return chunks

    monkeypatch.setattr(run, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(run, "_chunks", counted)
    return counts
