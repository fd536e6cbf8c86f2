"""Who is measured: nblstm and its peers, each with the settings that its makers advise for latency on a CPU.

Every engine stands alone in a process of its own (nblstm.commands.benchmark.process); none is imported before its
process has begun. All get the same weights and the same input and give the whole output sequence, in fresh memory or in
memory of their own; initial states are zeros. Of sequences of different lengths torch and nblstm get a packed sequence
and give one, packed and padded again off the clock; the others get and give a padded batch. A new engine is a class
here and a line in `ENGINES`; a new kind of case is a method of each engine that offers it.

In training every call begins without gradients and ends with those of all weights and of the input. The weights stay
what they are: no optimiser is timed, nor what nblstm does at the first call with new weights.

A cell or a stream begins with zeros and takes the input a step a call. Every peer is called for a step and handed the
states that the call before gave, for either; so a stream, which keeps its states, stands beside what serves for one.

* nblstm: the public call of the layer, the cell or the stream; in training `vjp`, and the function that it returns.
* torch: ``torch.nn.LSTM``, ``GRU`` or ``RNN`` under ``inference_mode``, ``set_num_threads``; in training autograd. A
  step is a sequence of one.
* torch-cell: ``torch.nn.LSTMCell``, ``GRUCell`` or ``RNNCell``, likewise; for steps of one layer only.
* onnxruntime: an ONNX model of LSTM, GRU or RNN nodes, such as torch exports it, with ``sequence_lens`` where lengths
  differ; ``intra_op_num_threads``, and spinning between operators allowed, as it is by default.
* openvino: the same model; ``INFERENCE_NUM_THREADS``, the latency hint, one request, input and output shared. The
  precision is set to float32: on some CPUs it would compute in bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import nblstm
from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case, NotOffered
from nblstm.commands.benchmark.engine import Engine, Prepared
from nblstm.commands.benchmark.onnx_model import onnx_inputs, onnx_model
from nblstm.errors import message


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

    def cell(self, case: Case) -> Prepared:
        """Make the cell."""
        make, steps = getattr(nblstm, f"{case.layer}Cell"), list(case.input())
        cell = make.from_state_dict(cell_parameters(case), **_nonlinearity(case))

        def call() -> Any:
            state = None
            for x in steps:
                state = cell(x, state)
            return state

        first, state = steps[0], call()
        return Prepared(call, lambda state: {"output": _hidden(case, state)}, lambda: cell(first, state))

    def stream(self, case: Case) -> Prepared:
        """Begin a stream."""
        stream, steps = layer_of(case).stream(case.batch), list(case.input())

        def call() -> Any:
            stream.reset()
            for x in steps:
                y = stream(x)
            return y

        first = steps[0]
        return Prepared(call, lambda y: {"output": y}, lambda: stream(first))


def cell_parameters(case: Case) -> dict[str, Array]:
    """Return the weights of a network of one layer by the names of a cell's."""
    return {name.removesuffix("_l0"): array for name, array in case.parameters().items()}


def _hidden(case: Case, state: Any) -> Any:
    """Return h of a cell's state, (h, c) or h."""
    return state[0] if case.cell == "LSTM" else state


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


class _Torch(Engine):
    """PyTorch."""

    packages = ("torch",)

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch

    def _with_parameters(self, module: Any, parameters: dict[str, Array]) -> Any:
        module.load_state_dict({name: self._torch.from_numpy(array) for name, array in parameters.items()})
        return module


class Torch(_Torch):
    """PyTorch, which runs LSTMs by oneDNN where that has them, and the other layers by its own loops."""

    name = "torch"

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
        return self._with_parameters(layer, case.parameters())

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

    def cell(self, case: Case) -> Prepared:
        """Make the layer, which is called with a step at a time."""
        layer, steps = self._layer(case).eval(), self._torch.from_numpy(case.input()).split(1)

        def call() -> Any:
            state = None
            with self._torch.inference_mode():
                for x in steps:
                    y, state = layer(x, state)
            return y

        return Prepared(call, lambda y: {"output": y[0].numpy()})

    stream = cell


class TorchCell(_Torch):
    """The cells of PyTorch, which take a step by fewer and smaller calls than its layers do."""

    name = "torch-cell"

    def cell(self, case: Case) -> Prepared:
        """Make the cell of ``torch.nn``."""
        if case.layers > 1 or case.projection:
            raise NotOffered("a cell of torch is one layer, without a projection")
        torch = self._torch
        make, dtype = getattr(torch.nn, f"{case.layer}Cell"), getattr(torch, case.dtype)
        cell = make(case.inputs, case.hidden, dtype=dtype, **_nonlinearity(case)).eval()
        self._with_parameters(cell, cell_parameters(case))
        steps = torch.from_numpy(case.input()).unbind()

        def call() -> Any:
            state = None
            with torch.inference_mode():
                for x in steps:
                    state = cell(x, state)
            return state

        return Prepared(call, lambda state: {"output": _hidden(case, state).numpy()})

    stream = cell


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

    def _session(self, case: Case) -> Any:
        return self._session_class(onnx_model(case), self._options, providers=["CPUExecutionProvider"])

    def inference(self, case: Case) -> Prepared:
        """Make a session."""
        session, inputs = self._session(case), onnx_inputs(case)
        return Prepared(lambda: session.run(None, inputs), lambda result: {"output": np.asarray(result[0])})

    def cell(self, case: Case) -> Prepared:
        """Make a session that takes a step."""
        session = self._session(case)
        return _onnx_steps(case, lambda inputs: session.run(None, inputs))

    stream = cell


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

    def _request(self, case: Case) -> Any:
        model = self._core.read_model(model=onnx_model(case), weights=b"")
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()

    def inference(self, case: Case) -> Prepared:
        """Compile the model and make a request."""
        request, inputs = self._request(case), onnx_inputs(case)

        def call() -> Any:
            return request.infer(inputs, share_inputs=True, share_outputs=True)

        return Prepared(call, lambda result: {"output": np.array(result[0])})

    def cell(self, case: Case) -> Prepared:
        """Compile the model of a step and make a request."""
        request = self._request(case)
        # Outputs that were shared would be the memory of the next step's states and of its inputs at once.
        return _onnx_steps(case, lambda inputs: request.infer(inputs, share_inputs=True).to_tuple())

    stream = cell


def _onnx_steps(case: Case, run: Callable[[dict[str, Array]], Sequence[Array]]) -> Prepared:
    """Return the steps of a model whose inputs `run` takes by name: x and the states; it gives y and the states."""
    inputs, steps = onnx_inputs(case), list(case.input()[:, None])
    del inputs["x"]

    def call() -> Any:
        states: Sequence[Array] = list(inputs.values())
        for x in steps:
            y, *states = run({"x": x, **dict(zip(inputs, states, strict=True))})
        return y

    return Prepared(call, lambda y: {"output": np.array(y[0])})


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Nblstm, Torch, TorchCell, OnnxRuntime, OpenVino)}
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
