"""The recurrences on many blocks that wait for one another: on a GPU, or in a simulator that runs them all at once.

Numba's simulator runs a block after the other, and lets no more than one wait. Here every block of a launch has its own
threads of Python and its own shared memory, every meeting needs all threads, and some threads are late at random.
"""

from __future__ import annotations

import importlib
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from cases import random_inputs
from test_cuda_vjp import assert_same_gradients

import nblstm
from nblstm.cuda import device, engine, plan

if device.SIMULATED:
    kernel, kernelapi = (importlib.import_module(f"numba.cuda.simulator.{name}") for name in ("kernel", "kernelapi"))

    class Thread(kernel.BlockThread):
        def __init__(self, manager: AllBlocks, args: Any, block: Any, at: Any, meeting: Any, grid_meeting: Any) -> None:
            super().__init__(lambda: manager.function(*args), manager, block, at, False)
            self.manager, self.meeting, self.grid_meeting = manager, meeting, grid_meeting

        def syncthreads(self) -> None:
            self.meeting.wait(60)
            if random.random() < 0.02:
                time.sleep(random.random() * 1e-3)

        def sync_grid(self) -> None:
            AllBlocks.grids_that_met.add(self.manager._grid_dim)
            self.grid_meeting.wait(60)
            if random.random() < 0.1:
                time.sleep(random.random() * 2e-3)

        def run(self) -> None:
            super().run()
            if self.exception:
                self.meeting.abort()
                self.grid_meeting.abort()

    class AllBlocks:
        grids_that_met: ClassVar[set[Any]] = set()

        def __init__(self, function: Any, grid: Any, block: Any, debug: bool) -> None:
            self.function, self._grid_dim, self._block_dim = function, grid, block
            self.block_state = np.zeros(block, bool)

        def run(self, point: Any, *args: Any) -> None:
            if any(point):  # they all ran with the first
                return
            threads, size = [], int(np.prod(self._block_dim))
            grid_meeting = threading.Barrier(size * int(np.prod(self._grid_dim)))
            for block in np.ndindex(*self._grid_dim):
                meeting = threading.Barrier(size)
                for at in np.ndindex(*self._block_dim):
                    threads.append(Thread(self, args, block, at, meeting, grid_meeting))
            random.shuffle(threads)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            errors = [thread.exception[0] for thread in threads if thread.exception]
            errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
            if errors:
                raise errors[0]

    lock, shared_array = threading.Lock(), kernelapi.FakeCUDAShared.array

    def array_of_a_block(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
        key = tuple(threading.current_thread().blockIdx), sys._getframe(1).f_lineno
        with lock:
            if key not in self._allocations:
                number = np.dtype(str(dtype))
                count = self._dynshared_size // number.itemsize if shape == 0 else shape
                self._allocations[key] = np.full(count, np.nan if number.kind == "f" else 0, number)
            return self._allocations[key]


@pytest.fixture
def all_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spread layers over as many blocks as there are; in the simulator six at once."""
    if device.SIMULATED:
        monkeypatch.setattr(kernel, "BlockManager", AllBlocks)
        monkeypatch.setattr(kernelapi.FakeCUDAShared, "array", array_of_a_block)
        monkeypatch.setattr(kernelapi.GridGroup, "sync", lambda self: threading.current_thread().sync_grid())
        monkeypatch.setattr(device.Kernel, "most_cooperative_blocks", lambda *arguments: 6)
        limits = engine.limits(0)._replace(processors=6)
        monkeypatch.setattr(engine, "limits", lambda index: limits)
        AllBlocks.grids_that_met.clear()
    monkeypatch.setattr(plan, "_MEET", -1e9)
    plan.choose.cache_clear()
    yield
    plan.choose.cache_clear()
    if device.SIMULATED:
        assert any(grid[0] > 1 for grid in AllBlocks.grids_that_met)


def test_lstm(all_blocks: None) -> None:
    layer = nblstm.LSTM(3, 7, dtype=np.float64, seed=0)
    assert_same_gradients(layer, *random_inputs(layer, 4, 5))


def test_gru_with_lengths(all_blocks: None) -> None:
    layer = nblstm.GRU(3, 7, bidirectional=True, dtype=np.float64, seed=0)
    assert_same_gradients(layer, *random_inputs(layer, 4, 3), lengths=[2, 4, 1])


def test_projection_in_both_directions(all_blocks: None) -> None:
    layer = nblstm.LSTM(3, 7, bidirectional=True, proj_size=5, dtype=np.float64, seed=0)
    assert_same_gradients(layer, *random_inputs(layer, 4, 3))


@pytest.mark.skipif(device.SIMULATED, reason="too large for the simulator")
@pytest.mark.parametrize(("units", "batch"), [(128, 1), (256, 64)])
def test_sizes_that_spread(units: int, batch: int, all_blocks: None) -> None:
    for build in (nblstm.LSTM, nblstm.GRU):
        layer = build(32, units, seed=0)
        assert_same_gradients(layer, *random_inputs(layer, 20, batch), limit=1e-4)
