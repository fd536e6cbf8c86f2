"""Fixtures of all tests: the registry's cases, torch where it is installed, the peer that errors are compared with."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

# Before numba is imported, which reads it then: on a machine with one core it would start one thread, and every
# comparison of one thread with two would be of one with one.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

import cases
import numpy as np
import pytest
from hypothesis import settings
from processes import run

from nblstm import threads

# Likewise: a call uses no more threads than there are cores.
threads._available = lambda: max(2, os.cpu_count() or 1)

# The scripts that record values need torch at once; pytest would import them for doctests.
collect_ignore = ["data"]

# Compilation may fall into any example; and a failure should look the same to everyone.
settings.register_profile("nblstm", deadline=None, derandomize=True)
settings.load_profile("nblstm")


@pytest.fixture(params=cases.CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> cases.Case:
    """Each case of the registry in turn."""
    found: cases.Case = request.param
    return found


@pytest.fixture(params=cases.KINDS.values(), ids=list(cases.KINDS))
def build(request: pytest.FixtureRequest) -> Any:
    """Return the constructor of each kind of layer in turn."""
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    """Each dtype that the kernels compute in."""
    return request.param


@pytest.fixture(scope="session")
def expected() -> str:
    """Return the digest that `processes.PROLOGUE` gives on one thread."""
    return run("nblstm.set_num_threads(1)\nprint(call())")[0]


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch on one thread; tests that need it are skipped where it is not installed."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def peer() -> cases.Peer:
    """Return what float32 errors are compared with: torch, or the reference in float32 where it is not installed."""
    try:
        import torch
    except ImportError:
        return cases.float32_reference
    torch.set_num_threads(1)
    return partial(cases.torch_result, torch)
