"""The cases of the benchmarks: how they are written, what they count, and what the lists promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nblstm import LSTM, reference
from nblstm.commands.benchmark.cases import GRID, KINDS, SERVER, SETS, Case, parse_shapes

EVERYTHING = Case(3, 2, 5, 8, layers=2, bidirectional=True, projection=3, dtype="float64")


@pytest.mark.parametrize(
    ("text", "case"),
    [
        ("25,1,512,256", Case(25, 1, 512, 256)),
        (" 25 , 1,512,256 , 3 ", Case(25, 1, 512, 256, layers=3)),
        ("3,2,5,8,2,bi,P3,f64", EVERYTHING),
        ("3,2,5,8,2,f64,P3,bi", EVERYTHING),
        ("3,2,5,8,bi", Case(3, 2, 5, 8, bidirectional=True)),
    ],
)
def test_parsing(text, case):
    assert parse_shapes(text) == [case]
    assert parse_shapes(case.written) == [case]


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5,6", "1,2,3,x", "1,2,3,4,bi,5", "1,2,3,4,bi,bi", "1,2,3,-4"])
def test_what_is_no_shape(text):
    with pytest.raises(ValueError, match=r"shape: expected T,B,I,H\[,L\].*, got '"):
        parse_shapes(f"1,1,1,1; {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0,1,2,3", "sizes of at least 1"), ("1,1,2,3,P0", "sizes of at least 1"), ("1,1,2,3,P3", "P < 3 because H=3")],
)
def test_sizes_that_no_network_has(text, expected):
    with pytest.raises(ValueError, match=f"shape: expected {expected}, got '{text}'"):
        parse_shapes(text)


@pytest.mark.parametrize("name", SETS)
def test_lists(name):
    cases = SETS[name]
    assert len({case.shape for case in cases}) == len(cases), "asv and the reports tell cases apart by their shapes"
    assert parse_shapes(";".join(case.written for case in cases)) == [
        Case(**{**vars(case), "name": ""}) for case in cases
    ]
    assert all(case.kind in KINDS for case in cases)


def test_lists_have_what_they_are_named_for():
    assert {(case.hidden, case.batch) for case in SERVER} == {(h, b) for h in (256, 512, 1024, 1536) for b in (1, 2, 4)}
    assert {(case.hidden, case.batch) for case in GRID} == {
        (hidden, batch) for hidden in (48, 128, 200, 256, 512, 1000) for batch in (1, 4, 16, 64)
    }
    assert {case.steps for case in GRID} == {100}


class Counting(np.ndarray[Any, Any]):
    """Arrays that count the multiplications and additions of their matrix products."""

    flops = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        plain = [np.asarray(value) for value in inputs]
        result = getattr(ufunc, method)(*plain, **keywords)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * plain[0].shape[-1]
        return result.view(Counting)


@pytest.mark.parametrize("case", [Case(3, 2, 5, 8), Case(4, 1, 5, 8, layers=3), EVERYTHING])
def test_flops_are_those_of_the_products(case):
    Counting.flops = 0
    parameters = {name: array.view(Counting) for name, array in case.parameters().items()}
    reference.lstm(case.input().view(Counting), parameters)
    assert case.flops == Counting.flops


def test_the_recurrence_is_what_does_not_depend_on_the_input():
    with_input, almost_without = (Case(7, 2, inputs, 8, projection=3) for inputs in (50, 1))
    assert with_input.recurrent_flops == almost_without.recurrent_flops
    assert with_input.recurrent_flops == with_input.flops - 2 * 7 * 2 * 4 * 8 * 50
    assert with_input.recurrent_bytes == 4 * (4 * 8 * 3 + 3 * 8)
    assert EVERYTHING.streamed_bytes == 3 * 4 * EVERYTHING.recurrent_bytes


@pytest.mark.parametrize("case", [Case(3, 2, 5, 8), EVERYTHING])
def test_parameters_and_input_fit(case):
    lstm = LSTM.from_state_dict(case.parameters())
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (case.inputs, case.hidden, case.layers)
    assert (lstm.bidirectional, lstm.proj_size, lstm.dtype) == (case.bidirectional, case.projection, case.dtype)
    assert lstm(case.input())[0].shape == (case.steps, case.batch, case.directions * case.outputs)
    assert all(np.array_equal(array, case.parameters()[name]) for name, array in case.parameters().items())
