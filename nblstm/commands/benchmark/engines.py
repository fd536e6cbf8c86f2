"""Who is measured: nblstm and its peers, each with the settings that its makers advise for latency on a CPU.

Every engine stands alone in a process of its own (nblstm.commands.benchmark.process); none is imported before its
process has begun. All get the same weights and the same input and give the whole output sequence, in fresh memory or in
memory of their own; initial states are zeros. Of sequences of different lengths torch and nblstm get a packed sequence
and give one, packed and padded again off the clock; the others get and give a padded batch. A new engine is a class
here and a line in `ENGINES`; a new kind of case is a method of each engine that offers it.

In training every call begins without gradients and ends with those of all weights and of the input. The weights stay
what they are: no optimiser is timed, nor what nblstm does at the first call with new weights.

* nblstm: the layer's public call; in training `vjp`, and the function that it returns.
* torch: ``torch.nn.LSTM``, ``GRU`` or ``RNN`` under ``inference_mode``, ``set_num_threads``; in training autograd.
* onnxruntime: an ONNX model of LSTM, GRU or RNN nodes, such as torch exports it, with ``sequence_lens`` where lengths
  differ; ``intra_op_num_threads``, and spinning between operators allowed, as it is by default.
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

import nblstm
from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case, NotOffered
from nblstm.commands.benchmark.onnx_model import onnx_inputs, onnx_model
from nblstm.commands.timing import is_installed
from nblstm.errors import message


class Prepared(NamedTuple):
    """A case made ready: what to time, and how to read the results off what it returns.

    These are ``output`` (T, B, D*P) and, of training, the gradients: ``input`` (T, B, I), and those of the weights by
    torch's names. Past the lengths of a packed case output and input are zero.
    """

    call: Callable[[], Any]
    results: Callable[[Any], dict[str, Array]]


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

    @classmethod
    def offers(cls, kind: str) -> bool:
        """Say whether it does a kind of case at all."""
        return hasattr(cls, kind)

    def prepare(self, case: Case) -> Prepared:
        """Return the case made ready; NotOffered if the engine cannot do it."""
        if not self.offers(case.kind):
            raise NotOffered(f"{self.name} does no {case.kind}")
        prepared: Prepared = getattr(self, case.kind)(case)
        return prepared

    @abstractmethod
    def inference(self, case: Case) -> Prepared:
        """Return the forward pass over the case's input."""


class Nblstm(Engine):
    """The layers of nblstm, as its users call them."""

    name = "nblstm"

    def __init__(self, threads: int) -> None:
        nblstm.set_num_threads(threads)

    @classmethod
    def version(cls) -> str:
        """Return the version of the sources, which need not be installed."""
        return nblstm.__version__

    def inference(self, case: Case) -> Prepared:
        """Make the layer."""
        layer, x = layer_of(case), input_of(case)
        return Prepared(lambda: layer(x), lambda result: {"output": _padded(case, result[0])})

    def training(self, case: Case) -> Prepared:
        """Make the layer and the gradient of its output."""
        layer, x, d_output = layer_of(case).train(), input_of(case), _packed(case, case.output_gradient())

        def call() -> Any:
            (output, _), backward = layer.vjp(x)
            return output, backward(d_output)

        def results(result: Any) -> dict[str, Array]:
            output, gradients = result
            own = {"output": _padded(case, output), "input": _padded(case, gradients.input)}
            return own | dict(gradients.parameters)

        return Prepared(call, results)


def layer_of(case: Case) -> Any:
    """Return the case's network as a layer of nblstm, ready for inference."""
    return getattr(nblstm, case.layer).from_state_dict(case.parameters(), **_nonlinearity(case)).eval()


def input_of(case: Case) -> Any:
    """Return what that layer is called with: the input (T, B, I), or the packed sequence of it."""
    return _packed(case, case.input())


def _packed(case: Case, padded: Array) -> Any:
    return nblstm.pack_padded_sequence(padded, case.lengths(), enforce_sorted=False) if case.packed else padded


def _padded(case: Case, sequence: Any) -> Array:
    return nblstm.pad_packed_sequence(sequence)[0] if case.packed else np.asarray(sequence)


def _nonlinearity(case: Case) -> dict[str, str]:
    return {"nonlinearity": case.nonlinearity} if case.nonlinearity else {}


class Torch(Engine):
    """PyTorch, which runs LSTMs by oneDNN where that has them, and the other layers by its own loops."""

    name = "torch"
    packages = ("torch",)

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch

    def _layer(self, case: Case) -> Any:
        """Return the case's network as a layer of ``torch.nn``."""
        torch = self._torch
        projection = {"proj_size": case.projection} if case.projection else {}
        layer = getattr(torch.nn, case.layer)(
            case.inputs,
            case.hidden,
            case.layers,
            bidirectional=case.bidirectional,
            dtype=getattr(torch, case.dtype),
            **projection,
            **_nonlinearity(case),
        )
        layer.load_state_dict({name: torch.from_numpy(array) for name, array in case.parameters().items()})
        return layer

    def _packed(self, case: Case, padded: Array) -> Any:
        tensor, pack = self._torch.from_numpy(padded), self._torch.nn.utils.rnn.pack_padded_sequence
        return pack(tensor, self._torch.from_numpy(case.lengths()), enforce_sorted=False) if case.packed else tensor

    def _padded(self, case: Case, sequence: Any) -> Array:
        padded = self._torch.nn.utils.rnn.pad_packed_sequence(sequence)[0] if case.packed else sequence
        return np.asarray(padded.detach().numpy())

    def inference(self, case: Case) -> Prepared:
        """Make the layer of ``torch.nn``."""
        layer, x = self._layer(case).eval(), self._packed(case, case.input())

        def call() -> Any:
            with self._torch.inference_mode():
                return layer(x)

        return Prepared(call, lambda result: {"output": self._padded(case, result[0])})

    def training(self, case: Case) -> Prepared:
        """Make the layer, an input that wants a gradient, and the gradient of the output."""
        layer, x = self._layer(case).train(), self._packed(case, case.input())
        d_output = self._packed(case, case.output_gradient())
        # Of packed sequences these are fields; a tensor's attribute `data` is something else.
        values, d_values = (x.data, d_output.data) if case.packed else (x, d_output)
        values.requires_grad_()

        def call() -> Any:
            layer.zero_grad(set_to_none=True)
            values.grad = None
            output, _ = layer(x)
            (output.data if case.packed else output).backward(d_values)
            return output

        def results(output: Any) -> dict[str, Array]:
            d_input = x._replace(data=values.grad) if case.packed else values.grad
            gradients = {name: tensor.grad.numpy() for name, tensor in layer.named_parameters()}
            return {"output": self._padded(case, output), "input": self._padded(case, d_input), **gradients}

        return Prepared(call, results)


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
        inputs = onnx_inputs(case)
        return Prepared(lambda: session.run(None, inputs), lambda result: {"output": np.asarray(result[0])})


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
        inputs = onnx_inputs(case)

        def call() -> Any:
            return request.infer(inputs, share_inputs=True, share_outputs=True)

        return Prepared(call, lambda result: {"output": np.array(result[0])})


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
