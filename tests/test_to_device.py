"""`to` of a layer where there is no GPU: what it takes, and the errors that say what is missing."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm.cuda import device, using_stream
from nblstm.cuda.home import Home
from nblstm.kernels import cells
from nblstm.training import Linear


def test_a_layer_is_on_the_cpu() -> None:
    layer = nblstm.LSTM(2, 3)
    assert layer.device == "cpu"
    assert layer.to("cpu") is layer
    assert layer.to("cpu", np.float64).dtype == np.float64
    assert layer.to(device="cpu", dtype="float32").dtype == np.float32
    assert nblstm.GRUCell(2, 3).to("cpu").device == "cpu"


def test_without_numba_cuda_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cuda", None)
    layer = nblstm.LSTM(2, 3)
    with pytest.raises(RuntimeError, match=r"LSTM\.to device: expected numba-cuda.*pip install \"nblstm\[cuda\]\""):
        layer.to("cuda")
    assert layer.device == "cpu"
    layer(np.zeros((1, 1, 2), np.float32))


def test_without_a_gpu_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver:
        @staticmethod
        def is_available() -> bool:
            return False

        @staticmethod
        def current_context() -> None:
            raise OSError("\nError at driver init: \nthe driver's library\ncannot be found\n: ")

    monkeypatch.setattr(device, "cuda", NoDriver)
    with pytest.raises(RuntimeError) as error:
        nblstm.GRU(2, 3).to("cuda:1")
    expected = "GRU.to device: expected a CUDA device, got none (the driver's library cannot be found). It needs"
    assert str(error.value).startswith(expected)
    assert "numba-cuda[cu13]" in str(error.value)


def test_a_layer_from_another_machines_pickle_says_so_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nblstm.LSTM(2, 3, seed=0)
    layer._home = Home(0)
    again = pickle.loads(pickle.dumps(layer))
    monkeypatch.setattr(device, "cuda", None)
    assert again.device == "cuda:0"
    x = np.zeros((1, 1, 2), np.float32)
    for call in (again, again.vjp):
        with pytest.raises(RuntimeError, match="LSTM device: expected numba-cuda"):
            call(x)
    assert again.to("cpu")(x)[0].shape == (1, 1, 3)


@pytest.mark.parametrize("layer", [nblstm.LSTMCell(2, 3), nblstm.RNNCell(2, 3), Linear(2, 3)], ids=repr)
def test_what_has_no_gpu_kernels_says_so(layer: Any) -> None:
    name = type(layer).__name__
    with pytest.raises(ValueError, match=rf"{name}\.to device: expected 'cpu' because {name} has no GPU kernels"):
        layer.to("cuda")


def test_a_cell_of_ones_own_has_none_either() -> None:
    class Own(nblstm.GRU):
        _CELL = cells.GRU._replace(code=99)

    with pytest.raises(ValueError, match=r"Own\.to device: expected 'cpu' because Own has no GPU kernels"):
        Own(2, 3).to("cuda")


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1"])
def test_names_that_are_no_device(name: str) -> None:
    with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
        nblstm.LSTM(2, 3).to(name)
    with pytest.raises(ValueError, match="expected 'cpu', 'cuda' or 'cuda:0'"):
        nblstm.LSTM(2, 3).to(device="tpu")


def test_neither_a_device_nor_a_dtype() -> None:
    layer = nblstm.LSTM(2, 3)
    with pytest.raises(TypeError, match="expected float32 or float64, got None"):
        layer.to()
    with pytest.raises(TypeError):
        layer.to("words")
    with pytest.raises(TypeError, match="expected float32 or float64"):
        layer.to("cpu", np.int32)


def test_two_devices_or_two_dtypes() -> None:
    layer = nblstm.LSTM(2, 3)
    with pytest.raises(TypeError, match=r"LSTM\.to device: expected one device, got 'cuda' and 'cpu'"):
        layer.to("cuda", device="cpu")
    with pytest.raises(TypeError, match=r"LSTM\.to dtype: expected one dtype"):
        layer.to(np.float64, np.float32)
    assert (layer.device, layer.dtype) == ("cpu", np.float32)


def test_streams_are_checked() -> None:
    for stream in (None, "0", True):
        with pytest.raises(TypeError, match="using_stream stream: expected a stream of Numba"):
            using_stream(stream).__enter__()


def test_the_first_device_of_a_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Gpu:
        def __init__(self, number: int) -> None:
            self.id = number

        def __enter__(self) -> None:
            events.append(f"push {self.id}")

        def __exit__(self, *error: object) -> None:
            events.append(f"pop {self.id}")

    class Gpus(list[Gpu]):
        current: Gpu | None = None

    class Driver:
        gpus = Gpus([Gpu(0), Gpu(1)])

        @classmethod
        def select_device(cls, index: int) -> None:
            events.append(f"select {index}")
            cls.gpus.current = cls.gpus[index]

        @staticmethod
        def current_context() -> None:
            pass

    monkeypatch.setattr(device, "cuda", Driver)
    for index in (1, 1, 0):
        with device.selected(index):
            events.append(f"call on {index}")
    assert events == ["select 1", "call on 1", "call on 1", "push 0", "call on 0", "pop 0"]


def test_without_nvvm_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCompiler:
        @staticmethod
        def is_available() -> bool:
            return False

        @staticmethod
        def current_context() -> None:
            pass

    monkeypatch.setattr(device, "cuda", NoCompiler)
    with pytest.raises(RuntimeError, match=r"got none \(CUDA's compiler library, NVVM, is missing\)"):
        nblstm.LSTM(2, 3).to("cuda")
