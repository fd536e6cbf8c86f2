"""LSTM weights of other homes: their own equations in NumPy, and ONNX Runtime, against nblstm with the same weights.

The homes are written down here from their definitions, one step at a time and in float64, and share nothing with what
they test.
"""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from nblstm import LSTM
from nblstm.weights.gate_orders import (
    from_haste,
    from_keras,
    from_onnx,
    from_per_gate,
    to_haste,
    to_keras,
    to_onnx,
    to_per_gate,
)

I, H, T, B = 3, 5, 7, 2
FROM = {"keras": from_keras, "haste": from_haste}
TO = {"keras": to_keras, "haste": to_haste}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def keras(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
    """Keras, LSTMCell.call: z = inputs kernel + h recurrent_kernel + bias, cut into i, f, c, o."""
    h = c = np.zeros((x.shape[1], recurrent_kernel.shape[0]))
    outputs = []
    for inputs in x:
        z = inputs @ kernel + h @ recurrent_kernel + bias
        z0, z1, z2, z3 = np.split(z, 4, axis=1)
        c = sigmoid(z1) * c + sigmoid(z0) * np.tanh(z2)
        h = sigmoid(z3) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def haste(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> Any:
    """Return what haste's LSTM gives: the same product, cut into i, g, f, o."""
    h = c = np.zeros((x.shape[1], recurrent_kernel.shape[0]))
    outputs = []
    for inputs in x:
        i, g, f, o = np.split(inputs @ kernel + h @ recurrent_kernel + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def onnx_direction(x: Any, w: Any, r: Any, b: Any) -> Any:
    """ONNX, operator LSTM, default activations: X W[iofc]^T + H R[iofc]^T + Wb + Rb."""
    size = r.shape[1]
    gates = {gate: slice(number * size, (number + 1) * size) for number, gate in enumerate("iofc")}
    wb, rb = b[: 4 * size], b[4 * size :]
    h = c = np.zeros((x.shape[1], size))
    outputs = []
    for inputs in x:
        z = {gate: inputs @ w[rows].T + h @ r[rows].T + wb[rows] + rb[rows] for gate, rows in gates.items()}
        c = sigmoid(z["f"]) * c + sigmoid(z["i"]) * np.tanh(z["c"])
        h = sigmoid(z["o"]) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def onnx(x: Any, w: Any, r: Any, b: Any) -> Any:
    """Return both directions side by side; the second one reads backwards and its output is turned round again."""
    outputs = [onnx_direction(x, w[0], r[0], b[0])]
    if len(w) == 2:
        outputs.append(onnx_direction(x[::-1], w[1], r[1], b[1])[::-1])
    return np.concatenate(outputs, axis=2)


def per_gate(x: Any, p: dict[str, Any]) -> Any:
    """Return what the usual hand-written LSTM gives: a is the candidate."""
    h = c = np.zeros((x.shape[1], p["U_i"].shape[0]))
    outputs = []
    for inputs in x:
        i = sigmoid(inputs @ p["W_i"] + h @ p["U_i"] + p["b_i"])
        f = sigmoid(inputs @ p["W_f"] + h @ p["U_f"] + p["b_f"])
        o = sigmoid(inputs @ p["W_o"] + h @ p["U_o"] + p["b_o"])
        a = np.tanh(inputs @ p["W_a"] + h @ p["U_a"] + p["b_a"])
        c = f * c + i * a
        h = o * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


def random(*shape: int) -> Any:
    return np.random.default_rng(list(shape)).standard_normal(shape)


def kernels(inputs: int = I, seed: int = 0) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal(shape) for shape in ((inputs, 4 * H), (H, 4 * H), (4 * H,)))  # type: ignore


def gates() -> dict[str, Any]:
    shapes = {"W": (I, H), "U": (H, H), "b": (H,)}
    generator = np.random.default_rng(0)
    return {f"{kind}_{gate}": generator.standard_normal(shape) for kind, shape in shapes.items() for gate in "ifoa"}


def output(parameters: Any, x: Any) -> Any:
    lstm = LSTM.from_state_dict(parameters)
    assert lstm.dtype == x.dtype
    return lstm(x)[0]


X = random(T, B, I)


@pytest.mark.parametrize(("name", "home"), [("keras", keras), ("haste", haste)])
def test_kernels_give_what_their_home_gives(name, home):
    one, two = kernels(), kernels(H, seed=1)
    stack = FROM[name](*one) | FROM[name](*two, layer=1)
    np.testing.assert_allclose(output(stack, X), home(home(X, *one), *two), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "home"), [("keras", keras), ("haste", haste)])
def test_kernels_of_two_directions(name, home):
    forward, backward = kernels(), kernels(seed=1)
    both = FROM[name](*forward) | FROM[name](*backward, reverse=True)
    expected = np.concatenate([home(X, *forward), home(X[::-1], *backward)[::-1]], axis=2)
    np.testing.assert_allclose(output(both, X), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("directions", [1, 2])
def test_onnx_gives_what_its_definition_says(directions):
    node = random(directions, 4 * H, I), random(directions, 4 * H, H), random(directions, 8 * H)
    second = random(directions, 4 * H, directions * H), random(directions, 4 * H, H) * 2, random(directions, 8 * H) * 2
    stack = from_onnx(*node) | from_onnx(*second, layer=1)
    np.testing.assert_allclose(output(stack, X), onnx(onnx(X, *node), *second), rtol=0, atol=1e-13)


def test_gates_give_what_a_hand_written_lstm_gives():
    weights = gates()
    np.testing.assert_allclose(output(from_per_gate(weights), X), per_gate(X, weights), rtol=0, atol=1e-13)
    reverse = from_per_gate(weights) | from_per_gate(weights, reverse=True)
    np.testing.assert_allclose(output(reverse, X)[..., H:], per_gate(X[::-1], weights)[::-1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_onnx_runtime_agrees(bidirectional, bias):
    onnx_package, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    lstm = LSTM(I, H, 2, bias, bidirectional=bidirectional, seed=0)
    x = X.astype(np.float32)
    expected, _ = lstm(x)
    found = x
    for layer in range(2):
        inputs = [array for array in to_onnx(lstm.state_dict(), layer=layer) if array is not None]
        assert len(inputs) == 2 + bias
        found = run_onnx(onnx_package, runtime, found, inputs, bidirectional)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def run_onnx(onnx_package: Any, runtime: Any, x: Any, inputs: list[Any], bidirectional: bool) -> Any:
    """Return what ONNX Runtime makes of x with an LSTM node of these weights, (T, B, D*H)."""
    helper, names = onnx_package.helper, ["W", "R", "B"][: len(inputs)]
    direction = "bidirectional" if bidirectional else "forward"
    node = helper.make_node("LSTM", ["x", *names], ["y"], hidden_size=H, direction=direction)
    tensors = [onnx_package.numpy_helper.from_array(array, name) for array, name in zip(inputs, names, strict=True)]
    values = [helper.make_tensor_value_info(name, onnx_package.TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "lstm", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


@st.composite
def arrays(draw: st.DrawFn, *axes: str) -> list[Any]:
    """Draw arrays of these axes with any bits at all, of one dtype: NaN, -0.0 and denormals too."""
    sizes = {letter: draw(st.integers(1, 3)) for letter in "IH"} | {"D": draw(st.integers(1, 2))}
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shapes = [tuple(int(axis[:-1] or 1) * sizes[axis[-1]] for axis in each.split()) for each in axes]
    return [draw(stn.arrays(dtype, shape, fill=st.nothing())) for shape in shapes]


@given(arrays("I 4H", "H 4H", "4H"), st.sampled_from(sorted(FROM)), st.booleans())
def test_kernels_come_back_with_the_same_bits(weights, name, bias):
    weights = weights if bias else weights[:2]
    parameters = FROM[name](*weights)
    assert all(array.flags.c_contiguous and array.flags.owndata for array in parameters.values())
    if bias:
        assert not parameters["bias_hh_l0"].any()
    back = TO[name](parameters)
    assert all(array.flags.c_contiguous for array in back if array is not None)
    cases.assert_same_bits(tuple(back)[: len(weights)], tuple(weights))
    assert bias or back.bias is None


@given(arrays("D 4H I", "D 4H H", "D 8H"), st.booleans())
def test_onnx_comes_back_with_the_same_bits(weights, bias):
    weights = weights if bias else weights[:2]
    parameters = from_onnx(*weights)
    back = to_onnx(parameters)
    cases.assert_same_bits(tuple(back)[: len(weights)], tuple(weights))
    assert bias or back.B is None
    again = from_onnx(*back)
    assert list(again) == list(parameters)
    cases.assert_same_bits(tuple(again.values()), tuple(parameters.values()))


@given(arrays(*["I H"] * 4, *["H H"] * 4, *["H"] * 4), st.booleans())
def test_gates_come_back_with_the_same_bits(weights, bias):
    names = [f"{kind}_{gate}" for kind in "WUb" for gate in "ifao"]
    given_weights = dict(zip(names, weights[: 12 if bias else 8], strict=False))
    back = to_per_gate(from_per_gate(given_weights | {"head": None}))
    assert list(back) == list(given_weights)
    cases.assert_same_bits(tuple(back.values()), tuple(given_weights.values()))


@pytest.mark.parametrize("name", ["keras", "haste"])
def test_one_bias_is_the_sum_of_two_rounded_once(name):
    lstm = LSTM(I, H, 2, bidirectional=True, seed=0)
    for layer, reverse in [(0, False), (0, True), (1, False), (1, True)]:
        ending = f"_l{layer}{'_reverse' if reverse else ''}"
        summed = getattr(lstm, f"bias_ih{ending}") + getattr(lstm, f"bias_hh{ending}")
        again = FROM[name](*TO[name](lstm.state_dict(), layer=layer, reverse=reverse), layer=layer, reverse=reverse)
        expected = {name: array for name, array in lstm.named_parameters() if name.endswith(ending)}
        expected |= {f"bias_ih{ending}": summed, f"bias_hh{ending}": np.zeros_like(summed)}
        assert list(again) == list(expected)
        cases.assert_same_bits(tuple(again.values()), tuple(expected.values()))


@pytest.mark.parametrize("to", [to_keras, to_haste, to_onnx, to_per_gate])
def test_a_prefix_chooses_among_several(to):
    states = {prefix: LSTM(I, H, seed=seed).state_dict() for seed, prefix in enumerate(["a.", "b."])}
    model = {prefix + name: array for prefix, state in states.items() for name, array in state.items()}
    with pytest.raises(ValueError, match="Choose one with prefix="):
        to(model)
    for prefix, state in states.items():
        got, expected = to(model, prefix=prefix), to(state)
        parts = (got.values(), expected.values()) if isinstance(got, dict) else (got, expected)
        cases.assert_same_bits(*map(tuple, parts))


def test_what_comes_out_is_the_callers():
    weights = tuple(array.astype(np.float32) for array in kernels())
    for made in (from_keras(*weights), from_per_gate(gates()), from_onnx(np.ones((1, 8, 3)), np.ones((1, 8, 2)))):
        for array in made.values():
            array += 1  # neither read-only nor memory of what was given
    cases.assert_same_bits(weights, tuple(array.astype(np.float32) for array in kernels()))
    state = LSTM(I, H, seed=0).state_dict()
    for array in (*to_keras(state), *to_onnx(state), *to_per_gate(state).values()):
        array += 1
    cases.assert_same_bits(tuple(state.values()), tuple(LSTM(I, H, seed=0).state_dict().values()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: from_keras(np.ones((3, 8)), np.ones((3, 8))),
            r"from_keras recurrent_kernel: expected \(H, 4H\), got \(3, 8\)",
        ),
        (
            lambda: from_keras(np.ones((3, 12)), np.ones((2, 8))),
            r"kernel: expected \(I, 4H\) because H=2, got \(3, 12\)",
        ),
        (
            lambda: from_haste(np.ones((3, 8)), np.ones((2, 8)), np.ones((2, 8))),
            r"from_haste bias: expected \(4H,\) because H=2, got \(2, 8\)",
        ),
        (
            lambda: from_onnx(np.ones((8, 3)), np.ones((8, 2))),
            r"from_onnx R: expected \(D, 4H, H\), got \(8, 2\)",
        ),
        (
            lambda: from_onnx(np.ones((1, 8, 3)), np.ones((2, 8, 2))),
            r"W: expected \(D, 4H, I\) because D=2, H=2, got \(1, 8, 3\)",
        ),
        (
            lambda: from_onnx(np.ones((1, 8, 3)), np.ones((1, 8, 2)), np.ones((1, 8))),
            r"B: expected \(D, 8H\) because D=1, H=2, got \(1, 8\)",
        ),
        (
            lambda: from_onnx(np.ones((3, 8, 3)), np.ones((3, 8, 2))),
            r"R: expected \(D, 4H, H\) with one or two directions, got \(3, 8, 2\)",
        ),
        (lambda: from_onnx(np.ones((0, 8, 3)), np.ones((0, 8, 2))), "with one or two directions"),
        (
            lambda: from_per_gate({name: array for name, array in gates().items() if name not in ("W_a", "b_i")}),
            "from_per_gate weights: expected arrays 'W_a', 'b_i' too, got none",
        ),
        (
            lambda: from_per_gate(gates() | {"W_o": np.ones((I, H + 1))}),
            r"weights\['W_o'\]: expected \(I, H\) because H=5, I=3, got \(3, 6\)",
        ),
        (lambda: from_per_gate(gates() | {"b_o": np.ones((H, 1))}), r"weights\['b_o'\]: expected \(H,\) because H=5"),
        (lambda: from_keras(*kernels(), layer=-1), "layer: expected 0 or more, got -1"),
        (
            lambda: to_keras(LSTM(3, 2).state_dict(), layer=1),
            "to_keras layer: expected one of the LSTM's because num_layers=1, got 1",
        ),
        (lambda: to_onnx(LSTM(3, 2).state_dict(), layer=-1), "to_onnx layer: expected one of the LSTM's"),
        (lambda: to_haste(LSTM(3, 2).state_dict(), reverse=True), "reverse: expected False because the LSTM has one"),
        (
            lambda: to_per_gate(LSTM(3, 2, proj_size=1).state_dict()),
            "to_per_gate state_dict: expected an LSTM without projection, got proj_size=1",
        ),
        (lambda: to_keras({"kernel": np.ones(3)}), "state_dict: expected the weights of one LSTM, got only 'kernel'"),
    ],
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_peepholes_are_refused_unless_they_are_zero():
    w, r = np.ones((1, 8, 3)), np.ones((1, 8, 2))
    expected = from_onnx(w, r)
    assert from_onnx(w, r, P=np.zeros((1, 6))).keys() == expected.keys()
    with pytest.raises(ValueError, match="P: expected no peepholes, or zeros because torch's LSTM has none, got other"):
        from_onnx(w, r, P=np.array([[0, 0, 0, 0, 0, 1e-30]]))
    with pytest.raises(ValueError, match="P: expected no peepholes"):
        from_onnx(w, r, P=np.full((1, 6), np.nan))
    with pytest.raises(ValueError, match=r"P: expected \(D, 3H\) because D=1, H=2, got \(6,\)"):
        from_onnx(w, r, P=np.zeros(6))


@pytest.mark.parametrize(
    "call",
    [
        lambda: from_keras("kernel", np.ones((2, 8))),
        lambda: from_keras(*kernels(), layer=1.0),
        lambda: to_onnx(LSTM(3, 2).state_dict(), layer=True),
        lambda: to_keras([np.ones(3)]),
        lambda: from_per_gate([np.ones(3)]),
    ],
)
def test_other_types_are_refused(call):
    with pytest.raises(TypeError, match="expected"):
        call()
