"""Every kernel compiles for a GPU of compute capability 9.0; the simulator does not know types. Needs NVVM, no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import numpy as np
from numba.cuda import dispatcher
from numba import cuda

class Hopper:
    compute_capability = (9, 0)

dispatcher.get_current_device = lambda: Hopper  # functions of a device ask for it
try:
    cuda.compile_ptx(lambda: None, (), device=True, cc=(9, 0))
except Exception as error:
    print("no NVVM:", error)
    raise SystemExit

from nblstm.cuda import backprop, dropout, products, recurrence, slices
from nblstm.kernels import cells

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
CELLS = {"lstm": cells.LSTM, "gru": cells.GRU, "tanh": cells.RNN_TANH, "relu": cells.RNN_RELU}
kernels = {}  # by what they are, their dtype, and whether their blocks wait for one another
for dtype in (F32, F64):
    for meets in (True, False):
        for name, cell in CELLS.items() if dtype == F32 else [("lstm", cells.LSTM)]:
            rows = 32 // dtype.itemsize if meets else slices.ROWS[0]
            kernels[name, dtype, meets] = recurrence.recurrence(cell, dtype, rows, meets, False, meets)
            kernels[name + " back", dtype, meets] = backprop.backprop(cell, dtype, rows, meets, False)
        kernels["projection", dtype, meets] = recurrence.recurrence(cells.LSTM, dtype, 4, meets, True, True)
        kernels["projection back", dtype, meets] = backprop.backprop(cells.LSTM, dtype, 4, meets, True)
    for tile in (products.SMALL, products.LARGE):
        for over_rows in (True, False):
            kernels[f"product {tile} {over_rows}", dtype, False] = products.product(dtype, tile, over_rows)
    for make in (products.column_sums, products.add_up, products.assign, products.spread, dropout.drop_units):
        kernels[make.__name__, dtype, False] = make(dtype)
for (name, dtype, meets), kernel in kernels.items():
    ptx, _ = cuda.compile_ptx(kernel.function, kernel.signature, device=False, cc=(9, 0))
    assert ("cudaCGSynchronize" in ptx) == meets, name
    assert dtype == F64 or ".f64" not in ptx, f"{name} computes in float64"
print("compiled", len(kernels))
"""


def test_kernels_compile_for_hopper() -> None:
    pytest.importorskip("numba_cuda")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.stdout.startswith("no NVVM"):
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("compiled ")
