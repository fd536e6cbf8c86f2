"""Layers that many threads and forked processes share: calls see whole versions of the weights, no update is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import random_inputs

from nblstm import LSTM
from nblstm.layers import base


@pytest.fixture
def layer() -> LSTM:
    return LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, seed=1)


def test_many_threads_call_while_one_sets_weights() -> None:
    """Every call sees one version of the weights, whole."""
    layer = LSTM(5, 40, num_layers=2, seed=1)
    versions = [LSTM(5, 40, num_layers=2, seed=seed).state_dict() for seed in range(3)]
    x, hx = random_inputs(layer, 20, 3)
    results = set()
    for version in versions:
        layer.load_state_dict(version)
        results.add(layer(x, hx)[0].tobytes())

    def call(_: int) -> bytes:
        return layer(x, hx)[0].tobytes()

    def set_weights(round_number: int) -> None:
        layer.load_state_dict(versions[round_number % 3])

    with ThreadPoolExecutor(8) as pool:
        setting = pool.map(set_weights, range(100))
        found = set(pool.map(call, range(200)))
        list(setting)
    assert found <= results


def test_no_update_of_another_parameter_is_lost(layer: LSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowWeights(base.Weights):
        def __init__(self, parameters: Any) -> None:
            time.sleep(0.01)
            super().__init__(parameters)

    monkeypatch.setattr(base, "Weights", SlowWeights)
    ones = [{name: np.ones_like(array)} for name, array in layer.named_parameters()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(layer.set_parameters, ones))
    assert all((array == 1).all() for _, array in layer.named_parameters())


def test_an_update_made_while_another_one_reads_its_arrays_is_kept(layer: LSTM) -> None:
    class Nested:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            layer.set_parameters({"bias_hh_l0": np.full(16, 2.0)})
            return np.ones(16)

    layer.set_parameters({"bias_ih_l0": Nested()})
    assert (layer.bias_ih_l0.max(), layer.bias_hh_l0.max()) == (1, 2)


FORKS = """
import os, threading
import numpy as np
from nblstm import LSTM

layer = LSTM(300, 300)
mine = {"weight_ih_l0": np.zeros((1200, 300))}
stop = threading.Event()

def work():
    while not stop.is_set():
        layer.set_parameters(mine)

threading.Thread(target=work).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        layer.set_parameters(mine)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_weights_are_set_in_a_child_forked_while_another_thread_sets_them() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60)
