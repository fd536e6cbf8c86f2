"""What a layer on the GPU is: where it computes, what it takes and gives, and what stays as it was."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from cases import assert_same_bits, random_inputs

import nblstm
from nblstm.cuda import device, using_stream
from nblstm.training import SGD


def test_to_and_back() -> None:
    layer = nblstm.LSTM(3, 4, seed=0)
    x, hx = random_inputs(layer, 3, 2)
    before = layer(x, hx)
    assert layer.device == "cpu"
    assert layer.to("cuda") is layer
    assert layer.device == "cuda:0"
    assert device.on_device(layer(x, hx)[0])
    assert layer.to("cuda:0", np.float64).dtype == np.float64 and layer.device == "cuda:0"
    assert layer.to(dtype=np.float32).device == "cuda:0"
    assert layer.to(device="cpu").device == "cpu"
    assert_same_bits(layer(x, hx), before)


def test_parameters_stay_on_the_host_and_new_ones_count() -> None:
    layer = nblstm.GRU(3, 4, seed=0)
    x, hx = random_inputs(layer, 3, 2)
    state = layer.state_dict()
    layer.to("cuda")
    assert_same_bits(tuple(layer.state_dict().values()), tuple(state.values()))
    layer(x, hx)
    layer.set_parameters({"weight_hh_l0": np.zeros((12, 4), np.float32)})
    found = np.asarray(layer(x, hx)[0])
    np.testing.assert_allclose(found, layer.to("cpu")(x, hx)[0], atol=1e-6)


def test_copies_and_pickles_stay_there() -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x, hx = random_inputs(layer, 3, 2)
    found = np.asarray(layer(x, hx)[0])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.device == "cuda:0"
        assert_same_bits(np.asarray(twin(x, hx)[0]), found)
    assert copy.deepcopy(layer).to("cpu").device == "cpu" and layer.device == "cuda:0"


def test_arrays_of_the_device_are_read_where_they_lie() -> None:
    layer = nblstm.LSTM(3, 4, batch_first=True, seed=0)
    x, hx = random_inputs(layer, 5, 2)
    batches = np.ascontiguousarray(x.swapaxes(0, 1))
    layer.to("cuda")
    found, (h, c) = layer(batches, hx)
    there = device.upload(batches, 0)
    assert device.as_device_array("x", there, 0) is there
    again, (h_2, c_2) = layer(there, (device.upload(hx[0], 0), device.upload(hx[1], 0)))
    for one, other in ((found, again), (h, h_2), (c, c_2)):
        assert_same_bits(np.asarray(one), np.asarray(other))
    every_other = device.strided(there, (2, 2, 3), (there.strides[0], 2 * there.strides[1], there.strides[2]))
    assert_same_bits(np.asarray(layer(every_other, hx)[0]), np.asarray(layer(batches[:, ::2][:, :2], hx)[0]))
    goes_on, _ = layer(batches, (h, c))
    assert goes_on.shape == (2, 5, 4)


def test_out() -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x, hx = random_inputs(layer, 3, 2)
    out = device.empty((3, 2, 4), np.dtype(np.float32), 0)
    output, _ = layer(x, hx, out=out)
    assert output is out
    assert_same_bits(np.asarray(out), np.asarray(layer(x, hx)[0]))
    with pytest.raises(TypeError, match="LSTM out: expected an array in the memory of the device, got ndarray"):
        layer(x, hx, out=np.empty((3, 2, 4), np.float32))
    with pytest.raises(ValueError, match=r"LSTM out: expected \(3, 2, 4\), got \(3, 2, 5\)"):
        layer(x, hx, out=device.empty((3, 2, 5), np.dtype(np.float32), 0))
    with pytest.raises(ValueError, match="LSTM out: expected dtype float32, got float64"):
        layer(x, hx, out=device.empty((3, 2, 4), np.dtype(np.float64), 0))
    strides = (0, *out.strides[1:])
    with pytest.raises(ValueError, match="LSTM out: expected elements that share no memory with one another"):
        layer(x, hx, out=device.strided(out, (3, 2, 4), strides))
    square = nblstm.LSTM(4, 4, seed=0).to("cuda")
    with pytest.raises(ValueError, match="shares memory"):
        square(out, out=out)


BAD: list[tuple[Any, dict[str, Any]]] = [
    (np.zeros((3, 2, 4), np.float32), {}),
    (np.zeros((3, 2, 3)), {}),
    (np.zeros(3, np.float32), {}),
    (np.zeros((0, 2, 3), np.float32), {}),
    ("words", {}),
    (np.zeros((3, 2, 3), np.float32), {"hx": np.zeros((1, 2, 4), np.float32)}),
    (np.zeros((3, 2, 3), np.float32), {"hx": (np.zeros((1, 1, 4), np.float32),) * 2}),
    (np.zeros((3, 2, 3), np.float32), {"lengths": [4, 1]}),
    (np.zeros((3, 2, 3), np.float32), {"dropout_call": -1}),
]


@pytest.mark.parametrize(("x", "options"), BAD)
def test_the_errors_are_the_cpus(x: Any, options: dict[str, Any]) -> None:
    layer = nblstm.LSTM(3, 4, seed=0)
    with pytest.raises(Exception) as on_cpu:
        layer(x, **options)
    layer.to("cuda")
    with pytest.raises(type(on_cpu.value)) as on_gpu:
        layer(x, **options)
    assert str(on_gpu.value) == str(on_cpu.value)
    if isinstance(x, np.ndarray):
        with pytest.raises(type(on_cpu.value)) as of_a_device_array:
            layer(device.upload(x, 0), **options)
        assert str(of_a_device_array.value) == str(on_cpu.value)


def test_what_is_for_the_cpu_alone_says_so() -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    with pytest.raises(ValueError, match="LSTM stream: expected a layer on the CPU, got one on cuda:0"):
        layer.stream()
    with pytest.raises(ValueError, match="LSTM trace: expected a layer on the CPU"):
        layer.trace(np.zeros((1, 1, 3), np.float32))
    with pytest.raises(ValueError, match="LSTMCell has no GPU kernels"):
        nblstm.LSTMCell(3, 4).to("cuda")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"LSTM\.to device: expected a device below cuda:"):
        nblstm.LSTM(3, 4).to("cuda:99")


def test_a_stream_of_ones_own() -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x, hx = random_inputs(layer, 3, 2)
    found = np.asarray(layer(x, hx)[0])
    stream = device.cuda.stream()
    with using_stream(stream):
        (output, _), backward = layer.vjp(device.upload(x, stream), hx)
        gradients = backward(output)
    assert_same_bits(np.asarray(output), found)
    assert gradients.input.shape == x.shape
    if not device.SIMULATED:
        assert int(output.stream) == int(stream)


def test_the_way_back_waits_for_the_calls_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    order = device.order_after
    monkeypatch.setattr(
        device, "order_after", lambda other, stream: (waits.append((other, stream)), order(other, stream))
    )
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x, _ = random_inputs(layer, 3, 2)
    one, other = device.cuda.stream(), device.cuda.stream()
    with using_stream(one):
        (output, _), backward = layer.vjp(x)
    d_output = np.ones(output.shape, np.float32)
    waits.clear()
    with using_stream(other):
        backward(d_output)
    assert waits == [(one, other)]


def test_arrays_of_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x = device.upload(np.zeros((3, 2, 3), np.float32), 0)
    monkeypatch.setattr(device, "_device_of", lambda array: 1)
    with pytest.raises(ValueError, match="LSTM input: expected an array on cuda:0, got one on cuda:1"):
        layer(x)


@pytest.mark.parametrize("build", [nblstm.LSTM, nblstm.GRU])
def test_many_calls_in_a_fresh_thread(build: Any) -> None:
    layer = build(3, 4, seed=0)
    x, hx = random_inputs(layer, 3, 2)
    expected, found = layer(x, hx)[0], []
    layer.to("cuda")
    calls = 3 if device.SIMULATED else 50
    thread = threading.Thread(target=lambda: found.extend(np.asarray(layer(x, hx)[0]) for _ in range(calls)))
    thread.start()
    thread.join()
    assert len(found) == calls
    for one in found:
        np.testing.assert_allclose(one, expected, atol=1e-6)


@pytest.mark.skipif(device.SIMULATED, reason="the simulator's arrays have no addresses")
def test_a_strangers_array() -> None:
    class Strange:
        def __init__(self, array: Any, stream: int | None) -> None:
            self.array, self.stream = array, stream

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {**self.array.__cuda_array_interface__, "stream": self.stream, "version": 3}

    layer = nblstm.LSTM(3, 4, seed=0).to("cuda")
    x, hx = random_inputs(layer, 3, 2)
    found = np.asarray(layer(x, hx)[0])
    stream = device.cuda.stream()
    for order in (None, 1, 2, int(stream)):
        assert_same_bits(np.asarray(layer(Strange(device.upload(x, 0), order), hx)[0]), found)


def test_an_optimiser_takes_the_gradients() -> None:
    layers = [nblstm.LSTM(3, 4, seed=0), nblstm.LSTM(3, 4, seed=0).to("cuda")]
    x, hx = random_inputs(layers[0], 3, 2)
    for layer in layers:
        (output, _), backward = layer.vjp(x, hx)
        SGD([layer], lr=0.1).step([backward(output)])
    for name, array in layers[0].named_parameters():
        np.testing.assert_allclose(layers[1].state_dict()[name], array, atol=1e-6)
    np.testing.assert_allclose(np.asarray(layers[1](x, hx)[0]), layers[0](x, hx)[0], atol=1e-6)


def test_states_in_lists() -> None:
    lstm, gru = nblstm.LSTM(2, 2, dtype=np.float64, seed=0), nblstm.GRU(2, 2, dtype=np.float64, seed=0)
    x, h = np.ones((2, 1, 2)), [[[0.5, 0.25]]]
    for layer, hx in ((lstm, [h, h]), (gru, h)):
        expected = layer(x, hx)[0]
        np.testing.assert_allclose(np.asarray(layer.to("cuda")(x, hx)[0]), expected, atol=1e-12)
