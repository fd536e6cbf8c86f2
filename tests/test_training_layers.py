"""The layers of nblstm.training: torch's numbers forward and back, the same bits for any split, clear errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from cases import as_tuple
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm import GRU, LSTM, RNN
from nblstm.engine import dense, plan
from nblstm.engine.packing import pack_panels
from nblstm.kernels import policy, team
from nblstm.kernels.simd import lanes_of, transpose
from nblstm.training import Dropout, Embedding, InitialState, Linear

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def errors(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Return the largest error of each array, in parts of the largest number there."""
    return {
        name: float(np.max(np.abs(found[name] - exact[name]), initial=0) / np.max(np.abs(exact[name]), initial=1))
        for name in exact
    }


run = team.run


def on_two_threads(worker: int, job: int, slices: int, steps: int, members: int) -> None:
    run(worker, job, slices, steps, min(members, 2))


def linear_results(linear: Linear, x: Any, d_output: Any) -> dict[str, Any]:
    output, backward = linear.vjp(x)
    gradients = backward(d_output)
    return {"output": output, "input": gradients.input, **gradients.parameters}


def torch_linear(torch: Any, linear: Linear, x: Any, d_output: Any, dtype: str) -> dict[str, Any]:
    kind = getattr(torch, dtype)
    module = torch.nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, dtype=kind)
    module.load_state_dict({name: torch.tensor(array, dtype=kind) for name, array in linear.named_parameters()})
    x_in = torch.tensor(x, dtype=kind, requires_grad=True)
    output = module(x_in)
    output.backward(torch.tensor(d_output, dtype=kind))
    found = {"output": output.detach(), "input": x_in.grad, **{n: p.grad for n, p in module.named_parameters()}}
    return {name: tensor.double().numpy() for name, tensor in found.items()}


@settings(max_examples=120)
@given(
    shape=SHAPES,
    sizes=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    bias=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
    parts=st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 5)]),
)
def test_linear_against_torch(
    torch: Any, shape: Any, sizes: Any, bias: bool, dtype: Any, seed: int, parts: Any
) -> None:
    inputs, outputs = sizes
    linear = Linear(inputs, outputs, bias, dtype=dtype, seed=seed)
    random = np.random.default_rng(seed)
    x, d_output = (random.standard_normal((*shape, size)).astype(dtype) for size in (inputs, outputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "choose_product", lambda *sizes: (1, parts[1]) if sizes[-1] else parts)
        patch.setattr(team, "run", on_two_threads)
        split = linear_results(linear, x, d_output)
    exact = torch_linear(torch, linear, x, d_output, "float64")
    assert list(split) == list(exact)
    assert {name: array.shape for name, array in split.items()} == {name: a.shape for name, a in exact.items()}
    assert all(error < (4e-6 if dtype == np.float32 else 1e-14) for error in errors(split, exact).values())
    for name, array in linear_results(linear, x, d_output).items():
        assert array.dtype == dtype and np.array_equal(array, split[name]), name


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(3000, 40, 30), (700, 200, 1000), (7, 1500, 20), (1, 300, 3000), (513, 130, 1)]
)
def test_linear_is_as_accurate_as_torch(torch: Any, rows: int, inputs: int, outputs: int) -> None:
    linear = Linear(inputs, outputs, seed=0)
    random = np.random.default_rng(1)
    x, d_output = (random.standard_normal((rows, size)).astype(np.float32) for size in (inputs, outputs))
    exact = torch_linear(torch, linear, x, d_output, "float64")
    peer = errors(torch_linear(torch, linear, x, d_output, "float32"), exact)
    own = errors(linear_results(linear, x, d_output), exact)
    assert all(own[name] <= 3 * peer[name] + 2e-7 for name in own), (own, peer)


def test_a_row_has_the_same_bits_alone_and_on_any_number_of_threads() -> None:
    linear = Linear(130, 200, seed=0)
    random = np.random.default_rng(1)
    x, d_output = (random.standard_normal((2000, size)).astype(np.float32) for size in (130, 200))
    with nblstm.num_threads(1):
        expected = linear_results(linear, x, d_output)
    with nblstm.num_threads(2):
        assert all(np.array_equal(array, expected[name]) for name, array in linear_results(linear, x, d_output).items())
    for count in (1, 2, 7, 49):
        some = linear_results(linear, x[:count], d_output[:count])
        assert all(np.array_equal(some[name], expected[name][:count]) for name in ("output", "input"))


def test_only_long_products_wake_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    given_threads = []
    monkeypatch.setattr(team, "run", lambda *arguments: given_threads.append(arguments[-1]))
    monkeypatch.setattr(dense.threads, "usable", lambda: 2)
    for rows, inputs, outputs in [(64, 128, 10), (20, 128, 200), (1, 64, 1000), (700, 200, 10_000)]:
        x = np.zeros((rows, inputs), np.float32)
        with nblstm.num_threads(2):
            linear_results(Linear(inputs, outputs, seed=0), x, np.zeros((rows, outputs), np.float32))
    assert given_threads == [1] * 9 + [2] * 3


@pytest.mark.parametrize("shape", [(9, 5), (1, 1), (3, 40), (40, 3), (5, 64)])
def test_whole_panels_are_read_within_the_array_or_its_copy(shape: Any) -> None:
    array = np.random.default_rng(0).standard_normal(shape)
    size = dense.panel_width(array.dtype) * -(-shape[1] // dense.panel_width(array.dtype)) * array.itemsize
    addresses, room = dense._rows_with_room(array)
    for row, address in enumerate(addresses):
        owner = array if address == array.ctypes.data + row * array.strides[0] else room
        assert isinstance(owner, np.ndarray)
        assert owner.ctypes.data <= address and address + size <= owner.ctypes.data + owner.nbytes
        start = (address - owner.ctypes.data) // array.itemsize
        assert np.array_equal(owner.reshape(-1)[start : start + shape[1]], array[row])


@pytest.mark.parametrize("shape", [(9, 5), (1, 1), (3, 40), (40, 3), (129, 64), (64, 131)])
def test_weights_are_packed_as_panels(shape: Any, dtype: Any) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    assert np.array_equal(dense.pack_forward({"weight": weight}).panels, pack_panels(weight))
    assert np.array_equal(dense.pack_transposed({"weight": weight}).panels, pack_panels(weight.T))


def test_nan_stays_in_its_row() -> None:
    linear = Linear(20, 30, seed=0)
    x = np.ones((50, 20), np.float32)
    expected = linear(x)
    x[7, 3] = np.nan
    output = linear(x)
    assert np.isnan(output[7]).all() and np.array_equal(np.delete(output, 7, 0), np.delete(expected, 7, 0))


def test_linear_takes_any_strides_and_writes_to_nothing() -> None:
    linear = Linear(6, 5, seed=0)
    x = np.random.default_rng(0).standard_normal((12, 4, 8)).astype(np.float32)[::-2, :, 1:-1]
    d_output = np.ones((5, 4, 6), np.float32).T
    x.flags.writeable = d_output.flags.writeable = False
    expected = linear_results(linear, x.copy(), d_output.copy())
    assert all(np.array_equal(array, expected[name]) for name, array in linear_results(linear, x, d_output).items())


def test_the_way_back_keeps_its_weights() -> None:
    linear = Linear(6, 5, seed=0)
    x, ones = np.ones((3, 6), np.float32), np.ones((3, 5), np.float32)
    _, backward = linear.vjp(x)
    expected = ones @ linear.weight
    linear.set_parameters({"weight": np.zeros((5, 6))})
    np.testing.assert_allclose(backward(ones).input, expected, rtol=1e-6)
    assert not linear.vjp(x)[1](ones).input.any()


def test_linear_without() -> None:
    linear = Linear(6, 5, bias=False, seed=0)
    assert (
        linear.bias is None and list(linear.state_dict()) == ["weight"] and repr(linear) == "Linear(6, 5, bias=False)"
    )
    output, backward = linear.vjp(np.ones(6, np.float32), input=False)
    gradients = backward(output)
    assert gradients.input is None and list(gradients.parameters) == ["weight"]
    assert not Linear(6, 5).vjp(np.ones((0, 6), np.float32))[1](np.ones((0, 5), np.float32)).parameters["weight"].any()


def test_linear_starts_as_torch_does(torch: Any) -> None:
    linear, module = Linear(50, 4000, seed=0), torch.nn.Linear(50, 4000)
    for name, parameter in module.named_parameters():
        array, expected = linear.state_dict()[name], parameter.detach().numpy()
        assert array.shape == expected.shape and abs(array.std() / expected.std() - 1) < 0.05
        assert 0.99 / 50**0.5 < np.abs(array).max() <= 1 / 50**0.5


def test_layers_are_copied_pickled_and_converted() -> None:
    x = np.ones((3, 6), np.float32)
    linear = Linear(6, 5, seed=0)
    for twin in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear)), Linear(6, 5, seed=0)):
        assert np.array_equal(twin(x), linear(x))
    assert linear.to(np.float64)(x.astype(np.float64)).dtype == np.float64
    with pytest.raises(AttributeError, match="cannot change"):
        linear.in_features = 7
    with pytest.raises(AttributeError, match="read-only"):
        linear.weight = x


def test_from_state_dict() -> None:
    linear, embedding = Linear(6, 5, seed=0), Embedding(9, 6, seed=0)
    model = {f"head.{name}": array for name, array in linear.state_dict().items()}
    assert np.array_equal(Linear.from_state_dict(model).bias, linear.bias)
    model["table.weight"], model["norm.weight"] = embedding.weight.astype(np.float64), np.ones(5)
    assert np.array_equal(Linear.from_state_dict(model, "head").weight, linear.weight)
    table = Embedding.from_state_dict(model, "table.", padding_idx=-1)
    assert table.dtype == np.float64 and repr(table) == "Embedding(9, 6, padding_idx=8)" and table.weight[8].any()
    assert repr(Linear.from_state_dict(linear.state_dict(), dtype=np.float64)) == "Linear(6, 5)"
    for prefix, words in [
        ("", "got 'head.', 'table.'. Name one"),
        ("norm", "got only head.weight"),
        ("e", "under 'e'"),
    ]:
        with pytest.raises(ValueError, match=words):
            Linear.from_state_dict(model, prefix)
    with pytest.raises(TypeError, match="expected a mapping"):
        Embedding.from_state_dict([1])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        Linear.from_state_dict({"weight": np.ones((5, 6)), "bias": np.ones(4)})


@settings(max_examples=60)
@given(
    shape=SHAPES,
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    data=st.data(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_embedding_against_torch(torch: Any, shape: Any, sizes: Any, data: Any, dtype: Any) -> None:
    padding = data.draw(st.none() | st.integers(-sizes[0], sizes[0] - 1))
    embedding = Embedding(*sizes, padding, dtype=dtype, seed=0)
    module = torch.nn.Embedding(*sizes, padding)
    assert embedding.padding_idx == module.padding_idx
    module.weight.data = torch.tensor(embedding.weight)
    random = np.random.default_rng(1)
    indices = random.integers(0, sizes[0], shape).astype(data.draw(st.sampled_from([np.int64, np.int32, np.uint8])))
    expected = module(torch.tensor(indices.astype(np.int64)))
    output, backward = embedding.vjp(indices)
    assert np.array_equal(output, expected.detach().numpy()) and np.array_equal(embedding(indices), output)
    d_output = random.standard_normal(output.shape).astype(dtype)
    expected.backward(torch.tensor(d_output))
    gradients = backward(d_output)
    assert gradients.input is None and gradients.parameters["weight"].dtype == dtype
    atol = 1e-5 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(gradients.parameters["weight"], module.weight.grad.numpy(), rtol=0, atol=atol)


def test_embedding_starts_normal_but_for_the_padding() -> None:
    table = Embedding(300, 100, padding_idx=-2, seed=0).weight
    assert abs(table.std() - 1) < 0.02 and abs(table.mean()) < 0.02
    assert not table[298].any() and (np.abs(np.delete(table, 298, 0)).sum(axis=1) > 0).all()


def test_equal_indices_are_summed_in_their_order() -> None:
    values = np.array([1e8, 1.0, -1e8, 1.0], np.float32).repeat(9).reshape(4, 9)
    weight = Embedding(3, 9, seed=0).vjp([1, 1, 1, 1])[1](values).parameters["weight"]
    assert weight.tolist() == [[0.0] * 9, [1.0] * 9, [0.0] * 9]


def test_dropout_keeps_and_scales() -> None:
    x = np.random.default_rng(0).standard_normal((50, 20, 30)).astype(np.float32)
    for p in (0.276, 0.5, 0.731):
        output, backward = Dropout(p, seed=1).vjp(x)
        kept = output != 0
        assert abs(kept.mean() - (1 - p)) < 0.01
        np.testing.assert_allclose(output[kept], x[kept] / (1 - p), rtol=1e-5)
        gradients = backward(np.ones_like(x))
        assert gradients.parameters == {} and np.array_equal(gradients.input != 0, kept)
        assert np.array_equal(backward(x).input, output)
    for dropout in (Dropout(0.5).eval(), Dropout(0.0)):
        output, backward = dropout.vjp(x)
        assert np.array_equal(output, x) and output is not x and np.array_equal(backward(x).input, x)
    assert not Dropout(1)(x).any()


def test_the_mask_is_that_of_seed_call_and_position() -> None:
    ones = np.ones((40, 30))
    dropout, same, other = Dropout(seed=1), Dropout(seed=1), Dropout(seed=2)
    first, second = dropout(ones), dropout(ones)
    assert not np.array_equal(first, second) and not np.array_equal(first, other(ones))
    twin = copy.deepcopy(dropout)
    assert np.array_equal(same(ones[:9]), first[:9]) and np.array_equal(
        same(ones.reshape(8, 5, 30)).ravel(), second.ravel()
    )
    assert np.array_equal(dropout(ones, dropout_call=0), first) and np.array_equal(dropout(ones), twin(ones))
    assert np.array_equal(first.astype(np.float32), Dropout(seed=1)(ones.astype(np.float32)))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3, 4, 5)])
def test_dropout_of_every_shape(shape: Any) -> None:
    output, backward = Dropout(seed=0).vjp(np.ones(shape))
    assert output.shape == shape and backward(output).input.shape == shape


@pytest.mark.parametrize("batch", [None, 0, 1, 7])
@pytest.mark.parametrize(
    "layer",
    [LSTM(3, 5, 2, bidirectional=True, proj_size=4), GRU(3, 5, 2), RNN(3, 5, dtype=np.float64)],
    ids=["LSTM", "GRU", "RNN"],
)
def test_initial_state(layer: Any, batch: int | None) -> None:
    initial = InitialState(layer)
    assert initial.dtype == layer.dtype and not any(array.any() for _, array in initial.named_parameters())
    random = np.random.default_rng(0)
    initial.set_parameters({name: random.standard_normal(array.shape) for name, array in initial.named_parameters()})
    states, backward = initial.vjp(batch)
    x = np.ones((6, 3) if batch is None else (6, batch, 3), layer.dtype)
    (output, _), layer_backward = layer.vjp(x, states)
    d_hx = layer_backward(np.ones_like(output)).hx
    found = backward(d_hx).parameters
    for name, state, gradient in zip(found, as_tuple(states), as_tuple(d_hx), strict=True):
        parameter = initial.state_dict()[name]
        rows = [state] if batch is None else np.moveaxis(state, 1, 0)
        assert all(np.array_equal(row, parameter) for row in rows) and state.flags.writeable
        exact = gradient if batch is None else gradient.astype(np.float64).sum(axis=1)
        assert found[name].dtype == layer.dtype
        np.testing.assert_allclose(found[name], exact, rtol=0, atol=1e-6)


@policy.open_entry
def transposed(source, columns, target, rows):
    for k in range(0, columns, lanes_of(source)):
        for i in range(0, rows, lanes_of(source)):
            transpose(source, i * columns + k, columns, target, k * rows + i, rows)


def test_transpose(dtype: Any) -> None:
    side = 2 * policy.lanes(np.dtype(dtype).itemsize)
    source, target = np.arange(6.0 * side * side, dtype=dtype), np.zeros(6 * side * side, dtype)
    transposed(source, 3 * side, target, 2 * side)
    assert np.array_equal(target.reshape(3 * side, 2 * side), source.reshape(2 * side, 3 * side).T)


ONES = np.ones((2, 6), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Linear(0, 3), ValueError, "Linear: in_features must be greater than zero, got 0"),
        (lambda: Linear(2.0, 3), TypeError, "Linear: in_features should be of type int"),
        (lambda: Linear(2, 3, 1), TypeError, "Linear: bias should be of type bool"),
        (lambda: Linear(2, 3, dtype=np.int32), TypeError, "Linear dtype: expected float32 or float64"),
        (lambda: Linear(2, 3, seed=-1), ValueError, "Linear seed"),
        (lambda: Linear(5, 3)(ONES), RuntimeError, r"expected \(\.\.\., 5\) because in_features=5, got \(2, 6\)"),
        (lambda: Linear(5, 3)(np.float32(1)), RuntimeError, r"Linear input: expected \(\.\.\., 5\)"),
        (lambda: Linear(6, 3)(ONES.astype(np.float64)), ValueError, "dtype float64, which does not match weight dtype"),
        (lambda: Linear(6, 3).vjp(ONES)[1](ONES), ValueError, r"Linear backward d_output: expected \(2, 3\)"),
        (lambda: Linear(6, 3).vjp(ONES, input=1), TypeError, "input should be of type bool"),
        (lambda: Embedding(5, 0), ValueError, "Embedding: embedding_dim must be greater"),
        (lambda: Embedding(5, 2, 5), ValueError, "Embedding padding_idx: expected -5 ... 4"),
        (lambda: Embedding(5, 2, True), TypeError, "Embedding: padding_idx should be of type int"),
        (lambda: Embedding(5, 2)([4, 5]), IndexError, "indices: expected 0 ... 4 because num_embeddings=5, got 5"),
        (lambda: Embedding(5, 2)([-1]), IndexError, "got -1"),
        (lambda: Embedding(5, 2)(np.uint64(2**63)), IndexError, f"got {2**63}"),
        (lambda: Embedding(5, 2)([1.0]), TypeError, "Embedding indices: expected whole numbers, got dtype float64"),
        (lambda: Embedding(5, 2)([True]), TypeError, "whole numbers, got dtype bool"),
        (lambda: Embedding(5, 6).vjp([1])[1](ONES), ValueError, r"Embedding backward d_output: expected \(1, 6\)"),
        (lambda: Dropout(1.5), ValueError, r"Dropout: dropout should be a number in range \[0, 1\]"),
        (lambda: Dropout()(np.ones(3, int)), TypeError, "Dropout input: expected float32 or float64, got int64"),
        (lambda: Dropout()(ONES, dropout_call=-1), ValueError, "Dropout dropout_call"),
        (lambda: Dropout().vjp(ONES)[1](ONES[0]), ValueError, r"Dropout backward d_output: expected \(2, 6\)"),
        (lambda: InitialState(Linear(2, 3)), TypeError, "InitialState layer: expected an LSTM, GRU or RNN, got Linear"),
        (lambda: InitialState(GRU(2, 3))(-1), ValueError, "InitialState batch: expected 0 or more, got -1"),
        (lambda: InitialState(GRU(2, 3))(2.5), TypeError, "InitialState batch: expected a whole number"),
        (lambda: InitialState(GRU(2, 6)).vjp(2)[1](ONES), ValueError, r"d_hx: expected \(1, 2, 6\)"),
        (lambda: InitialState(LSTM(2, 6)).vjp(2)[1](ONES), TypeError, "d_hx: expected a tuple of 2 arrays"),
    ],
)
def test_errors(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_bias_of_many_rows() -> None:
    dy = np.random.default_rng(0).standard_normal((30_000, 20)).astype(np.float32)
    exact = dy.sum(axis=0, dtype=np.float64)
    scale = np.abs(dy).sum(axis=0, dtype=np.float64)
    for inputs in (5, 40):
        _, backward = Linear(inputs, 20, seed=0).vjp(np.ones((30_000, inputs), np.float32))
        assert np.all(np.abs(backward(dy).parameters["bias"] - exact) < 1e-8 * scale)


def test_infinite_gradients_do_not_warn() -> None:
    dy = np.full((300, 20), np.inf, np.float32)
    dy[::2] = -np.inf
    _, backward = Linear(5, 20, seed=0).vjp(np.ones((300, 5), np.float32))
    assert np.isnan(backward(dy).parameters["bias"]).all()
