"""The state of optimisers: torch's layout, from there and to there; copies and pickles."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optimizers import KINDS, assert_close, random_gradients, set_gradients, twins

import nblstm
from nblstm import GRU, LSTM, RNN
from nblstm.training import SGD, Adam, AdamW


@pytest.mark.parametrize(
    ("kind", "options"), [("SGD", {"momentum": 0.9}), ("SGD", {}), ("Adam", {"amsgrad": True}), ("AdamW", {"lr": 0.01})]
)
@pytest.mark.parametrize("begins", ["here", "in torch"])
def test_half_a_run_here_and_half_in_torch(
    kind: str, options: Any, begins: str, dtype: Any, torch: Any, tmp_path: Path
) -> None:
    layers = LSTM(3, 4, seed=0, dtype=dtype), RNN(4, 5, seed=1, dtype=dtype)
    whole, part = twins(torch, *layers), twins(torch, *layers)
    make, names = getattr(torch.optim, kind), [[name for name, _ in layer.named_parameters()] for layer in layers]

    def torch_groups(parameters: list[list[Any]]) -> Any:
        return [{"params": parameters[0]}, {"params": parameters[1], "lr": 0.02}]

    their_whole, theirs = make(torch_groups(whole), **options), make(torch_groups(part), **options)
    ours = KINDS[kind]([{"params": [layers[0]]}, {"params": layers[1], "lr": 0.02}], **options)
    random = np.random.default_rng(0)

    def step(here: bool) -> None:
        gradients = [random_gradients(layer, random) for layer in layers]
        gradients[1].pop("bias_hh_l0")
        if here:
            ours.step(gradients)
        for optimizer, parameters in ((their_whole, whole), *([] if here else [(theirs, part)])):
            set_gradients(torch, parameters, gradients, names)
            optimizer.step()

    for _ in range(5):
        step(begins == "here")
    if begins == "here":
        state = ours.state_dict()
        for values in state["state"].values():
            values.update({name: torch.from_numpy(array) for name, array in values.items()})
        theirs.load_state_dict(state)
        with torch.no_grad():
            for own, layer in zip(part, layers, strict=True):
                for parameter, (_, array) in zip(own, layer.named_parameters(), strict=True):
                    parameter.copy_(torch.tensor(np.array(array)))
    else:
        torch.save(theirs.state_dict(), tmp_path / "optimizer.pt")
        ours.load_state_dict(nblstm.load(tmp_path / "optimizer.pt"))
        for own, layer, named in zip(part, layers, names, strict=True):
            layer.set_parameters({n: p.detach().numpy() for n, p in zip(named, own, strict=True)})
    for _ in range(5):
        step(begins != "here")
    for one, other, layer in zip(whole, part, layers, strict=True):
        if begins == "here":
            for parameter, expected in zip(other, one, strict=True):
                assert torch.allclose(parameter, expected, rtol=0, atol=8 * np.finfo(dtype).eps)
        else:
            assert_close(layer, one)
    assert begins == "here" or "foreach" in ours.state_dict()["param_groups"][0]


def test_a_state_dict_stays_as_it_was_and_loads_again() -> None:
    layer = LSTM(2, 3, seed=0)
    optimizer, random = Adam(layer), np.random.default_rng(0)
    first, second = random_gradients(layer, random), random_gradients(layer, random)
    optimizer.step(first)
    saved, weights = optimizer.state_dict(), layer.state_dict()
    kept = copy.deepcopy(saved)
    assert saved["state"][0]["step"].dtype == np.float32 and saved["state"][0]["step"].shape == ()
    optimizer.step(second)
    expected = layer.state_dict()
    assert repr(saved) == repr(kept)
    other = LSTM(2, 3)
    other.load_state_dict(weights)
    again = Adam(other, lr=0.7, betas=(0.1, 0.2))
    again.load_state_dict(saved)
    saved["state"][0]["exp_avg"][...] = 7  # it was copied
    again.step(second)
    assert all(np.array_equal(array, expected[name]) for name, array in other.named_parameters())


def test_dtype_of_a_layer_may_change_with_its_state() -> None:
    layer = GRU(2, 3, seed=0)
    optimizer = SGD(layer, momentum=0.5)
    optimizer.step(random_gradients(layer, np.random.default_rng(0)))
    layer.to(np.float64)
    gradients = random_gradients(layer, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match=r"momentum_buffer of GRU weight_ih_l0: expected dtype float64, got dtype f"):
        optimizer.step(gradients)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(gradients)
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].dtype == np.float64


@pytest.mark.parametrize("take", [lambda pair: pickle.loads(pickle.dumps(pair)), copy.deepcopy])
def test_a_copy_goes_on_by_itself(take: Any) -> None:
    layer = LSTM(2, 3, seed=0)
    optimizer, random = AdamW(layer), np.random.default_rng(0)
    optimizer.step(random_gradients(layer, random))
    other, again = take((layer, optimizer))
    gradients, before = random_gradients(layer, random), other.state_dict()
    optimizer.step(gradients)
    assert all(np.array_equal(array, before[name]) for name, array in other.named_parameters())
    again.step(gradients)
    assert all(np.array_equal(array, dict(layer.named_parameters())[name]) for name, array in other.named_parameters())


def test_a_bad_state_leaves_the_optimiser_as_it_was() -> None:
    layer = GRU(2, 3, seed=0)
    optimizer = Adam(layer)
    optimizer.step(random_gradients(layer, np.random.default_rng(0)))
    good, before = optimizer.state_dict(), repr(optimizer.state_dict())
    group, state = good["param_groups"][0], good["state"]

    def entry(**values: Any) -> dict[str, Any]:
        return {**good, "state": {**state, 3: {**state[3], **values}}}

    bad: list[tuple[Any, type[Exception], str]] = [
        (3, TypeError, "expected a mapping"),
        ({"state": {}}, ValueError, "'param_groups'"),
        ({**good, "param_groups": [group, group]}, ValueError, "a different number of parameter groups"),
        (
            {**good, "param_groups": [{**group, "params": [0]}]},
            ValueError,
            "doesn't match the size of optimizer's group",
        ),
        ({**good, "param_groups": [{"params": [0, 1, 2, 3]}]}, ValueError, "expected the option"),
        ({**good, "param_groups": [{**group, "lr": -1}]}, ValueError, "Invalid learning rate"),
        ({**good, "state": {4: state[0]}}, ValueError, "number of a parameter"),
        (entry(exp_avg=np.ones(3)), ValueError, r"\[3\]\['exp_avg'\]: expected floats of shape \(9,\)"),
        (entry(exp_avg=np.ones(9, int)), ValueError, "expected floats"),
        (entry(momentum_buffer=np.ones(9)), ValueError, "momentum_buffer"),
        (entry(exp_avg=None), ValueError, "expected the names"),
        (entry(step=-1), ValueError, "a whole number of steps"),
        (entry(step=1.5), ValueError, "a whole number of steps"),
        (entry(step=np.nan), ValueError, "a whole number of steps"),
    ]
    for state_dict, error, words in bad:
        with pytest.raises(error, match=words):
            optimizer.load_state_dict(state_dict)
        assert repr(optimizer.state_dict()) == before


def test_states_of_older_torch_load() -> None:
    layer = RNN(2, 3)
    sgd, numbers = SGD(layer), list(range(4))
    old = {"lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": numbers}
    sgd.load_state_dict({"state": {0: {"momentum_buffer": None}}, "param_groups": [old]})
    assert sgd.state_dict()["state"] == {} and sgd.param_groups[0]["lr"] == 0.1
    adamw = AdamW(layer)
    old = {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "params": numbers}
    moments = {"exp_avg": np.ones((3, 2)), "exp_avg_sq": np.ones((3, 2))}
    adamw.load_state_dict({"state": {0: {"step": 3, **moments}}, "param_groups": [{**old, "initial_lr": 0.5}]})
    group = adamw.state_dict()["param_groups"][0]
    assert group["decoupled_weight_decay"] and group["initial_lr"] == 0.5 and group["betas"] == (0.9, 0.99)
    assert adamw.state_dict()["state"][0]["step"] == 3


@pytest.mark.parametrize(
    ("groups", "error", "words"),
    [
        (None, TypeError, r"\['param_groups'\]: expected a list of groups, got NoneType"),
        ([{"params": [[0]] * 4}], ValueError, r"\['params'\]: expected different numbers"),
        ([{"params": [0, 0, 1, 2]}], ValueError, r"\['params'\]: expected different numbers"),
    ],
)
def test_numbers_of_parameters_are_checked(groups: Any, error: type[Exception], words: str) -> None:
    optimizer = Adam(GRU(2, 3, seed=0))
    if groups is not None:
        groups = [{**optimizer.state_dict()["param_groups"][0], **groups[0]}]
    with pytest.raises(error, match=words):
        optimizer.load_state_dict({"state": {}, "param_groups": groups})
