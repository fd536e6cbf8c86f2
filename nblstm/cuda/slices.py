"""The product of a step: h of all rows by the slice of a weight matrix whose columns a block of threads owns.

A block works on some rows at a time. Its threads form tiles of N columns by R rows, each with N R sums in registers, so
that a thread reads N + R numbers of shared memory for N R multiply-adds. Where there are more threads than tiles, they
split the terms into slices; `block_product` leaves one partial sum of each slice in shared memory, and whoever reads
them adds them up in order. So results depend on the sizes of the call and on the device, never on timing.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numba
import numpy as np

from nblstm.cuda.device import SIMULATED, cuda, device_function

# Threads of a block; N; the choices of R; numbers that a thread asks the memory for before it waits for one.
THREADS, COLUMNS, ROWS, AT_ONCE = (6, 8, (1, 2), 4) if SIMULATED else (256, 8, (1, 4, 8), 16)


class Slice(NamedTuple):
    """How one block takes its share of a product. Kernels take it as a plain tuple; offsets are in elements.

    In shared memory N columns, and R rows, stand in groups with an element of padding behind each: an odd distance, at
    which the threads of a warp meet in no bank. A thread's partial sums are a group too.
    """

    own: int  # outputs of each gate that a block owns
    width: int  # its columns, gates * own rounded up to whole tiles
    row_block: int  # rows at a time, whole tiles
    slices: int  # of the terms
    chunk: int  # terms of the source that are used at once; as many more are on their way
    weights_at: int  # where the weights begin: all of them, or those of a chunk
    source_at: int  # where two chunks of the source begin, and after they are used the partial sums


def padded(count: int, group: int) -> int:
    """Return how many elements `count` columns or rows take that stand in groups."""
    return count // group * (group + 1) if group > 1 else count


@functools.cache
def block_product(dtype: np.dtype[Any], rows: int, resident: bool) -> tuple[Any, Any, Any]:
    """Return three functions of a device: `load_weights`, `multiply`, and `total`, which adds up partial sums.

    rows      R
    resident  the weights of all terms stay in shared memory; otherwise those of a chunk are loaded with it
    """
    number, zero, index = numba.from_dtype(dtype), dtype.type(0), np.uint64
    N, R = COLUMNS, rows
    column_group, row_group, sum_group = padded(N, N), padded(R, R), padded(N * R, N * R)

    @device_function
    def load_weights(shared, place, weights, gates, first_unit, first_term, terms):
        """Bring the block's columns of `weights`, terms [first_term, first_term + terms), into shared memory.

        shared   out  terms of `width` columns in groups, from `weights_at` on; zeros in columns that are no unit's
        weights  in   (K, G * U) contiguous
        """
        own, width, _, _, _, at, _ = place
        units, stride = weights.shape[1] // gates, width // N * column_group
        abreast = min(width, cuda.blockDim.x)
        together = cuda.blockDim.x // abreast
        values = cuda.local.array(AT_ONCE, number)
        if cuda.threadIdx.x < together * abreast:
            for column in range(cuda.threadIdx.x % abreast, width, abreast):
                gate, unit = column // own, first_unit + column % own
                real, from_column = gate < gates and unit < units, gate * units + unit
                to = at + column // N * column_group + column % N
                for term in range(cuda.threadIdx.x // abreast, terms, AT_ONCE * together):
                    for i in range(AT_ONCE):
                        k = term + i * together
                        values[i] = weights[first_term + k, from_column] if real and k < terms else zero
                    for i in range(AT_ONCE):
                        k = term + i * together
                        if k < terms:
                            shared[to + k * stride] = values[i]

    @device_function
    def multiply(shared, place, weights, gates, first_unit, source, first_row, rows):
        """Leave the partial sums of rows [first_row, first_row + row_block) in shared memory, for `total`.

        shared   inout  the weights, and room for the source and the partial sums
        source   in     (K, B) contiguous, in global memory
        rows     in     rows from this one on have no meaning
        """
        _, width, row_block, slices, chunk, weights_at, source_at = place
        terms, column_tiles, row_tiles = source.shape[0], width // N, row_block // R
        tiles = column_tiles * row_tiles
        part, tile = cuda.threadIdx.x // tiles, cuda.threadIdx.x % tiles
        weight_stride, source_stride = column_tiles * column_group, row_tiles * row_group
        from_weights = weights_at + tile % column_tiles * column_group + part * weight_stride
        from_source = source_at + tile // column_tiles * row_group + part * source_stride
        sums = cuda.local.array((N, R), number)
        values = cuda.local.array(R, number)
        for n in range(N):
            for r in range(R):
                sums[n, r] = zero
        # A chunk of the source is asked for before the one before it is used, and laid down after: (chunk, row_block)
        # in one of two places, by threads that take one row each and every `together`-th term.
        coming = cuda.local.array(AT_ONCE, number)
        together = cuda.blockDim.x // row_block
        row, term = cuda.threadIdx.x % row_block, cuda.threadIdx.x // row_block
        brings, real = term < together, first_row + row < rows
        to_source = source_at + row // R * row_group + row % R + term * source_stride
        cuda.syncthreads()
        for first in range(-chunk, terms, chunk):
            here, there = (first // chunk) % 2 * chunk * source_stride, (first // chunk + 1) % 2 * chunk * source_stride
            after, count = first + chunk, min(chunk, terms - first)
            if first >= 0:
                if not resident:
                    cuda.syncthreads()
                    load_weights(shared, place, weights, gates, first_unit, first, count)
                cuda.syncthreads()
            if brings:
                for i in range(AT_ONCE):
                    k = term + i * together
                    use = real and k < chunk and after + k < terms
                    coming[i] = source[after + k, first_row + row] if use else zero
            if first >= 0 and part < slices:
                # Unsigned: of a signed index Numba asks whether it counts from the end, at every load.
                w, v = index(from_weights), index(from_source + here)
                if resident:
                    w += index(first * weight_stride)
                next_w, next_v = index(slices * weight_stride), index(slices * source_stride)
                for _ in range(part, count, slices):
                    for r in range(R):
                        values[r] = shared[v + index(r)]
                    for n in range(N):
                        weight = shared[w + index(n)]
                        for r in range(R):
                            sums[n, r] = cuda.fma(weight, values[r], sums[n, r])
                    w += next_w
                    v += next_v
            if brings:
                for i in range(AT_ONCE):
                    k = term + i * together
                    if k < chunk and after + k < terms:
                        shared[to_source + there + i * together * source_stride] = coming[i]
        cuda.syncthreads()
        if part < slices:
            at = index(source_at + cuda.threadIdx.x * sum_group)
            for n in range(N):
                for r in range(R):
                    shared[at + index(n * R + r)] = sums[n, r]
        cuda.syncthreads()

    @device_function
    def total(shared, place, column, row):
        """Return the sum of the partial sums of a column of the block and a row of the row block."""
        _, width, row_block, slices, _, _, at = place
        column_tiles = width // N
        at += (row // R * column_tiles + column // N) * sum_group + column % N * R + row % R
        stride = column_tiles * (row_block // R) * sum_group
        result = zero
        for s in range(slices):
            result += shared[at + s * stride]
        return result

    return load_weights, multiply, total
