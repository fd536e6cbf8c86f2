"""Who is measured: nblstm and its peers, each with the settings that its makers advise for latency on a CPU.

Every engine stands alone in a process of its own (nblstm.commands.benchmark.process); none is imported before its
process has begun. All get the same weights and the same input and give the whole output sequence, in fresh memory or in
memory of their own; initial states are zeros. A new engine is a class here and a line in `ENGINES`; a new kind of case
is a method of each engine that offers it.

* nblstm: the layer's public call.
* torch: ``torch.nn.LSTM`` under ``inference_mode``, ``set_num_threads``.
* onnxruntime: an ONNX model of LSTM nodes, such as torch exports it; ``intra_op_num_threads``, and spinning between
  operators allowed, as it is by default.
* openvino: the same model; ``INFERENCE_NUM_THREADS``, the latency hint, one request, input and output shared. The
  precision is set to float32: on some CPUs it would compute in bfloat16.
"""

from __future__ import annotations

import importlib.metadata
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nblstm import LSTM, __version__, set_num_threads
from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case
from nblstm.commands.timing import is_installed
from nblstm.errors import message


class NotOffered(Exception):
    """An engine has no such network; says what it lacks."""


class Prepared(NamedTuple):
    """A case made ready: what to time, and how to read the output (T, B, D*P) off what it returns."""

    call: Callable[[], Any]
    output: Callable[[Any], Array]


class Engine(ABC):
    """An engine on a number of threads; made, and so imported, in its own process only."""

    name: str
    packages: tuple[str, ...] = ()  # what has to be installed for it

    @abstractmethod
    def __init__(self, threads: int) -> None: ...

    @classmethod
    def missing(cls) -> list[str]:
        """Return which of its packages are not installed."""
        return [package for package in cls.packages if not is_installed(package)]

    @classmethod
    def version(cls) -> str:
        """Return the version of the engine's package."""
        return importlib.metadata.version(cls.name).partition("-")[0]

    def prepare(self, case: Case) -> Prepared:
        """Return the case made ready; NotOffered if the engine cannot do it."""
        method = getattr(self, case.kind, None)
        if method is None:
            raise NotOffered(f"{self.name} does no {case.kind}")
        prepared: Prepared = method(case)
        return prepared

    @abstractmethod
    def inference(self, case: Case) -> Prepared:
        """Return the forward pass over the case's input."""


class Nblstm(Engine):
    """The layers of nblstm, as its users call them."""

    name = "nblstm"

    def __init__(self, threads: int) -> None:
        set_num_threads(threads)

    @classmethod
    def version(cls) -> str:
        """Return the version of the sources, which need not be installed."""
        return __version__

    def inference(self, case: Case) -> Prepared:
        """Make an ``LSTM``."""
        lstm = LSTM.from_state_dict(case.parameters()).eval()
        x = case.input()
        return Prepared(lambda: lstm(x), lambda result: np.asarray(result[0]))


class Torch(Engine):
    """PyTorch, which runs LSTMs by oneDNN where oneDNN has them."""

    name = "torch"
    packages = ("torch",)

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch

    def inference(self, case: Case) -> Prepared:
        """Make a ``torch.nn.LSTM``."""
        torch = self._torch
        lstm = torch.nn.LSTM(
            case.inputs,
            case.hidden,
            case.layers,
            bidirectional=case.bidirectional,
            proj_size=case.projection,
            dtype=getattr(torch, case.dtype),
        ).eval()
        lstm.load_state_dict({name: torch.from_numpy(array) for name, array in case.parameters().items()})
        x = torch.from_numpy(case.input())

        def call() -> Any:
            with torch.inference_mode():
                return lstm(x)

        return Prepared(call, lambda result: np.asarray(result[0].numpy()))


class OnnxRuntime(Engine):
    """ONNX Runtime with its CPU provider."""

    name = "onnxruntime"
    packages = ("onnxruntime", "onnx")

    def __init__(self, threads: int) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # what goes wrong comes as an exception
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._session_class = onnxruntime.InferenceSession

    def inference(self, case: Case) -> Prepared:
        """Make a session."""
        session = self._session_class(onnx_model(case), self._options, providers=["CPUExecutionProvider"])
        x = {"x": case.input()}
        return Prepared(lambda: session.run(None, x), lambda result: np.asarray(result[0]))


class OpenVino(Engine):
    """OpenVINO with its CPU plugin."""

    name = "openvino"
    packages = ("openvino", "onnx")

    def __init__(self, threads: int) -> None:
        # Its telemetry forks a process that calls home, in the middle of a measurement; without, it uses a stub.
        vars(sys)["modules"]["openvino_telemetry"] = None
        import openvino

        self._core = openvino.Core()
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def inference(self, case: Case) -> Prepared:
        """Compile the model and make a request."""
        model = self._core.read_model(model=onnx_model(case), weights=b"")
        request = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        x = [case.input()]

        def call() -> Any:
            return request.infer(x, share_inputs=True, share_outputs=True)

        return Prepared(call, lambda result: np.array(result[0]))


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Nblstm, Torch, OnnxRuntime, OpenVino)}
OURS = Nblstm.name


def parse_engines(text: str) -> list[str]:
    """Return the names in `text`, separated by commas, nblstm first; ValueError if one is unknown or not installed."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ENGINES:
            raise ValueError(message("engines", f"some of {', '.join(ENGINES)}", repr(name)))
        if missing := ENGINES[name].missing():
            hint = "The extra `bench` brings them: pip install 'nblstm[bench]'"
            raise ValueError(message("engines", "installed engines", f"{name} without {', '.join(missing)}", hint=hint))
    return [name for name in ENGINES if name in {OURS, *names}]


def onnx_model(case: Case) -> bytes:
    """Return the case's network as an ONNX model with input ``x`` (T, B, I) and output ``y`` (T, B, D*H).

    NotOffered for what neither of its engines has: a projection, and float64.
    """
    if case.projection:
        raise NotOffered("ONNX's LSTM has no projection")
    if case.dtype != "float32":
        raise NotOffered("the LSTMs of onnxruntime and openvino compute in float32 only")
    from onnx import TensorProto, helper, numpy_helper

    parameters = case.parameters()
    tensors = [numpy_helper.from_array(np.array([1], np.int64), "directions")]
    tensors += [numpy_helper.from_array(np.array([0, 0, -1], np.int64), "merged")]  # (T, B, D, H) to (T, B, D*H)
    nodes, source = [], "x"
    for layer in range(case.layers):
        names = [f"w{layer}", f"r{layer}", f"b{layer}"]
        arrays = _onnx_parameters(parameters, [f"_l{layer}{end}" for end in ["", "_reverse"][: case.directions]])
        tensors += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
        raw, target = f"raw{layer}", "y" if layer == case.layers - 1 else f"y{layer}"
        direction = "bidirectional" if case.bidirectional else "forward"
        inputs = [source, *names]
        nodes.append(helper.make_node("LSTM", inputs, [raw], hidden_size=case.hidden, direction=direction))
        # The two ways in which torch exports it: raw is (T, D, B, H).
        if case.bidirectional:
            nodes.append(helper.make_node("Transpose", [raw], [f"{raw}t"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{raw}t", "merged"], [target]))
        else:
            nodes.append(helper.make_node("Squeeze", [raw, "directions"], [target]))
        source = target
    shapes = {"x": (case.steps, case.batch, case.inputs), "y": (case.steps, case.batch, case.directions * case.hidden)}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph(nodes, "lstm", [x], [y], tensors)
    # Versions that every release of either engine since 2023 reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _onnx_parameters(parameters: dict[str, Array], endings: list[str]) -> tuple[Array, Array, Array]:
    """Return ONNX's W (D, 4H, I), R (D, 4H, H) and B (D, 8H) of the layer whose parameters have these endings."""

    def gathered(name: str) -> Array:
        return np.stack([_onnx_gates(parameters[name + ending]) for ending in endings])

    bias = np.concatenate([gathered("bias_ih"), gathered("bias_hh")], axis=1)
    return gathered("weight_ih"), gathered("weight_hh"), bias


def _onnx_gates(rows: Array) -> Array:
    """Reorder rows of gates i, f, g, o to ONNX's i, o, f, c, where its c is torch's g."""
    i, f, g, o = np.split(rows, 4)
    return np.concatenate([i, o, f, g])
