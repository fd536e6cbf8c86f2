"""Products over all rows of a call: of inputs by weights, and of two arrays of rows, with blocks in shared memory.

A block of threads makes a tile of the result. It brings so many terms of both factors into shared memory, and each
thread adds their products to its part of the tile, which is in registers. Sums run as chains of 256 terms, whose
results are added up in order: one long chain of thousands has many times the error.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numba
import numpy as np

from nblstm.cuda.device import SIMULATED, Kernel, cuda

CHAIN = 16 if SIMULATED else 256


class Tile(NamedTuple):
    """What a block makes: side * m by side * n numbers, with side^2 threads of m * n each, `terms` terms at a time."""

    side: int
    m: int
    n: int
    terms: int


SMALL, LARGE = (Tile(2, 4, 4, 8), Tile(2, 8, 4, 8)) if SIMULATED else (Tile(16, 4, 4, 16), Tile(16, 8, 4, 16))


@functools.cache
def product(dtype: np.dtype[Any], tile: Tile, over_rows: bool) -> Kernel:
    """Return the kernel for a dtype and a tile.

    `over_rows` says which of two products over positions p it is::

        False:  c[p, n] = bias[n] + sum over k of a[p, k] b[k, n]
        True:   c[m, n] = sum over p of a[p, m] b[p, n]
    """
    number, zero, index = numba.from_dtype(dtype), dtype.type(0), np.uint64
    side, m_each, n_each, depth = tile
    m_size, n_size, threads = side * m_each, side * n_each, side * side
    m_loads, n_loads = m_size * depth // threads, n_size * depth // threads
    padded, place_count = m_size + 1, max(m_size, depth)
    a_size, b_size = depth * padded, depth * n_size

    def run(a, b, bias, c, positions, rows, a_from, c_from, adds):
        """Make a tile of c for each block of the grid.

        a          in   (steps, rows, K) or, over rows, (steps, rows, M); any strides; position p is
                        [p // rows, p % rows]
        b          in   (1, K, N), or, over rows, (steps, rows, N); any strides
        bias       in   (N,); empty: zeros
        c          out  (steps, rows, N); over rows (Z, M, N), partial sums over the blocks along z
        positions  in   (rows,) the positions; empty: 0, 1, ...
        rows       how many positions there are
        a_from     what to add to a position for a, and for b if over rows
        c_from     and for c
        adds       c is added to, not set
        """
        a_tile = cuda.shared.array(a_size, number)
        b_tile = cuda.shared.array(b_size, number)
        places = cuda.shared.array(place_count, numba.int64)
        sums = cuda.local.array((m_each, n_each), number)
        totals = cuda.local.array((m_each, n_each), number)
        values = cuda.local.array(m_each, number)
        thread = cuda.threadIdx.x
        down, across = thread // side, thread % side
        first_m, first_n = cuda.blockIdx.x * m_size, cuda.blockIdx.y * n_size
        outputs, terms, first_term, last_term = c.shape[2], a.shape[2], 0, a.shape[2]
        if over_rows:
            terms = rows
            chains = (rows + CHAIN - 1) // CHAIN
            share = (chains + cuda.gridDim.z - 1) // cuda.gridDim.z * CHAIN
            first_term = min(cuda.blockIdx.z * share, terms)
            last_term = min(first_term + share, terms)
        else:
            for m in range(thread, m_size, threads):
                if first_m + m < rows:
                    places[m] = a_from + (positions[first_m + m] if positions.size > 0 else first_m + m)
        lines = a.shape[2] if over_rows else rows
        for j in range(n_each):
            n = first_n + across + j * side
            start = bias[n] if n < outputs and bias.size > 0 else zero
            for i in range(m_each):
                sums[i, j], totals[i, j] = zero, start
        for first in range(first_term, last_term, depth):
            cuda.syncthreads()
            if over_rows:
                for k in range(thread, min(depth, last_term - first), threads):
                    p = first + k
                    places[k] = a_from + (positions[p] if positions.size > 0 else p)
                cuda.syncthreads()
                for i in range(m_loads):  # neighbours of a row by neighbouring threads
                    at = thread + i * threads
                    k, m = at // m_size, at % m_size
                    value = zero
                    if first + k < last_term and first_m + m < lines:
                        p = places[k]
                        value = a[p // a.shape[1], p % a.shape[1], first_m + m]
                    a_tile[k * padded + m] = value
            else:
                for i in range(m_loads):
                    at = thread + i * threads
                    k, m = at % depth, at // depth
                    value = zero
                    if first + k < last_term and first_m + m < lines:
                        p = places[m]
                        value = a[p // a.shape[1], p % a.shape[1], first + k]
                    a_tile[k * padded + m] = value
            for i in range(n_loads):
                at = thread + i * threads
                k, n = at // n_size, at % n_size
                value = zero
                if first + k < last_term and first_n + n < outputs:
                    if over_rows:
                        p = places[k]
                        value = b[p // b.shape[1], p % b.shape[1], first_n + n]
                    else:
                        value = b[0, first + k, first_n + n]
                b_tile[k * n_size + n] = value
            cuda.syncthreads()
            from_a, from_b = index(down), index(across)  # unsigned, as in nblstm.cuda.slices
            for k in range(depth):
                for i in range(m_each):
                    values[i] = a_tile[from_a + index(k * padded + i * side)]
                for j in range(n_each):
                    weight = b_tile[from_b + index(k * n_size + j * side)]
                    for i in range(m_each):
                        sums[i, j] = cuda.fma(values[i], weight, sums[i, j])
            if (first - first_term + depth) % CHAIN == 0:
                for i in range(m_each):
                    for j in range(n_each):
                        totals[i, j] += sums[i, j]
                        sums[i, j] = zero
        for i in range(m_each):
            m = first_m + down + i * side
            if m < lines:
                z, row = cuda.blockIdx.z, m
                if not over_rows:
                    p = c_from + (positions[m] if positions.size > 0 else m)
                    z, row = p // c.shape[1], p % c.shape[1]
                for j in range(n_each):
                    n = first_n + across + j * side
                    if n < outputs:
                        value = totals[i, j] + sums[i, j]
                        c[z, row, n] = c[z, row, n] + value if adds else value

    i64, any_3d = numba.int64, number[:, :, :]
    signature = numba.void(any_3d, any_3d, number[::1], any_3d, i64[::1], i64, i64, i64, numba.boolean)
    return Kernel(run, signature)


@functools.cache
def column_sums(dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel that sums columns over positions: b's gradient."""
    number, zero = numba.from_dtype(dtype), dtype.type(0)

    def run(a, c, positions, rows):
        """Sum a (1, N, M), any strides, over the positions: c (Z, 1, M), partial sums by the blocks along y."""
        m = cuda.grid(1)
        chains = (rows + CHAIN - 1) // CHAIN
        share = (chains + cuda.gridDim.y - 1) // cuda.gridDim.y * CHAIN
        first = min(cuda.blockIdx.y * share, rows)
        last = min(first + share, rows)
        if m < a.shape[2]:
            total = chain = zero
            for p in range(first, last):
                chain += a[0, positions[p] if positions.size > 0 else p, m]
                if (p - first + 1) % CHAIN == 0:
                    total += chain
                    chain = zero
            c[cuda.blockIdx.y, 0, m] = total + chain

    index = numba.int64
    return Kernel(run, numba.void(number[:, :, :], number[:, :, ::1], index[::1], index))


@functools.cache
def add_up(dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel that adds up partial sums in their order."""
    number = numba.from_dtype(dtype)

    def run(parts, result):
        """Set result (M * N,) to the sum of parts (Z, M * N) over Z."""
        for at in range(cuda.grid(1), result.size, cuda.gridsize(1)):
            total = parts[0, at]
            for z in range(1, parts.shape[0]):
                total += parts[z, at]
            result[at] = total

    return Kernel(run, numba.void(number[:, ::1], number[::1]))


@functools.cache
def assign(dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel that copies one array to another; a source with strides of zero fills."""
    number = numba.from_dtype(dtype)

    def run(target, source):
        """Set target (X, Y, Z) to source (X, Y, Z); any strides."""
        for at in range(cuda.grid(1), target.shape[0] * target.shape[1] * target.shape[2], cuda.gridsize(1)):
            z, rest = at % target.shape[2], at // target.shape[2]
            target[rest // target.shape[1], rest % target.shape[1], z] = source[
                rest // target.shape[1], rest % target.shape[1], z
            ]

    return Kernel(run, numba.void(number[:, :, :], number[:, :, :]))


@functools.cache
def spread(dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel that lays states out as the products of the steps read them."""
    number = numba.from_dtype(dtype)

    def run(states, exchange, state_rows):
        """Set exchange (D, 2, P, B), both of the two, to states (D, B, P) in the order of the kernel's rows."""
        directions, batch, size = states.shape
        for at in range(cuda.grid(1), directions * batch * size, cuda.gridsize(1)):
            r, rest = at % batch, at // batch
            d, k = rest // size, rest % size
            value = states[d, state_rows[r] if state_rows.size > 0 else r, k]
            exchange[d, 0, k, r] = value
            exchange[d, 1, k, r] = value

    return Kernel(run, numba.void(number[:, :, ::1], number[:, :, :, ::1], numba.int64[::1]))
