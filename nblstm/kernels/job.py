"""The description of one layer and direction of a call that the engine hands to a worker, as a record in memory.

Every field is an int64: a size, a stride in elements, or an address (0: not there). A worker is called by address with
whole numbers only, and a record named by fields keeps that as readable as arguments would be.

Letters: T steps, B rows, I input features, H hidden units, P = H or the size of the projection.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from nblstm.kernels.disk_cache import DIGEST

ROWS, UNITS, LAYERS = 0, 1, 2

FIELDS = (
    # What depends on the sizes and the plan alone.
    "steps",  # T
    "rows",  # B
    "inputs",  # I
    "units",  # H
    "outputs",  # P
    "cell_worker",  # address of the cell's worker (nblstm.kernels.cells)
    "gates",  # of a unit
    "unit_blocks",  # H in vectors, rounded up
    "unit_group",  # unit blocks whose gates fill whole panels: slices of units are whole groups
    "gate_vectors",  # that the gates of all units fill (nblstm.engine.packing)
    "split",  # over ROWS of the batch or over UNITS; or over LAYERS, of which each has a job
    "parts",  # into how many slices
    "stages",  # 1 + T, or 1 + 2 T with a projection
    "turn",  # 1: weights backwards on even steps and not on odd ones, where a call goes on from another one
    # Weights, packed (nblstm.engine.packing).
    "input_weights",
    "bias",
    "recurrent_weights",
    "recurrent_bias",  # 0: recurrent sums are added to those of the input
    "projection_weights",  # 0: no projection
    "projector",  # address of the worker that does it (nblstm.kernels.projection); 0 without
    # Workspace (nblstm.engine.workspace): where each buffer begins, in elements. Every part has a region of its own of
    # the first two; the states are common.
    "block",  # steps whose input is projected at once
    "sums",
    "sums_size",
    "recurrent_sums",  # where the sums that stay apart begin in a region of sums
    "products",  # where the products of the projection begin in it
    "inputs_block",
    "inputs_block_size",
    "input_stride",  # elements from one row of an inputs block to the next
    "h",  # (2, B, h_stride): read one, write the other, in turns
    "h_stride",
    "c",  # (B, c_stride)
    "c_stride",
    "m",  # (B, c_stride): o * tanh(c) before the projection
    # What depends on the call.
    "reverse",  # 1: from the last step to the first
    "workspace",
    # Input x[t, b, i] at x + start(t) * x_step + row * x_row + i * x_item, and the output's y alike.
    "x",
    "x_step",
    "x_row",
    "x_item",
    "y",
    "y_step",
    "y_row",
    # Where to keep the gates, the last gates' recurrent sums where they stay apart, and c: slots of whole vectors of
    # units each, at kept + start(t) * kept_step + row * kept_row. 0: nowhere
    "kept",
    "kept_step",
    "kept_row",
    "keeper",  # address of the worker that does so (nblstm.kernels.keeping)
    "starts",  # (T,) start(t), 0: start(t) = t
    "batch_sizes",  # (parts over rows, T) of a slice's rows those alive at a step, never more than before; 0: all
    "x_rows",  # (B,) where the kernel's row r lies in x and y, 0: at r
    "state_rows",  # (B,) where it lies in the states, 0: at r
    # States, (B, P) and (B, H) contiguous: initial ones at first, final ones in the end.
    "h_n",
    "c_n",  # 0: no cell state
)
JOB = np.dtype([(name, np.int64) for name in FIELDS])


# What a cell does at a step, for some rows and unit blocks of a job's. Buffers: nblstm.kernels.cells; strides are those
# of Panels from panel to panel, and of Rows.
CELL_FIELDS = (
    "job",  # address
    "t",
    "first_row",  # number in the batch of row 0 of the buffers
    "rows",
    "first_block",
    "last_block",
    "sums",
    "sums_stride",
    "recurrent_sums",
    "recurrent_stride",
    "h_before",
    "h_before_stride",
    "h",
    "h_stride",
    "c",
    "c_stride",
    "keep",
)
CELL_JOB = np.dtype([(name, np.int64) for name in CELL_FIELDS])


# The same for the way back through time (nblstm.kernels.backprop). G slots of gradients a step and row, each of whole
# vectors of units: an LSTM's i, f, g, o; a GRU's n over the inputs, r, z, n over the hidden units; an RNN's one.
BACKWARD_FIELDS = (
    "steps",  # T
    "rows",  # B
    "units",  # H
    "outputs",  # P
    "cell",
    "unit_blocks",
    "unit_group",  # unit blocks of a panel
    "split",
    "parts",
    "stages",
    "recurrent_weights",  # panels of P outputs and G' * padded units terms: those slots that h went into
    "projection_weights",  # panels of H outputs and P terms; 0: no projection
    "first_step",  # of a call: by their number in the order in which the network went through them
    "last_step",
    "needs_before",  # whether the cell wants c, or h, of the step before
    "zeros",  # address of a panel's width of zeros
    "recurrent_slot",  # the first of those slots
    "recurrent_slots",
    "slots",
    "kept_slots",
    # Workspace: where each buffer begins, in elements.
    "h_before",  # (parts, c_stride)
    "dh",  # (B, h_stride): gradient of h, from one step to the one before
    "h_stride",
    "dm",  # (B, c_stride): of h before the projection
    "dc",  # (B, c_stride)
    "c_stride",
    # What depends on the call.
    "reverse",
    "workspace",
    "dy",  # gradient of the output, 0: none
    "dy_step",
    "dy_row",
    "y",  # the output
    "y_step",
    "y_row",
    "kept",
    "kept_step",
    "kept_row",
    "starts",
    "batch_sizes",
    "x_rows",
    "state_rows",
    "h_0",  # (B, P), 0: zeros
    "c_0",  # (B, H), 0: zeros
    "d_h",  # (B, P) and (B, H): gradients of the last states at first, of the first states in the end
    "d_c",  # 0: no cell state
    "gradients",  # of the gates' sums, (N, slots * padded units) with gradients_stride from one row to the next
    "gradients_stride",
    "gradient_starts",  # (parts over rows, T): where a slice's rows of a step begin
    "d_projected",  # (N, P): gradient of h at its step, where there is a projection
    "projected_stride",
)
BACKWARD_JOB = np.dtype([(name, np.int64) for name in BACKWARD_FIELDS])


# The product of nblstm.kernels.products.
PRODUCT_FIELDS = (
    "rows",  # N
    "terms",  # of a row of gradients
    "columns",  # of dx
    "parts",
    "zeros",  # address of a panel's width of zeros
    "workspace",  # by part: (panels, ROWS_AT_ONCE, width)
    "weights",  # panels
    "gradients",  # and the elements from one row to the next
    "gradients_stride",
    "dx_rows",  # (N,) addresses of the rows of dx, in the order of the gradients
    "adds",  # whether to add to dx
)
PRODUCT_JOB = np.dtype([(name, np.int64) for name in PRODUCT_FIELDS])


# The sums of nblstm.kernels.weight_gradients.
GRADIENT_FIELDS = (
    "rows",  # N
    "parts",
    "begins",  # whether the sums begin at zero
    "zeros",  # address of a panel's width of zeros
    "inputs",  # columns of x
    "ones",  # whether there is a column of ones
    "outputs",  # columns of h
    "x_rows",  # (N,) addresses; x_item elements from one column to the next
    "x_item",
    "recompute",  # x is h before the projection, to be made of what was kept at these addresses
    "kept_size",  # of a slot there
    "h_rows",  # (N,) addresses
    "gradient_rows",  # (N,) addresses: slots of slot_size numbers, of which `units` are used
    "slots",
    "slot_size",
    "units",
    "apart",  # the first slot belongs to x alone, the last one to h alone
    # Workspace.
    "columns",  # (blocks of rows, columns, ROWS_STRIDE)
    "scratch",  # by part: TRANSPOSED_ROWS rows of TRANSPOSED_COLUMNS numbers, and of kept_size where h is made anew
    "packed",  # by part: (ROWS_AT_ONCE, width)
    "sums",  # (panels, columns, width); kept from call to call
    # Results, contiguous: (gates * units, I), (gates * units, P), and (gates * units,) twice.
    "w_ih",
    "w_hh",
    "b_ih",
    "b_hh",
)
GRADIENT_JOB = np.dtype([(name, np.int64) for name in GRADIENT_FIELDS])


# The product of a dense layer (nblstm.kernels.dense). Slice number ``r * column_parts + c`` has share r of the rows and
# share c of the columns.
DENSE_FIELDS = (
    "rows",  # N
    "terms",  # K
    "columns",  # of y
    "row_parts",
    "column_parts",
    "zeros",  # address of a panel's width of zeros
    "workspace",  # by slice: a panel's width of products for the rows that are done at once
    "weights",  # panels of so many columns and terms
    "bias",  # panels of one term; 0: none
    "x",  # (N, K)
    "y",  # (N, columns)
)
DENSE_JOB = np.dtype([(name, np.int64) for name in DENSE_FIELDS])


# The cross-entropy of rows (nblstm.kernels.losses).
LOSS_FIELDS = (
    "rows",  # N
    "classes",  # C
    "parts",  # slices of the rows
    "divisor",  # of the gradient
    "workspace",  # by slice: `SCRATCH_VECTORS` vectors
    "logits",  # (N, C)
    "targets",  # (N,) int64, below 0: this row is left out
    "losses",  # (N,) float64
    "gradient",  # (N, C)
)
LOSS_JOB = np.dtype([(name, np.int64) for name in LOSS_FIELDS])


# A layer of a network of one row, a `JOB` at its beginning (nblstm.kernels.one_row).
WEIGHTS = "input_weights", "bias", "recurrent_weights", "recurrent_bias", "projection_weights"
WEIGHTS_BACK = "input_back", "recurrent_back", "projection_back"
_ONE_ROW_FIELDS = (
    "cell",  # its code (nblstm.kernels.cells)
    "worker",  # address of the worker of nblstm.kernels.recurrence
    "worker_back",  # that of nblstm.kernels.step_back; 0: the weights are not for the way back
    "scratch",  # elements of the workspace
    "scratch_back",
    *WEIGHTS_BACK,  # panels of I, P and H outputs (nblstm.engine.packing.BackwardWeights); 0: no projection
    "slots",  # of the gates' gradients, kept_slots of what a step keeps, `apart` as in nblstm.kernels.cells
    "kept_slots",
    "apart",
    "place",  # where the layer's parameters begin among all
    "biases",  # whether there are any
    "dx",  # (I,), 0: not wanted
    "dh",  # (P,), from the gradient of h after the step to that before
    "dc",  # (H,), likewise
    "h_0",  # (P,) before the step
    "c_0",  # (H,), 0: no cell state
    "d_parameters",  # what is added to, flat and in torch's order; 0: not wanted
)
ONE_ROW_FIELDS = (*FIELDS, *_ONE_ROW_FIELDS)
ONE_ROW_JOB = np.dtype([(name, np.int64) for name in ONE_ROW_FIELDS])
# A type for each version of the kernels, by the name of its field: weights have an array of it, so that a function of
# the user's that takes them, and that Numba keeps on disk, is not taken for one that fits other kernels.
VERSION = np.dtype([(f"kernels_{DIGEST[:16]}", np.uint8)])


def reader_of(dtype: np.dtype[Any]) -> Any:
    """Return the function of compiled code that gives the record of `dtype` at an address."""

    @intrinsic
    def record_at(typing_context: Any, address: Any) -> Any:
        """The record at `address`."""
        record = numba.from_dtype(dtype)

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), codegen

    return record_at


job_at, backward_job_at = reader_of(JOB), reader_of(BACKWARD_JOB)
product_job_at, gradient_job_at = reader_of(PRODUCT_JOB), reader_of(GRADIENT_JOB)
dense_job_at, loss_job_at = reader_of(DENSE_JOB), reader_of(LOSS_JOB)
one_row_job_at, cell_job_at = reader_of(ONE_ROW_JOB), reader_of(CELL_JOB)
