"""The tests of the GPU: on one, or in Numba's simulator, which has a process of its own.

``NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda`` where there is no GPU. Elsewhere, and in the suite of all tests, they are
skipped.
"""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nblstm.cuda import device

HERE = Path(__file__).parent

if device.SIMULATED:
    # Every thread of the GPU is one of Python's, and waits for the others at each meeting: 5 ms at a time by default.
    sys.setswitchinterval(1e-4)
    kernelapi = importlib.import_module("numba.cuda.simulator.kernelapi")

    class SharedArrays(dict[Any, Any]):
        """The shared arrays of a block. Of two threads that asked at once, each could get an array of its own."""

        def __init__(self) -> None:
            super().__init__()
            self._making = threading.Lock()

        def get(self, place: Any, default: Any = None) -> Any:
            """Return the array of a place; whoever finds none goes on alone, and makes it."""
            self._making.acquire()
            if (found := super().get(place, default)) is not None:
                self._making.release()
            return found

        def __setitem__(self, place: Any, array: Any) -> None:
            super().__setitem__(place, array)
            if self._making.locked():  # test_cuda_blocks.py makes them without a look
                self._making.release()

    begin = kernelapi.FakeCUDAShared.__init__

    def begin_with_shared_arrays(shared: Any, *arguments: Any) -> None:
        begin(shared, *arguments)
        shared._allocations = SharedArrays()

    kernelapi.FakeCUDAShared.__init__ = begin_with_shared_arrays


def _problem() -> str:
    """Return why there is nothing to test on; empty if there is."""
    try:
        device.check_device("tests", "cuda")
    except RuntimeError as error:
        return f"no GPU, and not the simulator (NUMBA_ENABLE_CUDASIM=1): {error}"
    return ""


def pytest_collection_modifyitems(items: list[Any]) -> None:
    problem = _problem()
    for item in items:
        if HERE not in item.path.parents:
            continue
        if problem and item.path.name != "test_cuda_compile.py":
            item.add_marker(pytest.mark.skip(reason=problem))
        if device.SIMULATED:
            # The hash of dropout wraps around; the simulator computes it with NumPy's numbers, which warn of that.
            item.add_marker(pytest.mark.filterwarnings("ignore:overflow encountered"))
