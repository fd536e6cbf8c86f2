"""Layers give the numbers of torch.nn: every variant of layer and call, against the oracle and against torch."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import (
    KINDS,
    Case,
    Peer,
    Result,
    assert_close,
    assert_parity,
    assert_same_bits,
    flat,
    float32_reference,
    in_small_chunks,
    layers,
    of_each,
    oracle,
    own_options,
    random_inputs,
    rows_of,
    torch_result,
    torch_twin,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm import LSTM
from nblstm.arrays import Array


@pytest.mark.parametrize("with_hx", [False, True], ids=["no hx", "hx"])
def test_dense(case: Case, dtype: Any, with_hx: bool, peer: Peer) -> None:
    layer = case.layer(dtype)
    x, hx = case.inputs(dtype)
    states = hx if with_hx else None
    assert_parity(layer(x, states), oracle(layer, x, states), peer(layer, x, states, None))


def test_lengths(case: Case, dtype: Any, peer: Peer) -> None:
    layer = case.layer(dtype)
    x, hx = case.inputs(dtype)
    lengths = np.random.default_rng(3).integers(1, case.steps + 1, case.batch)
    output, states = layer(x, hx, lengths=lengths)
    assert_parity((output, states), oracle(layer, x, hx, lengths), peer(layer, x, hx, lengths))
    for row, length in enumerate(lengths):
        assert not output[length:, row].any()


SIZES = st.integers(1, 40)
LAYERS = layers(SIZES, SIZES, most=3, dtypes=[np.float32, np.float64])
# Layers whose sums are long, where the order of additions begins to tell.
WIDE_LAYERS = layers(st.integers(1, 300), st.integers(150, 400), most=2, dtypes=[np.float32])


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, int, bool, list[int] | None]:
    """Draw a call of any size: (steps, batch, with hx, lengths)."""
    steps, batch = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    lengths = draw(st.none() | st.lists(st.integers(1, steps), min_size=batch, max_size=batch))
    return steps, batch, draw(st.booleans()), lengths


@settings(max_examples=500)
@given(layer=LAYERS, call=calls(), seed=st.integers(0, 2**32), threads=st.sampled_from([1, 2]))
def test_any_layer_and_call(peer: Peer, layer: Any, call: Any, seed: int, threads: int) -> None:
    steps, batch, with_hx, lengths = call
    x, hx = random_inputs(layer, steps, batch, seed=seed)
    states = hx if with_hx else None
    with nblstm.num_threads(threads):
        got = layer(x, states, lengths=lengths)
    assert_parity(got, oracle(layer, x, states, lengths), peer(layer, x, states, lengths))


@settings(max_examples=80)
@given(layer=WIDE_LAYERS, steps=st.integers(5, 30), batch=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_wide_layers(peer: Peer, layer: Any, steps: int, batch: int, seed: int) -> None:
    x, _ = random_inputs(layer, steps, batch, seed=seed)
    assert_parity(layer(x), oracle(layer, x), peer(layer, x, None, None))


def test_errors_stay_small_against_either_peer(peer: Peer) -> None:
    # Chains of 128 terms had 1.3 of the limit against NumPy's product of 5 rows, 1.0 against torch's of one (AVX-512).
    for batch in (1, 5):
        for seed in range(20):
            layer = nblstm.RNN(230, 150, bias=False, seed=seed)
            x, _ = random_inputs(layer, 5, batch, seed=seed)
            for reference in (peer, float32_reference):
                assert_parity(layer(x), oracle(layer, x), reference(layer, x, None, None))


HARSH = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2}),
    ("LSTM", {"bidirectional": True}),
    ("LSTM", {"proj_size": 8}),
    ("GRU", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {}),
    ("RNN relu", {}),
]


@pytest.mark.parametrize(("kind", "arguments"), HARSH, ids=str)
def test_harsh_weights_over_a_whole_sequence(kind: str, arguments: dict[str, Any], peer: Peer) -> None:
    layer = KINDS[kind](10, 30, **arguments, seed=4)
    layer.set_parameters({name: 3 * array for name, array in layer.named_parameters()})
    x, hx = random_inputs(layer, 100, 4)
    assert_parity(layer(x, hx), oracle(layer, x, hx), peer(layer, x, hx, None))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_harshest_weights_step_by_step(kind: str, peer: Peer) -> None:
    """At 30 times the usual weights a sequence is chaotic: each step starts from the oracle's state."""
    layer = KINDS[kind](10, 30, seed=5)
    layer.set_parameters({name: 30 * array for name, array in layer.named_parameters()})
    x, states = random_inputs(layer, 50, 4)
    results: list[tuple[Result, Result, Result]] = []
    for t in range(len(x)):
        step = x[t : t + 1]
        exact = oracle(layer, step, states)
        results.append((layer(step, states), exact, peer(layer, step, states, None)))
        states = of_each(lambda state: state.astype(np.float32), exact[1])
    assert_parity(*(_all_steps(by_step) for by_step in zip(*results, strict=True)))


def _all_steps(by_step: Sequence[Result]) -> Result:
    output, *states = (np.concatenate(arrays) for arrays in zip(*map(flat, by_step), strict=True))
    return output, tuple(states)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_sequences_of_many_chunks(kind: str, dtype: Any, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of layers runs some rows at a time; all lengths may end long before the last chunk."""
    chunks = in_small_chunks(monkeypatch)
    layer = KINDS[kind](2, 3, num_layers=2, seed=6, dtype=dtype)
    x, hx = random_inputs(layer, 1000, 2)
    for lengths in (None, [910, 3], [5, 3]):
        with nblstm.num_threads(2):
            assert_parity(layer(x, hx, lengths=lengths), oracle(layer, x, hx, lengths), peer(layer, x, hx, lengths))
    assert chunks[0] >= chunks[1] > 4 and chunks[2] == 1


@pytest.mark.parametrize("with_hx", [False, True], ids=["no hx", "hx"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_forms_of_input(case: Case, batch_first: bool, with_hx: bool) -> None:
    """Batch first, unbatched, packed: the same numbers in other places."""
    layer = case.layer(batch_first=batch_first)
    x, hx = case.inputs()
    x_user = x.swapaxes(0, 1) if batch_first else x
    states = hx if with_hx else None
    output, last = case.layer()(x, states)

    got_output, got_states = layer(x_user, states)
    assert_same_bits(got_output, output.swapaxes(0, 1) if batch_first else output)
    assert_same_bits(got_states, last)

    assert_same_bits(layer(x[:, 0], rows_of(states, 0)), (output[:, 0], rows_of(last, 0)))

    packed = nblstm.pack_padded_sequence(x_user, [case.steps] * case.batch, batch_first)
    packed_output, packed_states = layer(packed, states)
    assert_same_bits(nblstm.pad_packed_sequence(packed_output)[0], output)
    assert_same_bits(packed_states, last)


def test_against_torch_itself(case: Case, torch: Any, dtype: Any) -> None:
    """The whole interface side by side: shapes of all that comes out, packed fields, values."""
    layer = case.layer(dtype)
    module = torch_twin(torch, layer)
    x, hx = case.inputs(dtype)
    lengths = np.random.default_rng(3).integers(1, case.steps + 1, case.batch)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), torch.tensor(lengths), enforce_sorted=False)
    with torch.inference_mode():
        expected, states = module(packed, of_each(torch.tensor, hx))
    got, got_states = layer(packed, hx)
    assert isinstance(got, nblstm.PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert getattr(got, name).tolist() == getattr(expected, name).tolist()
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    theirs = expected.data.numpy(), of_each(lambda state: state.numpy(), states)
    assert_close((got.data, got_states), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: np.asfortranarray(x),
        lambda x: x[::-1].copy()[::-1],
        lambda x: x[:, :, ::-1].copy()[:, :, ::-1],
        lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
        lambda x: np.ascontiguousarray(x.swapaxes(0, 2)).swapaxes(0, 2),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    ],
    ids=["Fortran order", "steps backwards", "features backwards", "strided features", "features first", "unaligned"],
)
def test_memory_layout_does_not_matter(arrange: Any) -> None:
    layer = LSTM(5, 8, seed=1)
    x, hx = random_inputs(layer, 7, 3)
    arranged, arranged_hx = arrange(x), of_each(arrange, hx)
    for array in (arranged, *arranged_hx):
        array.flags.writeable = False
    before = arranged.copy()
    assert_same_bits(layer(arranged, arranged_hx), layer(x, hx))
    assert_same_bits(arranged, before)


@pytest.mark.filterwarnings("error")
def test_what_broadcast_arrays_returns() -> None:
    """Its flags call it writeable, its buffer is not."""
    x, _ = np.broadcast_arrays(np.ones((3, 8), np.float32), np.zeros((1, 3, 1), np.float32))
    plain = x.copy()
    assert_same_bits(LSTM(8, 5, seed=1)(x), LSTM(8, 5, seed=1)(plain))
    assert_same_bits(nblstm.LSTMCell(8, 5, seed=1)(x[0]), nblstm.LSTMCell(8, 5, seed=1)(plain[0]))


def test_one_row_stands_for_many() -> None:
    layer = LSTM(5, 8, seed=1)
    x, _ = random_inputs(layer, 7, 1)
    same = np.broadcast_to(x, (7, 4, 5))
    assert_same_bits(layer(same), layer(same.copy()))


class OnlyDLPack:
    """An array that shows nothing but ``__dlpack__``."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def _assert_takes(kind: str, convert: Any) -> None:
    layer = KINDS[kind](5, 8, seed=1, dtype=np.float64)
    x, hx = random_inputs(layer, 7, 3)
    lengths = np.array([2, 7, 4])
    given = [*map(convert, hx)] if isinstance(hx, tuple) else convert(hx)
    got = layer(convert(x), given, lengths=convert(lengths))
    assert_same_bits(got, layer(x, hx, lengths=lengths))
    packed = nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False)
    converted = SimpleNamespace(**{name: convert(array) for name, array in packed._asdict().items()})
    assert_same_bits(layer(converted, hx)[1], layer(packed, hx)[1])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("convert", [np.ndarray.tolist, memoryview, OnlyDLPack], ids=["list", "memoryview", "dlpack"])
def test_array_likes(kind: str, convert: Any) -> None:
    _assert_takes(kind, convert)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torch_tensors(kind: str, torch: Any) -> None:
    _assert_takes(kind, torch.tensor)


@pytest.mark.parametrize(("kind", "own", "size"), [("LSTM", {"proj_size": 3}, 3), ("GRU", {}, 8), ("RNN", {}, 8)])
def test_empty_batch(kind: str, own: dict[str, Any], size: int, dtype: Any) -> None:
    layer = KINDS[kind](5, 8, 2, bidirectional=True, dtype=dtype, **own)
    x = np.zeros((4, 0, 5), dtype)
    output, states = layer(x)
    shapes = (4, 0, 2 * size), (4, 0, size), (4, 0, 8)
    assert tuple(array.shape for array in flat((output, states))) == shapes[: 3 if kind == "LSTM" else 2]
    assert layer(x, states, lengths=[])[0].shape == shapes[0]


def test_nan_stays_in_its_row_from_its_step_on(build: Any, dtype: Any) -> None:
    layer = build(5, 17, num_layers=2, seed=1, dtype=dtype)
    x, hx = random_inputs(layer, 7, 9)
    clean, _ = layer(x, hx)
    x[3, 4, 2] = np.nan
    output, *states = flat(layer(x, hx))
    assert np.isnan(output[3:, 4]).all()
    assert np.isnan(states[0][:, 4]).all()
    others = np.arange(9) != 4
    assert_same_bits(output[:, others], clean[:, others])
    assert_same_bits(output[:3], clean[:3])


def test_padding_is_never_read(build: Any, dtype: Any) -> None:
    layer = build(5, 17, num_layers=2, bidirectional=True, seed=1, dtype=dtype)
    x, hx = random_inputs(layer, 7, 3)
    lengths = [2, 7, 4]
    clean = layer(x, hx, lengths=lengths)
    for row, length in enumerate(lengths):
        x[length:, row] = np.nan
    assert_same_bits(layer(x, hx, lengths=lengths), clean)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38, -3e38])
def test_huge_values_saturate_as_in_torch(build: Any, value: float, torch: Any) -> None:
    """Or, in a relu, stay huge: there a limit must be one of their size."""
    layer = build(1, 17, seed=1)
    x, hx = random_inputs(layer, 6, 3)
    x[2, 1, 0] = value
    relative = 1e-4 if own_options(layer) == {"nonlinearity": "relu"} else 0
    assert_close(layer(x, hx), torch_result(torch, layer, x, hx, None), rtol=relative, atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize(
    "make",
    [
        lambda shape: np.full(shape, 7, np.float32),
        lambda shape: np.full(shape, 7, np.float32, order="F"),
        lambda shape: np.full((*shape[:2], 2 * shape[2]), 7, np.float32)[:, :, ::2],
        lambda shape: np.full((shape[0], 2 * shape[1], shape[2]), 7, np.float32)[:, ::-2],
    ],
    ids=["dense", "Fortran order", "strided features", "strided rows"],
)
def test_out(make: Any, batch_first: bool) -> None:
    """The output goes into the given memory, whatever its strides, and nowhere else."""
    layer = LSTM(5, 8, batch_first=batch_first, bidirectional=True, seed=1)
    x, hx = random_inputs(layer, 7, 3)
    x = x.swapaxes(0, 1) if batch_first else x
    expected = layer(x, hx)
    whole = make((9, 9, 16))
    out = whole[: x.shape[0], : x.shape[1]]
    got, states = layer(x, hx, out=out)
    assert got is out
    assert_same_bits((got, states), expected)
    assert (whole[x.shape[0] :] == 7).all()
    assert (whole[:, x.shape[1] :] == 7).all()
    assert whole.base is None or np.count_nonzero(whole.base == 7) >= whole.base.size - out.size


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_out_of_other_forms() -> None:
    layer = LSTM(5, 8, seed=1)
    x, hx = random_inputs(layer, 7, 3)
    out = np.full((7, 3, 8), 7, np.float32)
    expected = layer(x, hx, lengths=[2, 7, 4])
    assert_same_bits(layer(x, hx, lengths=[2, 7, 4], out=out), expected)
    packed = nblstm.pack_padded_sequence(x, [2, 7, 4], enforce_sorted=False)
    rows = np.empty((13, 8), np.float32)
    got, _ = layer(packed, hx, out=rows)
    assert got.data is rows
    assert_same_bits(tuple(got), tuple(layer(packed, hx)[0]))
    single = np.matrix(np.empty((7, 8), np.float32))  # whose views are 2-D, whatever is asked for
    layer(x[:, 0], out=single)
    assert_same_bits(np.asarray(single), layer(x[:, 0])[0])
