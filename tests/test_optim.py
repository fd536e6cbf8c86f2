"""Optimisers: torch's numbers for every option, and steps that do all or nothing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import KINDS, Bare, assert_close, random_gradients, set_gradients, twins

import nblstm
from nblstm import GRU, LSTM, RNN
from nblstm.layers.base import update_lock
from nblstm.training import SGD, Adam


@st.composite
def kinds(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind = draw(st.sampled_from(list(KINDS)))
    options: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.0, 1e-3, 0.03])),
        "weight_decay": draw(st.sampled_from([0, 0.01, 0.3])),
        "maximize": draw(st.booleans()),
    }
    if kind == "SGD":
        options["momentum"] = draw(st.sampled_from([0, 0.5, 0.9]))
        options["nesterov"] = draw(st.booleans()) and options["momentum"] > 0
        options["dampening"] = 0 if options["nesterov"] else draw(st.sampled_from([0, 0.3, -0.5]))
    else:
        betas = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999])
        options |= {"betas": (draw(betas), draw(betas)), "amsgrad": draw(st.booleans())}
        options["eps"] = draw(st.sampled_from([1e-8, 1e-3]))
    return kind, options


@settings(max_examples=80)
@given(kind=kinds(), sizes=st.tuples(st.integers(0, 70), st.integers(1, 3)), double=st.booleans(), data=st.data())
def test_against_torch(torch: Any, kind: Any, sizes: tuple[int, int], double: bool, data: st.DataObject) -> None:
    name, options = kind
    layer = Bare({"a": sizes, "b": (sizes[0],), "c": ()}, np.float64 if double else np.float32)
    (parameters,) = twins(torch, layer)
    ours, theirs = KINDS[name](layer, **options), getattr(torch.optim, name)(parameters, **options)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(8):
        gradients = random_gradients(layer, random)
        for skipped in data.draw(st.sets(st.sampled_from("abc"), max_size=2)):
            gradients[skipped] = None
        ours.step([gradients])
        set_gradients(torch, [parameters], [gradients], [list("abc")])
        theirs.step()
    assert_close(layer, parameters)
    got, expected = ours.state_dict(), theirs.state_dict()
    assert sorted(got["state"]) == sorted(number for number, state in expected["state"].items() if state)
    for number, state in got["state"].items():
        assert set(state) == set(expected["state"][number])
        assert "step" not in state or state["step"] == expected["state"][number]["step"].numpy()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}),
        ("Adam", {"weight_decay": 0.01}),
        ("Adam", {"amsgrad": True, "maximize": True}),
        ("AdamW", {"lr": 0.01}),
    ],
    ids=str,
)
def test_two_hundred_steps(kind: str, options: dict[str, Any], dtype: Any, torch: Any) -> None:
    """As near to torch as its own rounding allows: SGD is equal to the bit, Adam but for torch's square root."""
    layer = Bare({"a": (37, 29), "b": (4097,)}, dtype)
    (parameters,) = twins(torch, layer)
    ours, theirs = KINDS[kind](layer, **options), getattr(torch.optim, kind)(parameters, **options)
    random = np.random.default_rng(0)
    for step in range(200):
        gradients = random_gradients(layer, random)
        if step == 100:
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.005
        ours.step(gradients)
        set_gradients(torch, [parameters], [gradients], [["a", "b"]])
        theirs.step()
    assert_close(layer, parameters, 4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_goes_where_torchs_goes(kind: str, torch: Any) -> None:
    lstm, gru = LSTM(3, 8, seed=0, dtype=np.float64), GRU(8, 4, seed=1, dtype=np.float64)
    modules = torch.nn.LSTM(3, 8).double(), torch.nn.GRU(8, 4).double()
    for module, layer in zip(modules, (lstm, gru), strict=True):
        module.load_state_dict({name: torch.tensor(np.array(a)) for name, a in layer.named_parameters()})
    groups = [{"params": [0]}, {"params": [1], "lr": 0.02, "weight_decay": 0.1}]
    ours = KINDS[kind]([{**group, "params": [(lstm, gru)[group["params"][0]]]} for group in groups], lr=0.05)
    their_groups = [{**group, "params": modules[group["params"][0]].parameters()} for group in groups]
    theirs = getattr(torch.optim, kind)(their_groups, lr=0.05)
    x = np.random.default_rng(0).standard_normal((6, 5, 3))
    losses = []
    for _ in range(20):
        (hidden, _), lstm_backward = lstm.vjp(x, input=False)
        (output, _), gru_backward = gru.vjp(hidden)
        losses.append(float(((output - 0.5) ** 2).sum()))
        gru_gradients = gru_backward(2 * (output - 0.5))
        ours.step([lstm_backward(gru_gradients.input), gru_gradients])
        theirs.zero_grad()
        ((modules[1](modules[0](torch.tensor(x))[0])[0] - 0.5) ** 2).sum().backward()
        theirs.step()
    assert losses[-1] < 0.9 * losses[0]
    for module, layer in zip(modules, (lstm, gru), strict=True):
        for name, array in layer.named_parameters():
            assert np.allclose(array, dict(module.named_parameters())[name].detach().numpy(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_bits_for_any_number_of_threads_and_place(kind: str, dtype: Any) -> None:
    layers = [Bare({"a": (3 * 2**17 + 5,), "b": (11,)}, dtype) for _ in range(3)]
    random = np.random.default_rng(0)
    gradients = [random_gradients(layers[0], random) for _ in range(3)]
    for layer, threads in zip(layers, (1, 2, 2), strict=True):
        optimizer = KINDS[kind](layer, lr=0.1, weight_decay=0.1, **({"momentum": 0.9} if kind == "SGD" else {}))
        with nblstm.num_threads(threads):
            for given in gradients:
                optimizer.step(given)
        assert np.array_equal(layer.a, layers[0].a) and np.array_equal(layer.b, layers[0].b)
    end = Bare({"a": (5,)}, dtype)
    end.set_parameters({"a": Bare({"a": (3 * 2**17 + 5,)}, dtype).a[-5:]})
    optimizer = KINDS[kind](end, lr=0.1, weight_decay=0.1, **({"momentum": 0.9} if kind == "SGD" else {}))
    for given in gradients:
        optimizer.step({"a": given["a"][-5:]})
    assert np.array_equal(end.a, layers[0].a[-5:])


def test_versions_never_change_and_gradients_are_only_read() -> None:
    layer = LSTM(2, 3, seed=0)
    old, values = layer.weight_ih_l0, np.array(layer.weight_ih_l0)
    x = np.ones((4, 1, 2), np.float32)
    (output, _), backward = layer.vjp(x)
    expected = backward(output).parameters["weight_hh_l0"]
    gradients = {"weight_ih_l0": np.asfortranarray(np.ones((12, 2), np.float32)), "weight_hh_l0": layer.weight_hh_l0}
    gradients["weight_ih_l0"].flags.writeable = False
    SGD(layer, lr=0.5).step(gradients)
    assert np.array_equal(old, values) and np.array_equal(layer.weight_ih_l0, values - np.float32(0.5))
    assert np.array_equal(backward(output).parameters["weight_hh_l0"], expected)
    assert not layer.weight_ih_l0.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        layer.weight_ih_l0.flags.writeable = True


def test_a_bad_gradient_leaves_everything_as_it_was() -> None:
    layers = [GRU(2, 3, seed=0), RNN(2, 3, seed=0)]
    optimizer, random = Adam(layers), np.random.default_rng(0)
    good = [random_gradients(layer, random) for layer in layers]
    optimizer.step(good)
    before, state = [layer.state_dict() for layer in layers], repr(optimizer.state_dict())
    bad: list[tuple[Any, type[Exception], str]] = [
        ({**good[1], "weight_hh_l0": np.ones((3, 2), np.float32)}, RuntimeError, r"\[1\]\['weight_hh_l0'\]: expected"),
        ({**good[1], "weight_hh_l0": np.ones((3, 3))}, ValueError, "expected dtype float32, got dtype float64"),
        ({**good[1], "weight": np.ones((3, 3))}, RuntimeError, "got 'weight'"),
        ({**good[1], "weight_hh_l0": "words"}, TypeError, "expected an array"),
        (3, TypeError, r"gradients\[1\]: expected a mapping"),
    ]
    for entry, error, words in bad:
        with pytest.raises(error, match=words):
            optimizer.step([good[0], entry])
    for gradients, error, words in [
        (good[:1], ValueError, "expected 2 entries, one for each layer, got 1"),
        (good[0], ValueError, "expected 2 entries"),
        (7, TypeError, "expected a list with one entry"),
    ]:
        with pytest.raises(error, match=words):
            optimizer.step(gradients)
    for name, value, error in [("lr", np.nan, ValueError), ("betas", (0.9, 1.0), ValueError), ("eps", "1", TypeError)]:
        kept = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = value
        with pytest.raises(error, match="Adam: Invalid"):
            optimizer.step(good)
        optimizer.param_groups[0][name] = kept
    assert repr(optimizer.state_dict()) == state
    for layer, named in zip(layers, before, strict=True):
        assert all(array is named[name] for name, array in layer.named_parameters())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("SGD", {"lr": -1}, "Invalid learning rate: -1"),
        ("SGD", {"momentum": -0.5}, "Invalid momentum value: -0.5"),
        ("SGD", {"weight_decay": -0.5}, "Invalid weight_decay value: -0.5"),
        ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ("SGD", {"nesterov": True, "momentum": 1, "dampening": 1}, "Nesterov momentum requires a momentum and zero"),
        ("Adam", {"lr": -1}, "Invalid learning rate: -1"),
        ("Adam", {"lr": np.inf}, "Invalid learning rate: inf"),
        ("Adam", {"eps": -1}, "Invalid epsilon value: -1"),
        ("Adam", {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ("Adam", {"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ("Adam", {"betas": 0.9}, "betas must be two floats"),
        ("AdamW", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ],
)
def test_bad_options(kind: str, options: dict[str, Any], words: str) -> None:
    layer = GRU(2, 3)
    for layers, arguments in ((layer, options), ([{"params": [layer], **options}], {})):
        with pytest.raises(ValueError, match=words):
            KINDS[kind](layers, **arguments)


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ([], ValueError, "optimizer got an empty parameter list"),
        ([3], TypeError, "can only optimize layers of nblstm, but one of the params is int"),
        ({GRU(2, 3)}, TypeError, "Please use a list"),
        (5, TypeError, "expected a layer"),
        ([{"lr": 1}], ValueError, "'params'"),
    ],
)
def test_bad_layers(layers: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SGD(layers)


def test_a_layer_belongs_to_one_group() -> None:
    layer = GRU(2, 3)
    for layers in ([layer, layer], [{"params": layer}, {"params": [layer]}]):
        with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
            SGD(layers)
    with pytest.raises(TypeError, match="SGD: nesterov should be of type bool"):
        SGD(layer, nesterov=1)  # type: ignore[arg-type]


def test_no_step_of_two_threads_is_lost() -> None:
    layer = Bare({"a": (10_000,)})
    start, ones = np.array(layer.a), {"a": np.ones(10_000, np.float32)}

    def work() -> None:
        optimizer = SGD(layer, lr=1.0)
        for _ in range(50):
            optimizer.step(ones)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert np.abs(start - layer.a - 150).max() < 1e-3


def test_new_arrays_are_taken_over_or_refused() -> None:
    layer = Bare({"a": (3, 2), "b": (2,)})
    old, new = layer._weights, np.ones((3, 2), np.float32)
    for bad in (np.ones((2, 3), np.float32), np.ones((3, 2)), np.ones((2, 3), np.float32).T, new[:]):
        with pytest.raises(RuntimeError, match="Bare new parameters: expected"):
            layer._take_over(old, {"a": bad})
    with pytest.raises(RuntimeError, match="Bare new parameters: expected"):
        layer._take_over(old, {"c": new})
    assert layer._weights is old
    with update_lock():
        layer.set_parameters({"b": [5, 5]})  # as a signal handler could
        with pytest.raises(RuntimeError, match="expected the weights they were computed from"):
            layer._take_over(old, {"a": new})
    assert layer.b[0] == 5
    layer._take_over(layer._weights, {"a": new})
    assert np.shares_memory(layer.a, new) and not new.flags.writeable and layer.b[0] == 5
