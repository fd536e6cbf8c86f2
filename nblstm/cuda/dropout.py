"""Dropout between layers on the GPU: the mask of the CPU, by the same function of the same numbers."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from nblstm.cuda.device import Kernel, cuda, device_function
from nblstm.kernels import dropout


@functools.cache
def drop_units(dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel that applies dropout to what one layer hands to the next."""
    number, zero = numba.from_dtype(dtype), dtype.type(0)
    mix, shift = device_function(dropout.mix.py_func), np.uint64(32)

    def run(y, starts, sizes, x_rows, state_rows, batch, base, threshold, scale):
        """Scale the units that are kept, and set the others to zero; one block of threads for each step and row.

        y          inout  (N, F), and gradients of it alike
        starts, sizes, x_rows, state_rows, batch: as for `nblstm.cuda.recurrence`
        base       the seed, the call and the layer, mixed
        threshold  a unit is dropped if its 32 random bits are below it
        """
        t, r = cuda.blockIdx.x // batch, cuda.blockIdx.x % batch
        alive, start = batch, t * batch
        if sizes.size > 0:
            alive = sizes[t]
        if starts.size > 0:
            start = starts[t]
        if r < alive:
            position = start + (x_rows[r] if x_rows.size > 0 else r)
            row_base = mix(mix(base, t), state_rows[r] if state_rows.size > 0 else r)
            for unit in range(cuda.threadIdx.x, y.shape[1], cuda.blockDim.x):
                keep = np.int64(mix(row_base, unit) >> shift) >= threshold
                y[position, unit] = y[position, unit] * scale if keep else zero

    index = numba.int64
    tables = index[::1], index[::1], index[::1], index[::1]
    return Kernel(run, numba.void(number[:, ::1], *tables, index, numba.uint64, index, number))
