"""Dropout between layers: in training mode alone, by a mask that depends on nothing but what it should."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import KINDS, assert_close, assert_same_bits, in_small_chunks, oracle, random_inputs, torch_twin

import nblstm

STEPS, BATCH = 9, 7


def _layer(dropout: float = 0.5, seed: int = 1, kind: str = "LSTM", **arguments: Any) -> Any:
    return KINDS[kind](5, 12, **{"num_layers": 2, **arguments}, dropout=dropout, seed=seed)


def _masks(layer: Any, call: int, steps: int = STEPS, batch: int = BATCH) -> Any:
    """Return the mask (T, B, F) between the two layers of an LSTM of that shape, read off its output.

    With its gates held open, and the forget gate shut, a layer puts out tanh(tanh(W x + b)): the lower one a constant,
    the upper one that constant times the mask.
    """
    hidden = layer.hidden_size
    probe = copy.deepcopy(layer).to(np.float64)
    probe.set_parameters({name: np.zeros_like(array) for name, array in probe.named_parameters()})
    copying = np.zeros((4, hidden, hidden))
    copying[2] = np.eye(hidden)
    open_gates = np.repeat([1000.0, -1000.0, 0.0, 1000.0], hidden)
    constant = np.repeat([0.0, 0.0, 0.1, 0.0], hidden)
    probe.set_parameters({"bias_ih_l0": open_gates, "bias_hh_l0": constant})
    probe.set_parameters({"bias_ih_l1": open_gates, "weight_ih_l1": copying.reshape(4 * hidden, hidden)})
    output, _ = probe(np.zeros((steps, batch, layer.input_size)), dropout_call=call)
    return np.arctanh(np.arctanh(output)) / np.tanh(np.tanh(0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_mask_and_oracle(kind: str) -> None:
    """The mask has nothing to do with the kind of layer."""
    layer = _layer(kind=kind)
    x, hx = random_inputs(layer, STEPS, BATCH)
    mask = np.round(_masks(_layer(), call=3), 6)
    assert set(mask.ravel()) == {0.0, 2.0}
    got = layer(x, hx, dropout_call=3)
    assert_close(got, oracle(layer, x, hx, masks=[mask]), atol=1e-6)
    usual = oracle(layer, x, hx)
    assert_close(layer.eval()(x, hx), usual, atol=1e-6)
    assert np.abs(got[0] - usual[0]).max() > 1e-3


@pytest.mark.parametrize("p", [0.1, 0.276, 0.5, 0.731])
def test_rate_and_scale(p: float) -> None:
    mask = _masks(_layer(p), call=0, steps=200, batch=40)
    dropped = mask == 0
    for axes in ((0, 1), (0, 2), (1, 2)):
        samples = dropped.size / dropped.any(axis=axes).size
        assert np.abs(dropped.mean(axis=axes) - p).max() < 6 * np.sqrt(p * (1 - p) / samples)
    np.testing.assert_allclose(mask[~dropped], 1 / (1 - p), rtol=1e-6)


def test_neighbours_are_independent() -> None:
    mask = _masks(_layer(), call=0, steps=200, batch=40) - 1
    for axis in range(3):
        one, other = np.delete(mask, 0, axis), np.delete(mask, -1, axis)
        assert abs((one * other).mean()) < 6 / np.sqrt(one.size)


def test_mask_depends_on_call_and_seed_alone() -> None:
    mask = _masks(_layer(), call=0)
    assert_same_bits(_masks(_layer(), call=0), mask)
    assert_same_bits(_masks(_layer(), call=0, steps=4), mask[:4])
    assert_same_bits(_masks(_layer(), call=0, batch=3), mask[:, :3])
    assert (_masks(_layer(), call=1) != mask).any()
    assert (_masks(_layer(seed=2), call=0) != mask).any()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_layers": 3}, {"bidirectional": True}, {"proj_size": 5}, {"kind": "GRU"}, {"kind": "RNN"}],
    ids=str,
)
def test_same_mask_in_every_form_of_input(arguments: dict[str, Any]) -> None:
    layer = _layer(**arguments)
    x, hx = random_inputs(layer, STEPS, BATCH)
    lengths = [3, 9, 1, 9, 4, 7, 2]
    output, states = layer(x, hx, lengths=lengths, dropout_call=5)
    packed = nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed_output, packed_states = layer(packed, hx, dropout_call=5)
    assert_same_bits((nblstm.pad_packed_sequence(packed_output)[0], packed_states), (output, states))
    with nblstm.num_threads(1):
        assert_same_bits(layer(x, hx, lengths=lengths, dropout_call=5), (output, states))
    if not layer.bidirectional:
        dense, _ = layer(x, hx, dropout_call=5)
        for row, length in enumerate(lengths):
            assert_same_bits(dense[:length, row], output[:length, row])
    layer.batch_first = True
    assert_same_bits(layer(x.swapaxes(0, 1), hx, lengths=lengths, dropout_call=5)[0].swapaxes(0, 1), output)


def test_same_mask_however_long_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack passes through its layers a chunk of steps at a time, and fewer rows make longer chunks."""
    chunks = in_small_chunks(monkeypatch)
    layer = _layer()
    x, hx = random_inputs(layer, 700, 11)
    output, _ = layer(x, hx, dropout_call=5)
    few, _ = layer(x[:, :2], (hx[0][:, :2], hx[1][:, :2]), dropout_call=5)
    assert_same_bits(few, output[:, :2])
    packed, _ = layer(nblstm.pack_padded_sequence(x, range(700, 689, -1)), hx, dropout_call=5)
    assert_same_bits(nblstm.pad_packed_sequence(packed)[0][:690], output[:690])
    assert chunks[0] > chunks[1] > 1


def test_calls_are_counted() -> None:
    layer = _layer()
    x, _ = random_inputs(layer, STEPS, BATCH)
    numbered = [layer(x, dropout_call=call) for call in range(4)]
    for expected in numbered[:2]:
        assert_same_bits(layer(x), expected)
    with pytest.raises(RuntimeError):
        layer(x[:, :, 1:])
    layer.eval()(x)
    assert_same_bits(layer.train()(x), numbered[2])
    assert len({output.tobytes() for output, _ in numbered}) == 4


def test_threads_never_share_a_call_number() -> None:
    layer = _layer()
    x, _ = random_inputs(layer, 2, 1)
    expected = {layer(x, dropout_call=call)[0].tobytes() for call in range(100)}
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: layer(x)[0].tobytes(), range(100)))
    assert found == expected


def test_no_dropout() -> None:
    x, hx = random_inputs(_layer(), STEPS, BATCH)
    expected = _layer(0.0)(x, hx)
    assert_same_bits(_layer(0.5).eval()(x, hx), expected)
    assert_same_bits(_layer(0.5).eval()(x, hx, dropout_call=3), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_certain_dropout_is_that_of_torch(kind: str, torch: Any) -> None:
    layer = _layer(1.0, kind=kind)
    module = torch_twin(torch, layer).train()
    module.dropout = 1.0
    x, _ = random_inputs(layer, STEPS, BATCH)
    with torch.no_grad():
        expected, _ = module(torch.tensor(x))
    np.testing.assert_allclose(layer(x)[0], expected.numpy(), rtol=0, atol=1e-6)
