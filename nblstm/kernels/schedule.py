"""Who does what when: shares of the work, the steps of a direction, the rows alive at a step, and copies of rows."""

from __future__ import annotations

import numpy as np

from nblstm.kernels.memory import numbers_at
from nblstm.kernels.policy import function
from nblstm.kernels.simd import lanes_of, load, store, transpose


@function
def entry_of(table, index):
    """Return ``table[index]`` of an int64 table at an address, or `index` itself where there is no table."""
    return numbers_at(table, np.int64(0))[index] if table != 0 else index


@function
def alive_rows(job, t, part, first_row, last_row):
    """Return the end of those of a slice's rows that are alive at step t; first_row if none is."""
    if job.batch_sizes == 0:
        return last_row
    return first_row + entry_of(job.batch_sizes, part * job.steps + t)


@function
def step_of(job, s):
    """Return the step of the sequence that is done as number s."""
    return job.steps - 1 - s if job.reverse else s


@function
def slots_before(job, first, s, part, first_row, last_row):
    """Return how many rows the steps number first to s - 1 have in a block."""
    if job.batch_sizes == 0:
        return (s - first) * (last_row - first_row)
    count = 0
    for earlier in range(first, s):
        count += alive_rows(job, step_of(job, earlier), part, first_row, last_row) - first_row
    return count


@function
def copy_numbers(source, source_start, target, target_start, count):
    """Copy `count` numbers from one contiguous 1-D array to another; they do not overlap.

    By whole vectors, the last of which begins earlier rather than end later. A plain loop, with Numba's checks for
    negative indices and LLVM's for overlap, made a layer 1 to 2 % slower (B = 4 to 64, H = 64 to 256).
    """
    lanes = lanes_of(source)
    if count < lanes:
        for i in range(count):
            target[target_start + i] = source[source_start + i]
    else:
        for i in range(0, count - lanes, lanes):
            store(target, target_start + i, load(source, source_start + i))
        store(target, target_start + count - lanes, load(source, source_start + count - lanes))


@function
def add_numbers(source, source_start, target, target_start, count):
    """Add `count` numbers of one contiguous 1-D array to those of another; they do not overlap."""
    lanes = lanes_of(source)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store(target, target_start + i, load(target, target_start + i) + load(source, source_start + i))
    for i in range(whole, count):
        target[target_start + i] += source[source_start + i]


@function
def copy_transposed(source, source_start, source_stride, rows, columns, target, target_start, target_stride):
    """Copy the transpose of a matrix of so many rows and columns; strides are from row to row, of either matrix.

    By squares of a vector's side, which is five times as fast as one number after another.
    """
    lanes = lanes_of(source)
    whole_rows, whole_columns = rows - rows % lanes, columns - columns % lanes
    for row in range(0, whole_rows, lanes):
        for column in range(0, whole_columns, lanes):
            from_here = source_start + row * source_stride + column
            to_here = target_start + column * target_stride + row
            transpose(source, from_here, source_stride, target, to_here, target_stride)
    for column in range(columns):
        for row in range(whole_rows if column < whole_columns else 0, rows):
            target[target_start + column * target_stride + row] = source[source_start + row * source_stride + column]


@function
def share(count, part, parts):
    """Return the range of `count` things that is the share of one of `parts`; the first ones have one more."""
    size, more = count // parts, count % parts
    first = part * size + min(part, more)
    return first, first + size + (1 if part < more else 0)
