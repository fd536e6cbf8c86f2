"""Recurrent layers among named arrays: torch's names in, sizes out, and errors that say which array is wrong.

Weights in the parts of weight_norm are in test_weight_norm.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nblstm.weights.names import find_cell, find_recurrent_layer, list_recurrent


def layer(
    prefix: str = "",
    gates: int = 4,
    input_size: int = 3,
    hidden_size: int = 2,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    proj_size: int = 0,
) -> dict[str, Any]:
    """Return arrays of the names and shapes that torch gives to such a layer."""
    state = {}
    directions = ["", "_reverse"][: 1 + bidirectional]
    for end, inputs in [
        (f"_l{number}{direction}", len(directions) * (proj_size or hidden_size) if number else input_size)
        for number in range(num_layers)
        for direction in directions
    ]:
        state[f"{prefix}weight_ih{end}"] = np.zeros((gates * hidden_size, inputs))
        state[f"{prefix}weight_hh{end}"] = np.zeros((gates * hidden_size, proj_size or hidden_size))
        if bias:
            state[f"{prefix}bias_ih{end}"] = np.zeros(gates * hidden_size)
            state[f"{prefix}bias_hh{end}"] = np.zeros(gates * hidden_size)
        if proj_size:
            state[f"{prefix}weight_hr{end}"] = np.zeros((proj_size, hidden_size))
    return state


def cell(prefix: str = "", gates: int = 4) -> dict[str, Any]:
    return {name.replace("_l0", ""): array for name, array in layer(prefix, gates).items()}


ARGUMENTS = st.fixed_dictionaries(
    {
        "input_size": st.integers(1, 5),
        "hidden_size": st.integers(2, 5),
        "num_layers": st.integers(1, 12),
        "bias": st.booleans(),
        "bidirectional": st.booleans(),
        "proj_size": st.integers(0, 1),
    }
)


@given(ARGUMENTS, st.sampled_from(["", "lstm.", "a.b.c.", "lstm_", "a\nb."]), st.sampled_from([4, 3, 1]))
def test_sizes_are_read_off_the_shapes(arguments, prefix, gates):
    if gates != 4:
        arguments = arguments | {"proj_size": 0}
    state = layer(prefix, gates, **arguments)
    scattered = {**dict(sorted(state.items())), "head.weight": np.zeros((1, 2)), "weight": "text", 3: None}
    for asked in (prefix, "", prefix[:2]):
        spec = find_recurrent_layer(scattered, asked, gates=gates)
        assert spec.prefix == prefix
        assert {name: getattr(spec, name) for name in arguments} == arguments
        assert [prefix + name for name in spec.parameters] == list(state)
        assert all(spec.parameters[name.removeprefix(prefix)] is array for name, array in state.items())


@given(ARGUMENTS)
def test_torch_agrees(torch, arguments):
    module = torch.nn.LSTM(**arguments)
    spec = find_recurrent_layer(module.state_dict())
    assert list(spec.parameters) == list(module.state_dict())
    assert {name: getattr(module, name) for name in arguments} == {name: getattr(spec, name) for name in arguments}


def test_a_prefix_chooses_among_several():
    state = layer("encoder.rnn.") | layer("decoder.rnn.", input_size=7) | layer("decoder.rnn2.")
    assert find_recurrent_layer(state, "encoder").prefix == "encoder.rnn."
    assert find_recurrent_layer(state, "encoder.rnn.").prefix == "encoder.rnn."
    assert find_recurrent_layer(state, "decoder.rnn").input_size == 7
    with pytest.raises(
        ValueError, match=r"'encoder\.rnn\.' \(LSTM\), 'decoder\.rnn\.' \(LSTM\), .*Choose one with prefix="
    ):
        find_recurrent_layer(state)
    with pytest.raises(
        ValueError, match=r"because prefix='decoder', got these .*'decoder\.rnn\.' .*'decoder\.rnn2\.'"
    ) as error:
        find_recurrent_layer(state, "decoder")
    assert "encoder" not in str(error.value)
    with pytest.raises(ValueError, match=r"because prefix='head', got these .*'encoder\.rnn\.'"):
        find_recurrent_layer(state, "head")


def test_names_without_a_prefix_come_first():
    assert find_recurrent_layer(layer("decoder.") | layer()).prefix == ""


def test_the_number_of_gates_chooses_among_several():
    state = layer("a.", 3) | layer("b.", 4, proj_size=1) | layer("c.", 1)
    assert [find_recurrent_layer(state, gates=gates).prefix for gates in (3, 4, 1)] == ["a.", "b.", "c."]
    with pytest.raises(ValueError, match=r"'a\.' \(GRU\), 'b\.' \(LSTM\), 'c\.' \(RNN\)"):
        find_recurrent_layer(state, gates=2)


def test_nothing_to_find_is_said_with_what_there_is():
    with pytest.raises(ValueError, match="expected the weights of one LSTM, got nothing"):
        find_recurrent_layer({})
    with pytest.raises(ValueError, match=r"expected the weights of one LSTM, got only 'conv\.weight', 'step'"):
        find_recurrent_layer({"conv.weight": np.ones(2), "step": 3})
    with pytest.raises(ValueError, match=r"'epoch', 'model'\. Take the mapping inside it: state_dict\['model'\]"):
        find_recurrent_layer({"epoch": 3, "model": layer()})


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (
            "weight_hh_l0",
            (9, 2),
            r"state_dict\['a\.weight_hh_l0'\]: expected \(8, 2\) because hidden_size=2 .*\(9, 2\)",
        ),
        ("weight_ih_l0", (7, 3), r"state_dict\['a\.weight_ih_l0'\]: expected \(8, 3\) .*got \(7, 3\)"),
        ("weight_ih_l1", (8, 3), r"state_dict\['a\.weight_ih_l1'\]: expected \(8, 4\) .*got \(8, 3\)"),
        ("bias_hh_l1_reverse", (8, 1), r"state_dict\['a\.bias_hh_l1_reverse'\]: expected \(8,\) .*got \(8, 1\)"),
        ("weight_hh_l0", (8,), r"state_dict\['a\.weight_hh_l0'\]: expected two dimensions, got \(8,\)"),
        ("weight_ih_l0", (), r"state_dict\['a\.weight_ih_l0'\]: expected two dimensions, got \(\)"),
    ],
)
def test_another_shape_is_named(name, shape, words):
    state = layer("a.", num_layers=2, bidirectional=True)
    with pytest.raises(ValueError, match=words):
        find_recurrent_layer(state | {f"a.{name}": np.zeros(shape)})


def test_the_weights_of_another_kind_are_recognised():
    with pytest.raises(ValueError, match=r"there are 4 gates, got \(6, 3\)\. .*the weights of GRU"):
        find_recurrent_layer(layer(gates=3))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (["weight_ih_l0"], "expected an array 'a.weight_ih_l0', got only"),
        (["weight_hh_l0"], r"expected arrays 'a\.weight_hh_l0' too"),
        (["weight_ih_l1"], r"expected arrays 'a\.weight_ih_l1' too"),
        (["bias_ih_l0", "bias_hh_l1"], r"expected arrays 'a\.bias_ih_l0', 'a.bias_hh_l1' too"),
        (["weight_hr_l1_reverse"], r"expected arrays 'a\.weight_hr_l1_reverse' too"),
    ],
)
def test_missing_arrays_are_named(missing, words):
    state = layer("a.", num_layers=2, bidirectional=True, proj_size=1)
    with pytest.raises(ValueError, match=words):
        find_recurrent_layer({name: array for name, array in state.items() if name[2:] not in missing})


def test_a_gap_between_layers_is_named():
    state = layer(num_layers=3)
    with pytest.raises(ValueError, match=r"expected arrays 'weight_ih_l1', .* too"):
        find_recurrent_layer({name: array for name, array in state.items() if "_l1" not in name})


def test_values_that_are_no_arrays_are_named():
    with pytest.raises(TypeError, match=r"state_dict\['weight_hh_l0'\]: expected an array of numbers, got NoneType"):
        find_recurrent_layer(layer() | {"weight_hh_l0": None})


@pytest.mark.parametrize("find", [find_recurrent_layer, find_cell])
def test_other_types_are_named(find):
    for value in (None, [1], "weights"):
        with pytest.raises(TypeError, match="state_dict: expected a mapping of names to arrays, got"):
            find(value)
    for prefix in (None, 1, b"lstm."):
        with pytest.raises(TypeError, match="prefix: expected a str, got"):
            find({"lstm.weight_ih_l0": np.zeros((8, 3)), "cell.weight_ih": np.zeros((8, 3))}, prefix)


def test_hostile_names_are_no_layers():
    names = [
        "weight_ih_l٣",
        "weight_ih_l00",
        "weight_ih_l-1",
        "weight_ih_l" + "9" * 5000,
        "weight_ih_l0\n",
        "weight_ih_l0_gg",
        "weight_ih_l0.original0",
        "parametrizations.weight_ih_l0.original2",
    ]
    with pytest.raises(ValueError, match="expected the weights of one LSTM, got only"):
        find_recurrent_layer(dict.fromkeys(names, 0))
    with pytest.raises(ValueError, match="expected an array 'weight_hh_l0'"):
        find_recurrent_layer({"weight_ih_l9999": np.zeros((8, 3))})


@pytest.mark.parametrize(("gates", "kind"), [(4, "LSTMCell"), (3, "GRUCell"), (1, "RNNCell")])
def test_cells_are_found(torch, gates, kind):
    module = torch.nn.ModuleDict({"cell": getattr(torch.nn, kind)(3, 2), "other": torch.nn.LSTM(3, 2)})
    spec = find_cell(module.state_dict(), gates=gates)
    assert (spec.prefix, spec.input_size, spec.hidden_size, spec.bias) == ("cell.", 3, 2, True)
    assert list(spec.parameters) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def test_cells_are_chosen_and_checked_as_layers_are():
    state = cell("a.") | cell("b.", 3) | layer("c.")
    assert find_cell(state).prefix == "a."
    assert find_cell(state, "b.", gates=3).hidden_size == 2
    with pytest.raises(ValueError, match=r"the weights of one RNNCell, got these .*'a\.' \(LSTM\), 'b\.' \(GRU\)"):
        find_cell(state, gates=1)
    with pytest.raises(ValueError, match=r"state_dict\['a\.bias_ih'\]: expected \(8,\)"):
        find_cell(state | {"a.bias_ih": np.zeros(9)})
    with pytest.raises(ValueError, match=r"expected arrays 'a\.bias_hh' too"):
        find_cell({name: array for name, array in cell("a.").items() if name != "a.bias_hh"})


@pytest.mark.parametrize(
    ("names", "asked", "prefix"),
    [
        (["module.lstm."], "lstm.", "module.lstm."),
        (["module.lstm."], "lstm", "module.lstm."),
        (["_orig_mod.module.lstm.", "_orig_mod.module.lstm2."], "lstm", "_orig_mod.module.lstm."),
        (["encoder._orig_mod.lstm.", "decoder._orig_mod.lstm."], "decoder.lstm.", "decoder._orig_mod.lstm."),
        (["module.encoder.lstm.", "module.decoder.lstm."], "enc", "module.encoder.lstm."),
        (["encoder.lstm.", "decoder.lstm."], "module.decoder.lstm.", "decoder.lstm."),
        (["module."], "", "module."),
        # The name as it stands comes before one without wrappers, and a whole name before a beginning.
        (["lstm.", "module.lstm."], "lstm.", "lstm."),
        (["lstm.", "module.lstm."], "module.lstm.", "module.lstm."),
        (["module.lstm.", "lstm_two."], "lstm", "module.lstm."),
    ],
)
def test_wrappers_may_be_left_out_of_the_prefix(names, asked, prefix):
    state = {key: array for name in names for key, array in layer(name).items()}
    assert find_recurrent_layer(state, asked).prefix == prefix
    cells = {key: array for name in names for key, array in cell(name).items()}
    assert find_cell(cells, asked).prefix == prefix


def test_a_module_that_is_only_called_module_is_one_of_several():
    with pytest.raises(ValueError, match=r"'module\.' \(LSTM\), 'other\.' \(LSTM\)"):
        find_recurrent_layer(layer("module.") | layer("other."))
    with pytest.raises(ValueError, match=r"because prefix='lstm', .*'module\.lstm\.' .*'_orig_mod\.lstm\.'"):
        find_recurrent_layer(layer("module.lstm.") | layer("_orig_mod.lstm."), "lstm")


def test_wrappers_of_torch(torch):
    module = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 2), "other": torch.nn.LSTM(3, 5)})
    compiled = torch.compile(module, backend="eager")
    for wrapped in (torch.nn.DataParallel(module), compiled, torch.nn.DataParallel(compiled)):
        assert "lstm.weight_ih_l0" not in wrapped.state_dict()
        assert find_recurrent_layer(wrapped.state_dict(), "lstm.").hidden_size == 2


def test_every_layer_and_cell_is_listed():
    state = layer("a.", 3) | cell("b.") | layer("c.", 1, num_layers=2) | layer("d.", 7) | {"e.weight_ih": None}
    first, second, third, fourth, fifth = list_recurrent(state | {3: 4, "head.weight": np.zeros(2)})
    assert [(spec.kind, spec.prefix) for spec in (first, second, fourth)] == [
        ("GRU", "a."),
        ("RNN", "c."),
        ("LSTMCell", "b."),
    ]
    assert second.num_layers == 2
    assert "state_dict['d.weight_ih_l0']: expected (8, 3) because hidden_size=2" in third
    assert "state_dict['e.weight_ih']: expected an array of numbers" in fifth


def test_a_list_survives_what_is_no_array():
    (found,) = list_recurrent(layer() | {"weight_hh_l0": "words"})
    assert found == "state_dict['weight_hh_l0']: expected an array of numbers, got <U5"
    assert list_recurrent({}) == []
    with pytest.raises(TypeError, match="state_dict: expected a mapping"):
        list_recurrent([1])


def test_many_layers_are_listed_in_linear_time():
    state = {}
    for number in range(2000):
        state |= {f"{number}.weight_ih_l0": np.zeros((8, 3)), f"{number}.weight_hh_l0": np.zeros((8, 2))}
    start = time.perf_counter()
    assert len(list_recurrent(state)) == 2000
    assert time.perf_counter() - start < 2  # to match every key again for every prefix takes far longer


def test_kept_bfloat16_is_widened_exactly():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    kept = {name: np.random.default_rng(0).random(a.shape).astype(bfloat16) for name, a in layer().items()}
    for state, find in ((kept, find_recurrent_layer), ({k.replace("_l0", ""): a for k, a in kept.items()}, find_cell)):
        for name, array in find(state).parameters.items():
            assert array.dtype == np.float32
            assert (array.view(np.uint32) == state[name].view(np.uint16).astype(np.uint32) << 16).all()
    assert find_recurrent_layer(kept | layer("gru.", 3), "").kind == "LSTM"
