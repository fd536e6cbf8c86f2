"""The cases of the benchmarks: how they are written, what they count, and what the lists promise."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from nblstm import reference
from nblstm.commands.benchmark.cases import (
    CELLS,
    GRID,
    KINDS,
    LAYERS,
    SERVER,
    SETS,
    STEP_CASES,
    STEPS,
    TRAINING,
    Case,
    parse_shapes,
)
from nblstm.commands.benchmark.engines import input_of, layer_of

EVERYTHING = Case(3, 2, 5, 8, layers=2, bidirectional=True, projection=3, dtype="float64")
EACH_CELL = [Case(3, 4, 5, 8, layers=2, bidirectional=True, cell=cell, packed="random") for cell in CELLS]


@pytest.mark.parametrize(
    ("text", "case"),
    [
        ("25,1,512,256", Case(25, 1, 512, 256)),
        (" 25 , 1,512,256 , 3 ", Case(25, 1, 512, 256, layers=3)),
        ("3,2,5,8,2,bi,P3,f64", EVERYTHING),
        ("3,2,5,8,2,f64,P3,bi", EVERYTHING),
        ("3,2,5,8,bi", Case(3, 2, 5, 8, bidirectional=True)),
        ("3,2,5,8,LSTM", Case(3, 2, 5, 8)),
        ("3,2,5,8,GRU,packed-linear", Case(3, 2, 5, 8, cell="GRU", packed="linear")),
        ("3,2,5,8,2,packed-random,RNN_RELU", Case(3, 2, 5, 8, layers=2, cell="RNN_RELU", packed="random")),
        ("3,2,5,8,GRU,cell", Case(3, 2, 5, 8, cell="GRU", kind="cell")),
        ("3,2,5,8,2,stream,f64,P3", Case(3, 2, 5, 8, layers=2, projection=3, dtype="float64", kind="stream")),
    ],
)
def test_parsing(text, case):
    assert parse_shapes(text) == [case]
    assert parse_shapes(case.written) == [case]


@pytest.mark.parametrize(
    "text",
    [
        *("", "1,2,3", "1,2,3,4,5,6", "1,2,3,x", "1,2,3,4,bi,5", "1,2,3,4,bi,bi", "1,2,3,-4", "1,2,bi,3,4"),
        *("1,2,3,4,cell,stream", "1,2,3,4,inference"),
        *("1,2,3,4,GRU,RNN_TANH", "1,2,3,4,RNN", "1,2,3,4,packed", "1,2,3,4,packed-linear,packed-random"),
    ],
)
def test_what_is_no_shape(text):
    form = r"T,B,I,H\[,L\].*\[,LSTM\|GRU\|RNN_TANH\|RNN_RELU\].*\[,cell\|stream\]"
    with pytest.raises(ValueError, match=f"shape: expected {form}, got '"):
        parse_shapes(f"1,1,1,1; {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,1,2,3", "sizes of at least 1"),
        ("1,1,2,3,P0", "sizes of at least 1"),
        ("1,1,2,3,P3", "P < 3 because H=3"),
        ("1,1,2,3,GRU,P2", "no P because only an LSTM has a projection"),
        ("1,1,2,3,bi,stream", "neither bi nor packed because a stream goes forward, all rows together"),
        ("1,1,2,3,packed-random,cell", "neither bi nor packed because a cell goes forward, all rows together"),
        ("1,1,2,3,2,cell", "neither L nor P because a cell is one layer; a stream may have more"),
        ("1,1,2,3,P2,cell", "neither L nor P because a cell is one layer; a stream may have more"),
    ],
)
def test_sizes_that_no_network_has(text, expected):
    with pytest.raises(ValueError, match=f"shape: expected {expected}, got '{text}'"):
        parse_shapes(text)


@pytest.mark.parametrize("cases", [*SETS.values(), TRAINING], ids=[*SETS, "training"])
def test_lists(cases):
    assert len({case.shape for case in cases}) == len(cases), "asv and the reports tell cases apart by their shapes"
    assert parse_shapes(";".join(case.written for case in cases)) == [
        dataclasses.replace(case, name="", kind=case.kind if case.in_steps else "inference") for case in cases
    ]
    kinds = {"training"} if cases is TRAINING else set(STEPS) if cases is STEP_CASES else {"inference"}
    assert {case.kind for case in cases} == kinds <= set(KINDS)


def test_lists_have_what_they_are_named_for():
    assert {(case.hidden, case.batch) for case in SERVER} == {(h, b) for h in (256, 512, 1024, 1536) for b in (1, 2, 4)}
    assert {(case.hidden, case.batch) for case in GRID} == {
        (hidden, batch) for hidden in (48, 128, 200, 256, 512, 1000) for batch in (1, 4, 16, 64)
    }
    assert {case.steps for case in GRID} == {100}
    assert {(case.layer, case.batch) for case in LAYERS} >= {(layer, b) for layer in ("GRU", "RNN") for b in (1, 32)}
    assert {case.batch for case in LAYERS if case.projection} == {1, 32}
    assert {case.batch for case in LAYERS if case.dtype == "float64"} == {1, 32}
    assert {case.batch for case in TRAINING} >= {1, 4, 16, 32, 64, 128}
    assert {case.hidden for case in TRAINING} >= {64, 128, 256, 512, 1024}
    packed = {(case.layer, case.packed) for case in LAYERS if case.packed}
    assert packed == {(layer, lengths) for layer in ("LSTM", "GRU", "RNN") for lengths in ("linear", "random")}
    for kind in STEPS:  # those that the bars are about
        group = [case for case in STEP_CASES if case.name == f"LSTM {kind}"]
        assert {(case.kind, case.batch, case.layers, case.inputs) for case in group} == {
            (kind, 1, 1, size) for size in (32, 64, 128, 256)
        }
        assert [case.hidden for case in group] == [case.inputs for case in group]
    assert {(case.layer, case.kind) for case in STEP_CASES} == {(a, b) for a in ("LSTM", "GRU", "RNN") for b in STEPS}
    assert [case.layers for case in STEP_CASES if case.layers > 1] and {case.batch for case in STEP_CASES} == {1, 32}


def test_lengths():
    linear, random, none = (Case(100, 32, 5, 8, packed=packed).lengths() for packed in ("linear", "random", ""))
    assert linear[[0, -1]].tolist() == [100, 4] and set(-np.diff(linear)) == {3, 4}
    assert random.min() >= 1 and random.max() == 100 and len(set(random)) > 16 and (np.diff(random) > 0).any()
    assert np.array_equal(random, Case(100, 32, 7, 9, packed="random").lengths())
    assert none.tolist() == [100] * 32
    assert Case(2, 5, 1, 1, packed="linear").lengths().min() == 1
    assert Case(9, 1, 1, 1, packed="random").lengths().tolist() == [9]


class Counting(np.ndarray[Any, Any]):
    """Arrays that count the multiplications and additions of their matrix products."""

    flops = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        plain = [np.asarray(value) for value in inputs]
        result = getattr(ufunc, method)(*plain, **keywords)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * plain[0].shape[-1]
        return result.view(Counting)


@pytest.mark.parametrize("case", [Case(3, 2, 5, 8), Case(4, 1, 5, 8, layers=3), EVERYTHING, *EACH_CELL])
def test_flops_are_those_of_the_products(case):
    Counting.flops = 0
    parameters = {name: array.view(Counting) for name, array in case.parameters().items()}
    run = getattr(reference, case.layer.lower())
    for row, length in enumerate(case.lengths()):  # alone, so that none has steps past its length
        run(case.input()[:length, [row]].view(Counting), parameters)
    assert case.flops == Counting.flops


@pytest.mark.parametrize("case", [EVERYTHING, *EACH_CELL], ids=lambda case: case.shape)
def test_training_is_three_times_the_products_and_twice_the_recurrence(case):
    trained = dataclasses.replace(case, kind="training")
    assert trained.flops == 3 * case.flops
    assert np.array_equal(trained.recurrent_flops(), 2 * case.recurrent_flops())
    assert trained.streamed_bytes == 2 * case.streamed_bytes and trained.recurrent_bytes == case.recurrent_bytes
    assert case.output_gradient().shape == (case.steps, case.batch, case.directions * case.outputs)


def test_the_recurrence_is_what_does_not_depend_on_the_input():
    with_input, almost_without = (Case(7, 2, inputs, 8, projection=3) for inputs in (50, 1))
    assert np.array_equal(with_input.recurrent_flops(), almost_without.recurrent_flops())
    assert with_input.recurrent_flops().tolist() == [(with_input.flops - 2 * 7 * 2 * 4 * 8 * 50) / 7] * 7
    assert with_input.recurrent_bytes == 4 * (4 * 8 * 3 + 3 * 8)
    assert EVERYTHING.streamed_bytes == 4 * EVERYTHING.recurrent_bytes


def test_where_steps_are_calls_all_products_wait():
    case = Case(7, 2, 5, 8, layers=2, projection=3, kind="stream")
    numbers = 4 * 8 * (5 + 3 + 3 + 3) + 2 * 3 * 8
    assert case.flops == case.recurrent_flops().sum() == 7 * 2 * 2 * numbers and len(case.recurrent_flops()) == 7
    assert case.recurrent_bytes == case.streamed_bytes == 4 * numbers
    terms, outputs = case.streamed_shape
    assert outputs == 2 * 4 * 8 and numbers - outputs < terms * outputs <= numbers
    whole = dataclasses.replace(case, kind="inference")
    assert (case.calls, whole.calls) == (7, 1)
    assert whole.streamed_shape == (3, 32) and whole.streamed_bytes == 2 * 4 * (4 * 8 * 3 + 3 * 8)


def test_the_recurrence_of_a_packed_case_has_fewer_rows_at_each_step():
    case = Case(6, 3, 5, 8, cell="GRU", packed="linear")
    assert case.batch_sizes().tolist() == [3, 3, 2, 2, 1, 1]
    assert case.recurrent_flops().tolist() == [2 * rows * 3 * 8 * 8 for rows in (3, 3, 2, 2, 1, 1)]
    assert case.recurrent_flops().sum() == case.flops - 2 * 12 * 3 * 8 * 5
    assert case.streamed_bytes == case.recurrent_bytes == 4 * 3 * 8 * 8


@pytest.mark.parametrize("case", [Case(3, 2, 5, 8), EVERYTHING, *EACH_CELL], ids=lambda case: case.shape)
def test_parameters_and_input_fit(case):
    layer, x = layer_of(case), input_of(case)
    assert type(layer).__name__ == case.layer and getattr(layer, "nonlinearity", "") == case.nonlinearity
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (case.inputs, case.hidden, case.layers)
    assert (layer.bidirectional, layer.dtype, layer.training) == (case.bidirectional, case.dtype, False)
    assert getattr(layer, "proj_size", 0) == case.projection
    rows = (case.lengths().sum(),) if case.packed else (case.steps, case.batch)
    output = layer(x)[0]
    assert (output.data if case.packed else output).shape == (*rows, case.directions * case.outputs)
    assert hasattr(x, "batch_sizes") == bool(case.packed)
    assert all(np.array_equal(array, case.parameters()[name]) for name, array in case.parameters().items())
