"""Dropout between layers: a mask that is computed, never stored.

Whether a unit is kept is a function of (seed, call number, layer, step, row of the unsorted batch, unit) alone, so any
split of the work and a later backward pass see the same mask. The hash is the finaliser of SplitMix64 (G. Steele,
D. Lea, C. Flood, Fast Splittable Pseudorandom Number Generators, 2014), applied once for each coordinate.
"""

from __future__ import annotations

import numba
import numpy as np

from nblstm.kernels.policy import function, typed_entry

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@function
def mix(state, coordinate):
    """Return `state` with `coordinate` mixed in."""
    z = (state ^ np.uint64(coordinate)) + _GOLDEN
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


def _signatures(number):
    i64, u64 = numba.int64, numba.uint64
    return [(number[:, ::1], i64[::1], i64[::1], i64, u64, u64, i64, i64, number)]


@typed_entry(_signatures)
def drop_units(rows, steps, batch_rows, first_step, seed, call, layer, threshold, scale):
    """Scale the kept elements of `rows` by `scale` and set the others to zero.

    rows        inout  (N, F) contiguous
    steps       in     (N,) int64, the step each row belongs to, counted from `first_step`
    batch_rows  in     (N,) int64, its row of the unsorted batch
    threshold   a unit is dropped if its 32 random bits are below it
    """
    base = mix(mix(mix(np.uint64(0), seed), call), layer)
    zero = rows.dtype.type(0)
    for n in range(rows.shape[0]):
        row_base = mix(mix(base, first_step + steps[n]), batch_rows[n])
        for unit in range(rows.shape[1]):
            keep = np.int64(mix(row_base, unit) >> _32) >= threshold
            rows[n, unit] = rows[n, unit] * scale if keep else zero
