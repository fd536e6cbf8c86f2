"""Stacked layers side by side, each a block of steps behind the one before: when, and with which bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import KINDS, assert_same_bits, flat, in_small_chunks, of_each, random_inputs

import nblstm
from nblstm.engine import plan as planning
from nblstm.engine.plan import Plan, choose_for_layers
from nblstm.kernels import team
from nblstm.kernels.job import LAYERS

STEPS, BATCH = 23, 5


def at_once(monkeypatch: pytest.MonkeyPatch, block: int) -> list[tuple[int, int]]:
    """Have all stacks run so, in blocks of so many steps; return a list of the slices and steps of every launch."""
    launches: list[tuple[int, int]] = []
    run = team.run
    monkeypatch.setattr(team, "run", lambda *given: launches.append(given[2:4]) or run(*given))
    monkeypatch.setattr(planning, "choose_for_layers", lambda layers, *sizes: Plan(LAYERS, 1, 2, block=block))
    return launches


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("block", [1, 4, 23, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_bits(kind: str, block: int, layers: int, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"proj_size": 9} if kind == "LSTM" and layers == 3 else {}
    layer, other = (KINDS[kind](13, 37, num_layers=layers, **options, dtype=dtype, seed=1) for _ in range(2))
    x, states = random_inputs(layer, STEPS, BATCH)
    lengths = np.array([4, STEPS, 1, 16, 4])
    with nblstm.num_threads(1):
        expected = [layer(x, states), layer(x, states, lengths=lengths)]
        traced = layer.trace(x, states)
    launches = at_once(monkeypatch, block)
    with nblstm.num_threads(2):
        assert_same_bits(flat(other(x, states)), flat(expected[0]))
        assert launches == [(layers, -(-STEPS // block) + layers - 1)]
        assert_same_bits(flat(other(x, states, lengths=lengths)), flat(expected[1]))
        again = other.trace(x, states)
    assert len(launches) == 3
    assert_same_bits(again, traced)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, other = (KINDS[kind](13, 37, num_layers=3, seed=1) for _ in range(2))
    x, states = random_inputs(layer, STEPS, BATCH)
    results = []
    for network, threads in ((layer, 1), (other, 2)):
        if threads == 2:
            at_once(monkeypatch, 4)
        with nblstm.num_threads(threads):
            (output, _), backward = network.vjp(x, states)
            results.append(backward(np.sin(output)))
    for name, expected in results[0].parameters.items():
        assert np.array_equal(results[1].parameters[name], expected), name
    assert_same_bits((results[1].input, results[1].hx), (results[0].input, results[0].hx))


def test_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, other = (nblstm.LSTM(13, 37, num_layers=2, seed=1) for _ in range(2))
    x, states = random_inputs(layer, STEPS, BATCH)
    expected = layer(x, states)
    chunks = in_small_chunks(monkeypatch)
    at_once(monkeypatch, 2)
    with nblstm.num_threads(2):
        assert_same_bits(flat(other(x, states)), flat(expected))
    assert chunks[0] > 3


def test_dropout_between_layers_keeps_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, other = (nblstm.LSTM(13, 37, num_layers=2, dropout=0.5, seed=1).train() for _ in range(2))
    x, states = random_inputs(layer, STEPS, BATCH)
    expected = layer(x, states)
    launches = at_once(monkeypatch, 4)
    with nblstm.num_threads(2):
        assert_same_bits(flat(other(x, of_each(np.copy, states))), flat(expected))
        assert len(launches) == 2
        other.eval()(x)
    assert len(launches) == 3


@pytest.mark.parametrize(
    ("units", "layers", "steps", "rows", "threads", "side_by_side"),
    [
        (64, 2, 100, 1, 2, True),
        (96, 2, 100, 1, 2, True),
        (128, 4, 100, 1, 4, True),
        (64, 2, 100, 1, 1, False),
        (64, 2, 1, 1, 2, False),  # no step to be behind by
        (256, 2, 100, 1, 2, False),  # a layer's weights do not fit a core's cache, half of them do
        (1024, 2, 30, 1, 2, False),
        (256, 2, 100, 64, 2, False),  # rows never wait for each other
    ],
)
def test_choice(units: int, layers: int, steps: int, rows: int, threads: int, side_by_side: bool) -> None:
    network = nblstm.LSTM(units, units, num_layers=layers, seed=0)
    packed = [weights for (weights,) in network._weights.packed(network._pack)]
    plan = choose_for_layers(packed, steps, rows, rows, threads)
    assert (plan is not None and plan.split == LAYERS) == side_by_side
    if plan is not None:
        assert plan.threads == min(threads, layers) and 1 <= plan.block < steps
