"""The registry of cases that drives the parity tests and the golden values, and the yardsticks they are held to.

All kinds of layer go through the same tests. They differ in their constructors and in their states, and what the tests
must know of that stands here: `KINDS`, `own_options` and `of_each`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from nblstm import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, reference
from nblstm.arrays import Array
from nblstm.engine import run

# Constructors by kind, for whatever is to be tested with all of them.
KINDS: dict[str, Callable[..., Any]] = {
    "LSTM": LSTM,
    "GRU": GRU,
    "RNN": RNN,
    "RNN relu": partial(RNN, nonlinearity="relu"),
}
CELLS: dict[str, Callable[..., Any]] = {
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "RNN": RNNCell,
    "RNN relu": partial(RNNCell, nonlinearity="relu"),
}

Layer = Any  # an LSTM, a GRU or an RNN
States = Any  # as they take and return them: (h, c) of an LSTM, h of the others
Result = tuple[Array, States]


def own_options(layer: Any) -> dict[str, str]:
    """Return what no weight tells of a layer or cell, and its name does not say either."""
    return {"nonlinearity": layer.nonlinearity} if isinstance(layer, (RNN, RNNCell)) else {}


def of_each(function: Callable[[Any], Any], states: States) -> States:
    """Return `states` with each of its arrays, one or a tuple, replaced by what `function` makes of it."""
    if states is None:
        return None
    return tuple(map(function, states)) if isinstance(states, tuple) else function(states)


def rows_of(states: States, rows: Any) -> States:
    """Return those rows of the batch of each state."""
    return of_each(lambda state: state[:, rows], states)


def as_tuple(states: States) -> tuple[Any, ...]:
    """Return the arrays of `states`, one or a tuple, as a tuple."""
    return states if isinstance(states, tuple) else (states,)


def flat(result: Result) -> tuple[Array, ...]:
    """Return the arrays of a layer's result: output, h_n and, of an LSTM, c_n."""
    output, states = result
    return output, *as_tuple(states)


@dataclass(frozen=True)
class Case:
    """One point of the argument space: how to build a layer, and the size of a call."""

    kind: str
    variant: str
    input_size: int
    hidden_size: int
    steps: int
    batch: int
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.variant}"

    def layer(self, dtype: Any = np.float32, **arguments: Any) -> Layer:
        """Return the layer; in both dtypes it has the same float32 values."""
        return KINDS[self.kind](self.input_size, self.hidden_size, **self.arguments, **arguments, seed=1).to(dtype)

    def inputs(self, dtype: Any = np.float32) -> tuple[Array, States]:
        """Return x (T, B, I) and hx for it."""
        return random_inputs(self.layer(), self.steps, self.batch, dtype=dtype)


def _case(kind: str, variant: str, input_size: int, hidden_size: int, /, *call: int, **arguments: Any) -> Case:
    steps, batch = call or (7, 3)
    return Case(kind, variant, input_size, hidden_size, steps, batch, arguments)


# Sizes stand on both sides of what the kernels treat alike: vectors of 2 to 16 numbers, tiles of up to 6 rows.
CASES = [
    _case("LSTM", "smallest", 1, 1, 1, 1),
    _case("LSTM", "plain", 5, 8),
    _case("LSTM", "one row", 10, 20, 7, 1),
    _case("LSTM", "one step", 4, 9, 1, 5),
    _case("LSTM", "no bias", 3, 16, bias=False),
    _case("LSTM", "wide input", 70, 6, 7, 2),
    _case("LSTM", "batch of tiles", 6, 17, 7, 13),
    _case("LSTM", "vectors and one", 9, 33, 7, 6),
    _case("LSTM", "many rows", 3, 24, 5, 40),
    _case("LSTM", "long", 2, 5, 300, 2),
    _case("LSTM", "two layers", 5, 12, num_layers=2),
    _case("LSTM", "three layers", 4, 7, 7, 4, num_layers=3, bias=False),
    _case("LSTM", "both directions", 5, 11, bidirectional=True),
    _case("LSTM", "deep both directions", 3, 6, 7, 7, num_layers=2, bidirectional=True),
    _case("LSTM", "projection", 5, 12, proj_size=4),
    _case("LSTM", "wide projection", 7, 40, 7, 6, proj_size=35),
    _case("LSTM", "everything", 4, 10, 7, 5, num_layers=2, bidirectional=True, proj_size=3),
    _case("LSTM", "everything but bias", 4, 18, 7, 2, num_layers=2, bidirectional=True, proj_size=17, bias=False),
    _case("GRU", "smallest", 1, 1, 1, 1),
    _case("GRU", "plain", 5, 8),
    _case("GRU", "one row", 10, 20, 7, 1),
    _case("GRU", "no bias", 3, 16, bias=False),
    _case("GRU", "wide input", 70, 6, 7, 2),
    _case("GRU", "batch of tiles", 6, 17, 7, 13),
    _case("GRU", "many rows", 3, 33, 5, 40),
    _case("GRU", "long", 2, 5, 300, 2),
    _case("GRU", "three layers", 4, 7, 7, 4, num_layers=3, bias=False),
    _case("GRU", "everything", 3, 10, 7, 7, num_layers=2, bidirectional=True),
    _case("RNN", "smallest", 1, 1, 1, 1),
    _case("RNN", "no bias", 3, 16, bias=False),
    _case("RNN", "one row", 70, 20, 7, 1),
    _case("RNN", "batch of tiles", 6, 33, 7, 13),
    _case("RNN", "long", 2, 5, 300, 2),
    _case("RNN", "everything", 3, 10, 7, 7, num_layers=2, bidirectional=True),
    _case("RNN relu", "plain", 5, 8),
    _case("RNN relu", "many rows", 3, 33, 5, 40),
    _case("RNN relu", "three layers", 4, 7, 7, 4, num_layers=3, bias=False),
    _case("RNN relu", "everything", 3, 18, 7, 6, num_layers=2, bidirectional=True),
]


@st.composite
def layers(draw: st.DrawFn, input_sizes: Any, hidden_sizes: Any, *, most: int, dtypes: Any) -> Layer:
    """Draw a layer of any kind and variant, of at most `most` layers."""
    kind, hidden_size = draw(st.sampled_from(list(KINDS))), draw(hidden_sizes)
    own = {"proj_size": draw(st.just(0) | st.integers(0, hidden_size - 1))} if kind == "LSTM" else {}
    return KINDS[kind](
        draw(input_sizes),
        hidden_size,
        draw(st.integers(1, most)),
        bias=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**32)),
        **own,
    )


def random_inputs(layer: Layer, steps: int, batch: int, *, seed: int = 2, dtype: Any = None) -> tuple[Array, States]:
    """Return x (T, B, I) and hx of float32 values, in the layer's dtype unless another one is given."""
    random, dtype = np.random.default_rng(seed), layer.dtype if dtype is None else dtype
    rows = layer.num_layers * (2 if layer.bidirectional else 1)

    def drawn(*shape: int) -> Array:
        return random.standard_normal(shape, np.float32).astype(dtype)

    x = drawn(steps, batch, layer.input_size)
    if not isinstance(layer, LSTM):
        return x, drawn(rows, batch, layer.hidden_size)
    return x, (drawn(rows, batch, layer.proj_size or layer.hidden_size), drawn(rows, batch, layer.hidden_size))


def oracle(layer: Layer, x: Array, hx: States = None, lengths: Any = None, **options: Any) -> Result:
    """Return what the layer's parameters make of x (T, B, I), in the reference's float64."""
    return _reference(np.float64, layer, x, hx, lengths, **options)


def _reference(dtype: Any, layer: Layer, x: Array, hx: States, lengths: Any, **options: Any) -> Result:
    compute = getattr(reference, type(layer).__name__.lower())
    parameters = {name: array.astype(dtype) for name, array in layer.named_parameters()}
    states = of_each(lambda state: state.astype(dtype), hx)
    valid = None if lengths is None else np.asarray(lengths)
    result: Result = compute(x.astype(dtype), parameters, states, lengths=valid, **own_options(layer), **options)
    return result


Peer = Callable[[Layer, Array, States, Any], Result]

# Where torch is not installed the reference in float32 says how large an error is usual.
float32_reference: Peer = partial(_reference, np.float32)


def torch_twin(torch: Any, layer: Layer) -> Any:
    """Return torch's layer of the same kind, arguments and parameters, in evaluation mode."""
    module = getattr(torch.nn, type(layer).__name__)(
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        dtype=getattr(torch, str(layer.dtype)),
        **({"proj_size": layer.proj_size} if isinstance(layer, LSTM) else own_options(layer)),
    )
    module.load_state_dict({name: torch.tensor(array) for name, array in layer.named_parameters()})
    return module.eval()


def torch_cell(torch: Any, cell: Any) -> Any:
    """Return torch's cell of the same kind, arguments and parameters."""
    kind, dtype = getattr(torch.nn, type(cell).__name__), getattr(torch, str(cell.dtype))
    module = kind(cell.input_size, cell.hidden_size, cell.bias, dtype=dtype, **own_options(cell))
    module.load_state_dict({name: torch.tensor(array) for name, array in cell.named_parameters()})
    return module


def torch_result(torch: Any, layer: Layer, x: Array, hx: States, lengths: Any) -> Result:
    """Return what torch makes of x, in the layer's dtype; a padded batch goes through a packed sequence."""
    utilities, module = torch.nn.utils.rnn, torch_twin(torch, layer)
    states = of_each(torch.tensor, hx)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its own projection takes a slow path
        if lengths is None:
            output, last = module(torch.tensor(x), states)
        else:
            padded = torch.tensor(x), torch.tensor(np.asarray(lengths))
            packed = utilities.pack_padded_sequence(*padded, layer.batch_first, enforce_sorted=False)
            packed_output, last = module(packed, states)
            steps = x.shape[1 if layer.batch_first else 0]
            output, _ = utilities.pad_packed_sequence(packed_output, layer.batch_first, total_length=steps)
    return output.numpy(), of_each(lambda state: state.numpy(), last)


def assert_parity(got: Result, exact: Result, peer: Result | None = None) -> None:
    """Hold every array of a result to its limit.

    float32: at most 3 times the peer's error, plus 2e-7 of the scale of the values. float64: 1e-12 of that scale.
    """
    arrays = zip(flat(got), flat(exact), flat(exact if peer is None else peer), strict=True)
    for name, (found, expected, by_peer) in zip(("output", "h_n", "c_n"), arrays, strict=False):
        assert found.shape == expected.shape, name
        scale = float(np.abs(expected).max(initial=0))
        error, peer_error = (float(np.abs(array - expected).max(initial=0)) for array in (found, by_peer))
        limit = 1e-12 * scale if found.dtype == np.float64 else 3 * peer_error + 2e-7 * scale
        assert error <= limit, f"{name}: error {error:.3g}, limit {limit:.3g}, peer {peer_error:.3g}"


def assert_close(got: Result, expected: Result, **limits: float) -> None:
    """Hold every array of a result, NaN and inf in it too, to `limits`: rtol and atol."""
    for found, values in zip(flat(got), flat(expected), strict=True):
        np.testing.assert_allclose(found, values, **{"rtol": 0, **limits})


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
