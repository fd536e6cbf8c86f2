"""The way back through time, the mirror of `nblstm.cuda.recurrence`.

A step back is a product of the gradients of the gates' sums of the step after it by W_hh, which gives the gradient of
h; then, with a projection, one by W_hr; then the cell. Each block owns outputs and units as on the way there.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from nblstm.cuda.cells import cell_functions
from nblstm.cuda.device import Kernel, cuda, device_function
from nblstm.cuda.slices import block_product
from nblstm.kernels.cells import Cell


@functools.cache
def backprop(cell: Cell, dtype: np.dtype[Any], rows: int, persistent: bool, projects: bool) -> Kernel:
    """Return the kernel for a cell and a dtype; the arguments are those of `nblstm.cuda.recurrence.recurrence`."""
    number, zero = numba.from_dtype(dtype), dtype.type(0)
    gates, apart, has_c = cell.gates, cell.apart, cell.has_cell_state
    slope_count = gates + apart
    _, back_through_cell, slots = cell_functions(cell, dtype)
    load_weights, multiply, total = block_product(dtype, rows, persistent)

    @device_function
    def back(
        values, found, kept, before, dh_total, dh, dc, slopes, slopes_h, exchange_after, d, unit, r, position, state_row
    ):
        """Take one unit of one row back from the gradient of its h."""
        units = kept.shape[3]
        for slot in range(slots):
            values[slot] = kept[position, d, slot, unit]
        dc_after = dc[d, state_row, unit] if has_c else zero
        h = before[position, d, unit] if apart else zero
        direct, dc_before = back_through_cell(values, h, dh_total, dc_after, found)
        if has_c:
            dc[d, state_row, unit] = dc_before
        for g in range(gates):
            slopes[position, d, g * units + unit] = found[g]
            slope = found[g]
            if apart:
                slope = found[gates] if g == gates - 1 else slope
                slopes_h[position, d, g * units + unit] = slope
            exchange_after[g * units + unit, r] = slope
        return direct

    def run(
        kept, before, dy, has_dy, slopes, slopes_h, dh, dc, recurrent, projection, exchange, middle, projected,
        starts, sizes, x_rows, state_rows, first_direction, steps, begin, end, stage, place, place_p,
    ):  # fmt: skip
        """Go back through steps [begin, end), numbered from the last one; after all T comes one for h_0 alone.

        kept        in     (N, D, K, H), and before (N, D, P), as `recurrence` filled them
        dy          in     gradient of y, shaped like it, if `has_dy`
        slopes      out    (N, D, G*H) gradients of the gates' sums over the input
        slopes_h    out    of those over the hidden units, where the last gate's stays apart; else not touched
        dh, dc      inout  (D, B, P), (D, B, H) gradients of the last states, in the end of the first ones
        recurrent   in     (D, G*H, P) W_hh
        projection  in     (D, P, H) W_hr; without one not read
        exchange    -      (D, 2, G*H, B) gradients of the sums over the hidden units, by kernel row
        middle      -      (D, P, B) gradient of h behind the projection
        projected   out    (N, D, P) the same at every step, with a projection
        place       the `Slice` of the product by W_hh, place_p of that by W_hr

        The others are as for `recurrence`.
        """
        shared = cuda.shared.array(0, number)
        values = cuda.local.array(slots, number)
        found = cuda.local.array(slope_count, number)
        d = first_direction + cuda.blockIdx.y
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        batch, outputs, units = dh.shape[1], dh.shape[2], kept.shape[3]
        own, own_p, row_block = place[0], place_p[0], place[2]
        first_output, first_unit = cuda.blockIdx.x * own, cuda.blockIdx.x * own_p
        if persistent:
            grid = cuda.cg.this_grid()
            load_weights(shared, place, recurrent[d], 1, first_output, 0, gates * units)
            if projects:
                load_weights(shared, place_p, projection[d], 1, first_unit, 0, outputs)
        for step in range(begin, end):
            t = step if d == 1 else steps - 1 - step
            t_after = t - 1 if d == 1 else t + 1
            alive, alive_after, start = batch, batch, t * batch
            if sizes.size > 0:
                alive = sizes[t] if step < steps else 0
                alive_after = sizes[t_after] if step > 0 else 0
            if step == steps:
                alive = 0
            elif starts.size > 0:
                start = starts[t]
            if step == 0:
                alive_after = 0
            now, after = step % 2, (step + 1) % 2
            if persistent or stage == 0:
                for first_row in range(0, max(alive, alive_after), row_block):
                    if first_row < alive_after:
                        source = exchange[d, now]
                        multiply(shared, place, recurrent[d], 1, first_output, source, first_row, alive_after)
                    for at in range(thread, own * row_block, threads):
                        output, r = first_output + at % own, first_row + at // own
                        if output < outputs and r < max(alive, alive_after):
                            state_row = state_rows[r] if state_rows.size > 0 else r
                            d_h = dh[d, state_row, output]
                            if r < alive_after:
                                d_h += total(shared, place, at % own, at // own)
                            if r < alive:
                                position = start + (x_rows[r] if x_rows.size > 0 else r)
                                if has_dy:
                                    column = d * outputs + output
                                    d_h += dy[position // dy.shape[1], position % dy.shape[1], column]
                                if projects:
                                    middle[d, output, r] = d_h
                                    projected[position, d, output] = d_h
                                    d_h = zero
                                else:
                                    d_h = back(
                                        values, found, kept, before, d_h, dh, dc, slopes, slopes_h,
                                        exchange[d, after], d, output, r, position, state_row,
                                    )  # fmt: skip
                            dh[d, state_row, output] = d_h
                if persistent:
                    if cuda.gridDim.x > 1:
                        grid.sync()
                    else:
                        cuda.syncthreads()
            if projects and (persistent or stage == 1):
                for first_row in range(0, alive, row_block):
                    multiply(shared, place_p, projection[d], 1, first_unit, middle[d], first_row, alive)
                    for at in range(thread, own_p * row_block, threads):
                        unit, r = first_unit + at % own_p, first_row + at // own_p
                        if unit < units and r < alive:
                            position = start + (x_rows[r] if x_rows.size > 0 else r)
                            state_row = state_rows[r] if state_rows.size > 0 else r
                            d_m = total(shared, place_p, at % own_p, at // own_p)
                            back(
                                values, found, kept, before, d_m, dh, dc, slopes, slopes_h,
                                exchange[d, after], d, unit, r, position, state_row,
                            )  # fmt: skip
                if persistent:
                    if cuda.gridDim.x > 1:
                        grid.sync()
                    else:
                        cuda.syncthreads()

    index, matrices, kept_type = numba.int64, number[:, :, ::1], number[:, :, :, ::1]
    signature = numba.void(
        kept_type, matrices, number[:, :, :], numba.boolean, matrices, matrices, matrices, matrices, matrices, matrices,
        kept_type, matrices, matrices, index[::1], index[::1], index[::1], index[::1],
        index, index, index, index, index, numba.types.UniTuple(index, 7), numba.types.UniTuple(index, 7),
    )  # fmt: skip
    return Kernel(run, signature)
