"""The recurrence of a layer: all its steps in one launch whose blocks wait for one another, or a launch a step.

Each block owns some units with all their gates, and some outputs of the projection where there is one. A step is a
product (nblstm.cuda.slices), then the cell on what it left. In one launch for all steps, the block's slices of the
weights stay in its shared memory, and the blocks meet after each product: h of a step is whole only then.

Blocks with another `blockIdx.y` do the same for another direction; direction 1 goes from the last step to the first.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np

from nblstm.cuda.cells import cell_functions
from nblstm.cuda.device import SIMULATED, Kernel, cuda
from nblstm.cuda.slices import block_product
from nblstm.kernels.cells import Cell

# Units that a thread takes through the cell for a block of rows, at most: it holds what they need over the product.
ITEMS = 8 if SIMULATED else 4


@functools.cache
def recurrence(cell: Cell, dtype: np.dtype[Any], rows: int, persistent: bool, projects: bool, keeps: bool) -> Kernel:
    """Return the kernel for a cell and a dtype.

    rows        R, of the tiles
    persistent  all steps in one launch; otherwise one step, and with a projection one stage of it
    keeps       fill `kept` and `before`, for the way back
    """
    number = numba.from_dtype(dtype)
    gates, apart, has_c = cell.gates, cell.apart, cell.has_cell_state
    held = gates + 1  # numbers that a unit has before the product
    step_of_cell, _, slots = cell_functions(cell, dtype)
    load_weights, multiply, total = block_product(dtype, rows, persistent)

    def run(
        sums, bases, recurrent, apart_bias, projection, h, c, exchange, middle, y, kept, before,
        starts, sizes, x_rows, state_rows, first_direction, steps, begin, end, stage, place, place_p,
    ):  # fmt: skip
        """Run steps [begin, end), numbered in the order in which the network goes through them.

        sums        in     (D, n, G*H) the gates' sums over the input, with the bias; position p at p - bases[d]
        recurrent   in     (D, P, G*H) W_hh transposed
        apart_bias  in     (D, H) of the last gate's recurrent sum, where it stays apart; else not read
        projection  in     (D, H, P) W_hr transposed; else not read
        h, c        inout  (D, B, P), (D, B, H) the states, by row of the states; c only where there is a cell state
        exchange    inout  (D, 2, P, B) h by kernel row: read one, write the other, in turns
        middle      -      (D, H, B) o tanh(c) before the projection
        y           out    (steps, rows, D*P), any strides; or (1, N, D*P) if packed
        kept        out    (N, D, K, H) if `keeps`: what the cell keeps, and o tanh(c) before a projection
        before      out    (N, D, P) if `keeps`: h of the step before
        starts      in     (T,) the position at which a step begins, if packed; empty: t * B
        sizes       in     (T,) rows alive at a step; empty: all
        x_rows      in     (B,) row of the positions for each kernel row; empty: the same
        state_rows  in     (B,) row of the states likewise
        steps       T, or up to the end of the longest row
        stage       0: the cell, 1: the projection, in a launch a step
        place       the `Slice` of the recurrent product, place_p of the projection
        """
        shared = cuda.shared.array(0, number)
        given = cuda.local.array((ITEMS, held), number)
        found = cuda.local.array(gates, number)
        values = cuda.local.array(slots, number)
        d = first_direction + cuda.blockIdx.y
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        batch, units, outputs = h.shape[1], recurrent.shape[2] // gates, h.shape[2]
        own, own_p, row_block = place[0], place_p[0], place[2]
        first_unit, first_output = cuda.blockIdx.x * own, cuda.blockIdx.x * own_p
        if persistent:
            grid = cuda.cg.this_grid()
            load_weights(shared, place, recurrent[d], gates, first_unit, 0, outputs)
            if projects:
                load_weights(shared, place_p, projection[d], 1, first_output, 0, units)
        for step in range(begin, end):
            t = steps - 1 - step if d == 1 else step
            alive, start = batch, t * batch
            if sizes.size > 0:
                alive = sizes[t]
            if starts.size > 0:
                start = starts[t]
            now, after = step % 2, (step + 1) % 2
            if persistent or stage == 0:
                for first_row in range(0, alive, row_block):
                    for i in range(ITEMS):  # read before the product, used after it
                        at = thread + i * threads
                        unit, r = first_unit + at % own, first_row + at // own
                        if at < own * row_block and unit < units and r < alive:
                            position = start + (x_rows[r] if x_rows.size > 0 else r)
                            state_row = state_rows[r] if state_rows.size > 0 else r
                            for g in range(gates):
                                given[i, g] = sums[d, position - bases[d], g * units + unit]
                            if has_c:
                                given[i, gates] = c[d, state_row, unit]
                            else:
                                given[i, gates] = h[d, state_row, unit]
                    multiply(shared, place, recurrent[d], gates, first_unit, exchange[d, now], first_row, alive)
                    for i in range(ITEMS):
                        at = thread + i * threads
                        unit, r = first_unit + at % own, first_row + at // own
                        if at < own * row_block and unit < units and r < alive:
                            position = start + (x_rows[r] if x_rows.size > 0 else r)
                            state_row = state_rows[r] if state_rows.size > 0 else r
                            for g in range(gates):
                                found[g] = total(shared, place, g * own + at % own, at // own)
                            if apart:
                                found[gates - 1] += apart_bias[d, unit]
                            h_new, c_new = step_of_cell(given, i, found, values)
                            if has_c:
                                c[d, state_row, unit] = c_new
                            if keeps:
                                for slot in range(slots):
                                    kept[position, d, slot, unit] = values[slot]
                            if projects:
                                middle[d, unit, r] = h_new
                                if keeps:
                                    kept[position, d, slots, unit] = h_new
                            else:
                                if keeps:
                                    before[position, d, unit] = h[d, state_row, unit]
                                h[d, state_row, unit] = h_new
                                exchange[d, after, unit, r] = h_new
                                y[position // y.shape[1], position % y.shape[1], d * outputs + unit] = h_new
                if persistent:
                    if cuda.gridDim.x > 1:
                        grid.sync()
                    else:  # one block needs no meeting of the grid
                        cuda.syncthreads()
            if projects and (persistent or stage == 1):
                for first_row in range(0, alive, row_block):
                    multiply(shared, place_p, projection[d], 1, first_output, middle[d], first_row, alive)
                    for at in range(thread, own_p * row_block, threads):
                        output, r = first_output + at % own_p, first_row + at // own_p
                        if output < outputs and r < alive:
                            position = start + (x_rows[r] if x_rows.size > 0 else r)
                            state_row = state_rows[r] if state_rows.size > 0 else r
                            h_new = total(shared, place_p, at % own_p, at // own_p)
                            if keeps:
                                before[position, d, output] = h[d, state_row, output]
                            h[d, state_row, output] = h_new
                            exchange[d, after, output, r] = h_new
                            y[position // y.shape[1], position % y.shape[1], d * outputs + output] = h_new
                if persistent:
                    if cuda.gridDim.x > 1:
                        grid.sync()
                    else:  # one block needs no meeting of the grid
                        cuda.syncthreads()

    index = numba.int64
    signature = numba.void(
        number[:, :, ::1], numba.types.UniTuple(index, 2), number[:, :, ::1], number[:, ::1], number[:, :, ::1],
        number[:, :, ::1], number[:, :, ::1], number[:, :, :, ::1], number[:, :, ::1], number[:, :, :],
        number[:, :, :, ::1], number[:, :, ::1], index[::1], index[::1], index[::1], index[::1],
        index, index, index, index, index, numba.types.UniTuple(index, 7), numba.types.UniTuple(index, 7),
    )  # fmt: skip
    return Kernel(run, signature)
