"""The cases as ONNX models, which onnxruntime and openvino run."""

from __future__ import annotations

from typing import Any

import numpy as np

from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import CELLS, Case, NotOffered

# ONNX's order of the gates, each by its number in torch's: i, o, f, c of torch's i, f, g, o; z, r, h of r, z, n.
_ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


def onnx_inputs(case: Case) -> dict[str, Array]:
    """Return what the model takes: ``x`` (T, B, I), and ``lengths`` (B,) for a packed case.

    Of a step: ``x`` (1, B, I), and the states of each layer, (1, B, H) of zeros: ``h0``, ``c0`` of an LSTM, ``h1``, ...
    """
    if case.in_steps:
        states = [f"{state}{layer}" for layer in range(case.layers) for state in _states(case)]
        zeros = np.zeros((1, case.batch, case.hidden), case.dtype)
        return {"x": case.input()[:1], **dict.fromkeys(states, zeros)}
    return {"x": case.input(), **({"lengths": case.lengths().astype(np.int32)} if case.packed else {})}


def _states(case: Case) -> str:
    return "hc" if case.cell == "LSTM" else "h"


def onnx_model(case: Case) -> bytes:
    """Return the case's network as an ONNX model of those inputs with the output ``y`` (T, B, D*H), padded with zeros.

    The outputs of a step are ``y`` (1, B, H) and the next states, in the order of the inputs.
    NotOffered for what neither of its engines has: a projection, and float64.
    """
    if case.projection:
        raise NotOffered("ONNX's LSTM has no projection")
    if case.dtype != "float32":
        raise NotOffered(f"the {case.layer}s of onnxruntime and openvino compute in float32 only")
    from onnx import TensorProto, helper, numpy_helper

    parameters = case.parameters()
    tensors = [numpy_helper.from_array(np.array([1], np.int64), "directions")]
    tensors += [numpy_helper.from_array(np.array([0, 0, -1], np.int64), "merged")]  # (T, B, D, H) to (T, B, D*H)
    nodes, source = [], "x"
    for layer in range(case.layers):
        names = [f"w{layer}", f"r{layer}", f"b{layer}"]
        endings = [f"_l{layer}{end}" for end in ["", "_reverse"][: case.directions]]
        arrays = _onnx_parameters(case.cell, parameters, endings)
        tensors += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
        raw, target = f"raw{layer}", "y" if layer == case.layers - 1 else f"y{layer}"
        states = [f"{state}{layer}" for state in _states(case)] if case.in_steps else []
        lengths = ["lengths"] if case.packed else [""] * bool(states)
        inputs = [source, *names, *lengths, *states]
        outputs = [raw, *(f"{state}_next" for state in states)]
        nodes.append(helper.make_node(case.layer, inputs, outputs, **_attributes(case)))
        # The two ways in which torch exports it: raw is (T, D, B, H).
        if case.bidirectional:
            nodes.append(helper.make_node("Transpose", [raw], [f"{raw}t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{raw}t", "merged"], [target]))
        else:
            nodes.append(helper.make_node("Squeeze", [raw, "directions"], [target]))
        source = target
    given = onnx_inputs(case)
    x = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    shape = (*given["x"].shape[:2], case.directions * case.hidden)
    y = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    if case.in_steps:
        y += [
            helper.make_tensor_value_info(f"{state.name}_next", TensorProto.FLOAT, (1, *shape[1:])) for state in x[1:]
        ]
    graph = helper.make_graph(nodes, "layer", x, y, tensors)
    # Versions that every release of either engine since 2023 reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _attributes(case: Case) -> dict[str, Any]:
    """Return what makes ONNX's node the network of torch."""
    attributes: dict[str, Any] = {
        "hidden_size": case.hidden,
        "direction": "bidirectional" if case.bidirectional else "forward",
    }
    if case.layer == "GRU":
        attributes["linear_before_reset"] = 1  # the reset gate stands after the product and its bias
    if case.nonlinearity:
        attributes["activations"] = [case.nonlinearity.capitalize()] * case.directions
    return attributes


def _onnx_parameters(cell: str, parameters: dict[str, Array], endings: list[str]) -> tuple[Array, Array, Array]:
    """Return ONNX's W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) of the layer whose parameters have these endings."""

    def gathered(name: str) -> Array:
        gates = [np.split(parameters[name + ending], CELLS[cell].gates) for ending in endings]
        return np.stack([np.concatenate([rows[gate] for gate in _ORDERS[cell]]) for rows in gates])

    bias = np.concatenate([gathered("bias_ih"), gathered("bias_hh")], axis=1)
    return gathered("weight_ih"), gathered("weight_hh"), bias
