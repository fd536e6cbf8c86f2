"""The promise that no peer makes: equal bytes, however a call is split, batched, packed or cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import KINDS, Case, assert_same_bits, flat, in_small_chunks, of_each, random_inputs, rows_of

import nblstm
from nblstm.engine import plan as planning
from nblstm.kernels.job import ROWS, UNITS

# Variants of each kind of layer, each with sizes at which the engine has more than one way to split the work.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 20}),
    ("LSTM", {"bidirectional": True}),
    ("LSTM", {"num_layers": 3}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 33}),
    ("GRU", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"num_layers": 3}),
    ("RNN relu", {"bidirectional": True}),
]
BATCH = 11


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    kind, arguments = request.param
    return kind, arguments


@pytest.fixture(params=[7, 48, 130], ids="H={}".format)
def layer(request: pytest.FixtureRequest, variant: tuple[str, dict[str, Any]], dtype: Any) -> Any:
    return _layer(variant, request.param, dtype)


def _layer(variant: tuple[str, dict[str, Any]], hidden_size: int, dtype: Any, **changes: Any) -> Any:
    kind, arguments = variant
    arguments = {**arguments, **changes}
    if "proj_size" in arguments:
        arguments["proj_size"] = min(arguments["proj_size"], hidden_size - 1)
    return KINDS[kind](13, hidden_size, **arguments, dtype=dtype, seed=1)


@pytest.mark.parametrize("batch", [1, 2, BATCH])
def test_threads(layer: Any, batch: int) -> None:
    x, hx = random_inputs(layer, 40, batch)
    lengths = np.random.default_rng(3).integers(1, 41, batch)
    results = []
    for threads in (1, 2):
        with nblstm.num_threads(threads):
            results.append((layer(x, hx), layer(x, hx, lengths=lengths)))
    assert_same_bits(*results)


@pytest.mark.parametrize("split", [ROWS, UNITS], ids=["rows", "units"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_every_way_to_split(layer: Any, split: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that the cost model would not choose, and more slices than threads."""
    x, hx = random_inputs(layer, 25, 5)
    lengths = [25, 3, 17, 1, 25]
    packed = nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False)

    def results() -> Any:
        packed_output, packed_states = layer(packed, hx)
        return layer(x, hx), layer(x, hx, lengths=lengths), (packed_output.data, packed_states)

    with nblstm.num_threads(1):
        expected = results()

    def choose(weights: Any, *arguments: Any) -> planning.Plan:
        return planning.Plan(split, min(parts, 5 if split == ROWS else weights.unit_blocks), 2)

    monkeypatch.setattr(planning, "choose", choose)
    monkeypatch.setattr(planning, "choose_for_layers", lambda *sizes: None)
    with nblstm.num_threads(2):
        assert_same_bits(results(), expected)


def test_repeated_runs(layer: Any) -> None:
    x, hx = random_inputs(layer, 20, BATCH)
    first = layer(x, hx)
    for _ in range(5):
        assert_same_bits(layer(x, hx), first)


def test_row_alone_or_in_a_batch(layer: Any) -> None:
    x, hx = random_inputs(layer, 20, BATCH)
    output, states = layer(x, hx)
    for row in range(BATCH):
        rows = slice(row, row + 1)
        assert_same_bits(layer(x[:, rows], rows_of(hx, rows)), (output[:, rows], rows_of(states, rows)))


@pytest.mark.parametrize("rows", [slice(0, 2), slice(3, 8), slice(5, 11), slice(None, None, -1)], ids=str)
def test_sub_batches(layer: Any, rows: slice) -> None:
    x, hx = random_inputs(layer, 20, BATCH)
    output, states = layer(x, hx)
    assert_same_bits(layer(x[:, rows], rows_of(hx, rows)), (output[:, rows], rows_of(states, rows)))


@pytest.mark.parametrize("batch", [1, BATCH])
def test_chunks_of_a_sequence(layer: Any, variant: Any, batch: int) -> None:
    if layer.bidirectional:
        layer = _layer(variant, layer.hidden_size, layer.dtype, bidirectional=False)
    x, hx = random_inputs(layer, 40, batch)
    output, states = layer(x, hx)
    for length in (1, 7, 39):
        parts, carried = [], hx
        for begin in range(0, 40, length):
            part, carried = layer(x[begin : begin + length], carried)
            parts.append(part)
        assert_same_bits((np.concatenate(parts), carried), (output, states))


def test_packed_is_padded_is_lengths_is_each_row_alone(layer: Any) -> None:
    x, hx = random_inputs(layer, 30, BATCH)
    lengths = np.random.default_rng(3).integers(1, 31, BATCH)
    output, states = layer(x, hx, lengths=lengths)
    packed_output, packed_states = layer(nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    padded, found_lengths = nblstm.pad_packed_sequence(packed_output, total_length=30)
    assert_same_bits((padded, packed_states), (output, states))
    assert found_lengths.tolist() == lengths.tolist()
    for row, length in enumerate(lengths):
        rows = slice(row, row + 1)
        assert_same_bits(layer(x[:length, rows], rows_of(hx, rows)), (output[:length, rows], rows_of(states, rows)))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both directions"])
def test_stack_is_layer_by_layer(build: Any, bidirectional: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a stack passes through its layers a chunk of steps at a time."""
    chunks, steps = in_small_chunks(monkeypatch), 60
    stack = build(5, 20, num_layers=2, bidirectional=bidirectional, dtype=dtype, seed=1)
    x, hx = random_inputs(stack, steps, BATCH)
    lengths = np.random.default_rng(3).integers(1, steps + 1, BATCH)
    directions = 2 if bidirectional else 1
    single = [build(5 if n == 0 else 20 * directions, 20, bidirectional=bidirectional, dtype=dtype) for n in (0, 1)]
    for n, layer in enumerate(single):
        own = {name: array for name, array in stack.named_parameters() if f"_l{n}" in name}
        layer.load_state_dict({name.replace(f"_l{n}", "_l0"): array for name, array in own.items()})
    for valid in (None, lengths):
        y, states = x, []
        for n, layer in enumerate(single):
            part = slice(n * directions, (n + 1) * directions)
            y, *last = flat(layer(y, of_each(lambda state, part=part: state[part], hx), lengths=valid))
            states.append(last)
        expected = y, *(np.concatenate(parts) for parts in zip(*states, strict=True))
        assert_same_bits(flat(stack(x, hx, lengths=valid)), expected)
    packed, packed_states = stack(nblstm.pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    padded, _ = nblstm.pad_packed_sequence(packed, total_length=steps)
    assert_same_bits(flat((padded, packed_states)), expected)
    assert all(count > 10 for count in chunks) and len(chunks) == (0 if bidirectional else 3)


def test_full_lengths_change_nothing(layer: Any) -> None:
    x, hx = random_inputs(layer, 20, BATCH)
    assert_same_bits(layer(x, hx, lengths=[20] * BATCH), layer(x, hx))


def test_batch_first_changes_nothing(layer: Any) -> None:
    x, hx = random_inputs(layer, 20, BATCH)
    output, states = layer(x, hx)
    layer.batch_first = True
    for steps_second in (x.swapaxes(0, 1), x.swapaxes(0, 1).copy()):
        got, got_states = layer(steps_second, hx)
        assert_same_bits((got.swapaxes(0, 1), got_states), (output, states))


def test_zeros_are_no_states(case: Case, dtype: Any) -> None:
    layer = case.layer(dtype)
    x, hx = case.inputs(dtype)
    assert_same_bits(layer(x, of_each(np.zeros_like, hx)), layer(x))
