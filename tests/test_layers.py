"""Layers as objects: parameters, state dicts, copies, modes, representation."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from cases import KINDS, Case, assert_same_bits, own_options, random_inputs, torch_twin

from nblstm import GRU, LSTM, RNN, LSTMCell, RNNCell

ALL = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True}
LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2}),
    ("LSTM", {"bias": False}),
    ("LSTM", {"batch_first": True}),
    ("LSTM", {"num_layers": 3, "dropout": 0.25}),
    ("LSTM", {"proj_size": 2}),
    ("LSTM", {**ALL, "proj_size": 3}),
    ("GRU", {}),
    ("GRU", ALL),
    ("RNN", ALL),
    ("RNN relu", {"num_layers": 2}),
]


@pytest.fixture
def layer() -> LSTM:
    return LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, seed=1)


@pytest.mark.parametrize(("kind", "arguments"), LAYERS, ids=str)
def test_torch_prints_and_names_the_same(kind: str, arguments: dict[str, Any], torch: Any) -> None:
    layer = KINDS[kind](5, 6, **arguments)
    module = getattr(torch.nn, type(layer).__name__)(5, 6, **arguments, **own_options(layer))
    assert repr(layer).replace(", nonlinearity='relu'", "") == repr(module)  # torch does not say it
    assert [(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()] == [
        (name, array.shape) for name, array in layer.named_parameters()
    ]
    assert list(layer.state_dict()) == list(module.state_dict())


def test_attributes(layer: LSTM) -> None:
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.proj_size) == (3, 4, 2, 2)
    assert (layer.bias, layer.batch_first, layer.dropout, layer.bidirectional) == (True, False, 0.0, True)
    assert layer.dtype == np.float32
    assert layer.weight_ih_l1_reverse.shape == (16, 4)
    assert "weight_hr_l0" in dir(layer)
    with pytest.raises(AttributeError, match="'LSTM' object has no attribute 'weight_ih_l2'"):
        _ = layer.weight_ih_l2


def test_an_rnn_says_what_its_nonlinearity_is() -> None:
    assert repr(RNN(3, 4, 2, "relu")) == "RNN(3, 4, num_layers=2, nonlinearity='relu')"
    assert repr(RNNCell(3, 4, False, "relu")) == "RNNCell(3, 4, bias=False, nonlinearity='relu')"
    for layer in (RNN(3, 4), RNNCell(3, 4)):
        assert layer.nonlinearity == "tanh"
        with pytest.raises(AttributeError, match="nonlinearity cannot change after construction"):
            layer.nonlinearity = "relu"


def test_initial_parameters() -> None:
    layer = LSTM(30, 50, num_layers=2, seed=1)
    bound = 1 / math.sqrt(50)
    for _, array in layer.named_parameters():
        assert np.abs(array).max() <= np.float32(bound)
        assert np.abs(array.mean()) < 4 * bound / math.sqrt(3 * array.size)
        assert array.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert_same_bits(tuple(LSTM(30, 50, 2, seed=1).state_dict().values()), tuple(layer.state_dict().values()))
    in_double = LSTM(30, 50, 2, seed=1, dtype=np.float64)
    assert_same_bits(in_double.weight_hh_l1.astype(np.float32), layer.weight_hh_l1)
    for other in (LSTM(30, 50, 2, seed=2), LSTM(30, 50, 2), LSTM(30, 50, 2)):
        assert (other.weight_ih_l0 != layer.weight_ih_l0).any()


def test_parameters_are_read_only(layer: LSTM) -> None:
    for array in (
        layer.weight_ih_l0,
        layer.state_dict()["weight_ih_l0"],
        dict(layer.named_parameters())["weight_ih_l0"],
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
    with pytest.raises(AttributeError, match="use set_parameters"):
        layer.weight_ih_l0 = np.zeros((16, 3))
    with pytest.raises(AttributeError, match="cannot change after construction"):
        layer.hidden_size = 5
    for name in ("hidden_size", "proj_size", "weight_ih_l0", "_weights"):
        with pytest.raises(AttributeError, match=rf"LSTM\.{name} cannot be deleted"):
            delattr(layer, name)


def test_state_dict_is_a_snapshot(layer: LSTM) -> None:
    before = layer.state_dict()
    copies = {name: array.copy() for name, array in before.items()}
    layer.set_parameters({name: array + 1 for name, array in before.items()})
    assert_same_bits(tuple(before.values()), tuple(copies.values()))
    before.clear()
    assert len(layer.state_dict()) == len(copies)


def test_load_state_dict(layer: LSTM) -> None:
    other = LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, seed=2)
    missing, unexpected = other.load_state_dict(layer.state_dict())
    assert (missing, unexpected) == ([], [])
    x, hx = random_inputs(layer, 5, 3)
    assert_same_bits(other(x, hx), layer(x, hx))


def test_loaded_arrays_are_copied(layer: LSTM) -> None:
    mine = {name: array.copy() for name, array in layer.named_parameters()}
    layer.load_state_dict(mine)
    before = layer.weight_ih_l0.copy()
    mine["weight_ih_l0"][...] = 7
    assert_same_bits(layer.weight_ih_l0, before)
    assert mine["weight_ih_l0"].flags.writeable


def test_load_state_dict_converts(layer: LSTM) -> None:
    values = {name: np.asfortranarray(array.astype(np.float64)) for name, array in layer.named_parameters()}
    before = layer.state_dict()
    layer.load_state_dict(values)
    assert layer.dtype == np.float32
    assert_same_bits(tuple(layer.state_dict().values()), tuple(before.values()))


@pytest.mark.parametrize("way", ["load_state_dict", "from_state_dict", "to"])
def test_what_float32_does_not_reach_is_inf_as_in_torch(way: str) -> None:
    source = LSTM(3, 4, dtype=np.float64)
    source.set_parameters({"bias_ih_l0": np.full(16, -1e300)})
    layer = LSTM(3, 4)
    with np.errstate(all="raise"):
        if way == "to":
            layer = source.to(np.float32)
        elif way == "from_state_dict":
            layer = LSTM.from_state_dict(source.state_dict(), dtype=np.float32)
        else:
            layer.load_state_dict(source.state_dict())
    assert (layer.bias_ih_l0 == -np.inf).all()


def test_load_state_dict_lists_all_problems_and_changes_nothing(layer: LSTM) -> None:
    before = layer.state_dict()
    bad = {name: array + 1 for name, array in before.items()}
    del bad["weight_hh_l0"], bad["bias_ih_l1"]
    bad |= {"weight": np.zeros(1), "bias": np.zeros(1), "weight_ih_l0": np.zeros((16, 4)), "weight_ih_l1": np.zeros(3)}
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(bad)
    for words in (
        "LSTM.load_state_dict state_dict: expected the parameters of LSTM(3, 4, proj_size=2",
        'Missing key(s): "weight_hh_l0", "bias_ih_l1"',
        'Unexpected key(s): "weight", "bias"',
        "size mismatch for weight_ih_l0: expected (16, 3), got (16, 4)",
        "size mismatch for weight_ih_l1: expected (16, 4), got (3,)",
    ):
        assert words in str(caught.value)
    assert_same_bits(tuple(layer.state_dict().values()), tuple(before.values()))


def test_load_state_dict_not_strict(layer: LSTM) -> None:
    before = layer.state_dict()
    result = layer.load_state_dict({"weight_ih_l0": np.ones((16, 3)), "other": np.zeros(1)}, strict=False)
    assert result.unexpected_keys == ["other"]
    assert result.missing_keys == [name for name in before if name != "weight_ih_l0"]
    assert (layer.weight_ih_l0 == 1).all()
    assert_same_bits(layer.weight_hh_l0, before["weight_hh_l0"])
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        layer.load_state_dict({"weight_ih_l0": np.ones((16, 4))}, strict=False)


def test_set_parameters(layer: LSTM) -> None:
    x, hx = random_inputs(layer, 5, 3)
    layer(x, hx)
    order = list(layer.state_dict())
    layer.set_parameters({"bias_ih_l1": np.ones(16), "weight_hr_l0": np.zeros((2, 4))})
    assert list(layer.state_dict()) == order
    assert (layer.bias_ih_l1 == 1).all()
    assert not layer(x, hx)[1][0][0].any()  # what was packed before is not used any more
    with pytest.raises(RuntimeError, match='Unexpected key\\(s\\): "weight"'):
        layer.set_parameters({"weight": np.zeros(1), "bias_ih_l1": np.zeros(16)})
    with pytest.raises(RuntimeError, match="complex numbers in bias_ih_l1"):
        layer.set_parameters({"bias_ih_l1": np.zeros(16, complex)})
    assert (layer.bias_ih_l1 == 1).all()


@pytest.mark.parametrize("method", ["load_state_dict", "set_parameters"])
@pytest.mark.parametrize("value", [None, "weights", [("weight_ih_l0", np.zeros(3))]], ids=repr)
def test_parameters_come_in_a_mapping_of_arrays(layer: LSTM, method: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"LSTM\.{method} .* expected a mapping of names to arrays"):
        getattr(layer, method)(value)
    with pytest.raises(TypeError, match=r"'weight_ih_l0'.*expected an array"):
        getattr(layer, method)({**layer.state_dict(), "weight_ih_l0": value})


def test_torch_state_dict(case: Case, torch: Any) -> None:
    module = torch_twin(torch, case.layer())
    layer = KINDS[case.kind](case.input_size, case.hidden_size, **case.arguments)
    layer.load_state_dict(module.state_dict())
    assert_same_bits(tuple(layer.state_dict().values()), tuple(case.layer().state_dict().values()))


@pytest.mark.parametrize("prefix", ["", "encoder.lstm."])
def test_from_state_dict(case: Case, dtype: Any, prefix: str) -> None:
    layer = case.layer(dtype)
    state_dict = {prefix + name: array for name, array in layer.named_parameters()}
    kind, own = type(layer), own_options(layer)
    for found in (kind.from_state_dict(state_dict, prefix, **own), kind.from_state_dict(state_dict, **own)):
        assert repr(found) == repr(layer)
        assert found.dtype == dtype
        x, hx = case.inputs(dtype)
        assert_same_bits(found(x, hx), layer(x, hx))


def test_from_state_dict_options(layer: LSTM) -> None:
    found = LSTM.from_state_dict(layer.state_dict(), batch_first=True, dtype=np.float64)
    assert found.batch_first
    assert found.dtype == np.float64
    half = {name: array.astype(np.float16) for name, array in layer.named_parameters()}
    assert LSTM.from_state_dict(half).dtype == np.float32
    with pytest.raises(ValueError, match="decoder"):
        LSTM.from_state_dict(layer.state_dict(), "decoder.")
    two = {prefix + name: array for prefix in ("one.", "two.") for name, array in layer.named_parameters()}
    with pytest.raises(ValueError, match=r"one\.[\s\S]*two\."):
        LSTM.from_state_dict(two)
    assert repr(LSTM.from_state_dict({**two, "head.weight": np.zeros((1, 2))}, "two.")) == repr(layer)


def test_from_state_dict_takes_the_layer_of_its_kind() -> None:
    """Gates are counted in the shapes; a nonlinearity is in no weight."""
    layers = [LSTM(3, 4, seed=1), GRU(3, 4, seed=2), RNN(3, 4, seed=3)]
    model = {f"{type(layer).__name__}.{name}": array for layer in layers for name, array in layer.named_parameters()}
    for layer in layers:
        assert_same_bits(type(layer).from_state_dict(model).weight_hh_l0, layer.weight_hh_l0)
    assert RNN.from_state_dict(model).nonlinearity == "tanh"
    assert RNN.from_state_dict(model, nonlinearity="relu").nonlinearity == "relu"
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sine'"):
        RNN.from_state_dict(model, nonlinearity="sine")
    with pytest.raises(TypeError, match="nonlinearity"):
        GRU.from_state_dict(model, nonlinearity="relu")
    with pytest.raises(ValueError, match="the weights of LSTM"):
        GRU.from_state_dict(layers[0].state_dict())
    projected = {**layers[1].state_dict(), "weight_hr_l0": np.zeros((2, 4)), "weight_hh_l0": np.zeros((12, 2))}
    with pytest.raises(ValueError, match="GRU has no projection"):
        GRU.from_state_dict(projected)


@pytest.mark.parametrize("kind", [LSTM, LSTMCell])
def test_from_state_dict_draws_nothing(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.calls = 0

    state_dict = Encoder(3, 4).state_dict()
    attributes = vars(Encoder(3, 4)).keys()
    complex_numbers = {name: array.astype(complex) for name, array in state_dict.items()}
    monkeypatch.setattr(np.random, "default_rng", None)
    found = Encoder.from_state_dict(state_dict)
    assert found.calls == 0
    assert vars(found).keys() == attributes
    assert_same_bits(tuple(found.state_dict().values()), tuple(state_dict.values()))
    with pytest.raises(RuntimeError, match="complex numbers in weight_ih"):
        Encoder.from_state_dict(complex_numbers)


def test_to(layer: LSTM) -> None:
    before = layer.weight_ih_l0
    assert layer.to(np.float64) is layer
    assert layer.dtype == np.float64
    assert layer(np.zeros((2, 1, 3)))[0].dtype == np.float64
    assert_same_bits(layer.to("float32").weight_ih_l0, before)
    for dtype in (np.float16, np.int32, complex, "words", None):
        with pytest.raises(TypeError):
            layer.to(dtype)
    assert layer.dtype == np.float32


def test_modes(layer: LSTM) -> None:
    assert layer.training
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train().training
    with pytest.raises(ValueError, match="training mode is expected to be boolean, got 1"):
        layer.train(1)


@pytest.mark.parametrize(("kind", "arguments"), LAYERS, ids=str)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
def test_copies(kind: str, arguments: dict[str, Any], called: bool, dtype: Any) -> None:
    layer = KINDS[kind](5, 6, **arguments, dtype=dtype, seed=1)
    x, hx = random_inputs(layer, 4, 4)
    if called:
        layer(x, hx)
    dumps = [pickle.dumps(layer, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    twins = [copy.copy(layer), copy.deepcopy(layer), *map(pickle.loads, dumps)]
    expected = [layer(x, hx) for _ in range(3)]  # with dropout, three different ones
    for twin in twins:
        assert repr(twin) == repr(layer)
        assert twin.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            twin.weight_ih_l0[...] = 0
        for result in expected:
            assert_same_bits(twin(x, hx), result)
        twin.set_parameters({"weight_ih_l0": np.zeros_like(layer.weight_ih_l0)})
    assert layer.weight_ih_l0.any()


def test_unpickled_weights_are_a_copy_of_what_they_came_in(layer: LSTM) -> None:
    buffers: list[pickle.PickleBuffer] = []
    dump = pickle.dumps(layer, 5, buffer_callback=buffers.append)
    memory = [bytearray(buffer) for buffer in buffers]
    twin = pickle.loads(dump, buffers=memory)
    for buffer in memory:
        buffer[:] = bytes(len(buffer))
    assert_same_bits(twin.weight_ih_l0, layer.weight_ih_l0)


def test_dropout_of_a_single_layer_warns_as_in_torch(build: Any, torch: Any) -> None:
    with pytest.warns(UserWarning, match="num_layers greater than 1") as theirs:
        torch.nn.LSTM(3, 4, dropout=0.5)
    with pytest.warns(UserWarning, match="num_layers greater than 1") as ours:
        build(3, 4, dropout=0.5)
    assert str(ours[0].message) == str(theirs[0].message)
    assert ours[0].filename == __file__


def test_subclasses_keep_their_name_in_errors() -> None:
    class Encoder(LSTM):
        pass

    with pytest.raises(ValueError, match=r"^Encoder: hidden_size must be greater than zero"):
        Encoder(3, 0)


def test_no_warning_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LSTM(3, 4, num_layers=2, dropout=0.5)
        LSTM(3, 4, dropout=0.0)
        LSTMCell(3, 4)
