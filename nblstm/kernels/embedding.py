"""The way back through a table of vectors: every row's gradient is added to that of its vector."""

from __future__ import annotations

import numba
import numpy as np

from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import typed_entry
from nblstm.kernels.simd import lanes_of, load, store


def _signatures(number):
    return [(numba.int64, numba.int64, numba.int64, numba.int64, number[::1])]


@typed_entry(_signatures)
def add_rows(rows, size, indices, source, table):
    """Add row n of `source` to row ``indices[n]`` of `table`, in the order of n.

    indices  in     address of (rows,) int64
    source   in     address of (rows, size), of the table's dtype; does not overlap it
    table    inout  (numbers, size) as 1-D
    """
    lanes = lanes_of(table)
    places = numbers_at(indices, np.int64(0))
    whole = size - size % lanes
    for n in range(rows):
        row, start = numbers_at(source + n * size * itemsize_of(table), table), places[n] * size
        for k in range(0, whole, lanes):
            store(table, start + k, load(table, start + k) + load(row, k))
        for k in range(whole, size):
            table[start + k] += row[k]
