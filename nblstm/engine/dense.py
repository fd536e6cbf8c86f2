"""Dense layers on the register tile: y = x W^T + b over many rows, and its way back.

    y[n]  = b + W x[n]                       rows or outputs split over threads
    dx[n] = dy[n] W                          rows or columns
    dW    = sum over n of dy[n] x[n]^T       columns of the longer of the two

The sums are those of the recurrent layers' way back (nblstm.kernels.weight_gradients), and so is the promise: a row has
the same bits alone and among others, and a sum over rows depends on the rows alone, however the work is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nblstm import threads
from nblstm.arrays import Array, address_of
from nblstm.engine import plan as planning
from nblstm.engine.packing import aligned_empty, pack_panels
from nblstm.engine.products import ZEROS, WeightGradients, panel_width
from nblstm.kernels import team
from nblstm.kernels.dense import ROWS_AT_ONCE, dense_float32, dense_float64, pack_columns, pack_rows
from nblstm.kernels.weight_gradients import ROWS_AT_ONCE as ROWS_OF_A_BLOCK

_SUMMED_ROWS = 128
# Of the operand that is turned round, at once.
_BYTES_AT_ONCE = 2 << 20


class DenseWeights(NamedTuple):
    """A matrix as the tile reads it: panels of so many outputs of so many terms, and of the bias where there is one."""

    panels: Array
    bias: Array | None
    outputs: int
    terms: int


def pack_forward(parameters: Mapping[str, Array]) -> DenseWeights:
    """Pack ``weight`` (O, I) and, where it is there, ``bias`` (O,) for `multiply_rows` of x."""
    weight, bias = parameters["weight"], parameters.get("bias")
    outputs, inputs = weight.shape
    packed = aligned_empty(-(-outputs // panel_width(weight.dtype)) * panel_width(weight.dtype) * inputs, weight.dtype)
    pack_rows.of(packed.dtype)(outputs, inputs, address_of(weight), packed)
    return DenseWeights(packed, None if bias is None else pack_panels(bias[:, None]), outputs, inputs)


def pack_transposed(parameters: Mapping[str, Array]) -> DenseWeights:
    """Pack ``weight`` (O, I) for `multiply_rows` of dy, which gives dx."""
    weight = parameters["weight"]
    outputs, inputs = weight.shape
    width = panel_width(weight.dtype)
    packed = aligned_empty(-(-inputs // width) * outputs * width, weight.dtype)
    pack_columns.of(packed.dtype)(outputs, inputs, address_of(weight), packed)
    return DenseWeights(packed, None, inputs, outputs)


def multiply_rows(x: Array, weights: DenseWeights) -> Array:
    """Return bias + x W^T, (N, outputs) for x (N, terms); x is contiguous and of the weights' dtype."""
    rows, dtype = len(x), x.dtype
    y = aligned_empty(rows * weights.outputs, dtype).reshape(rows, weights.outputs)
    if rows == 0:
        return y
    row_parts, column_parts = _split(rows, weights.outputs, weights.terms, dtype.itemsize)
    parts = row_parts * column_parts
    scratch = np.empty(parts * ROWS_AT_ONCE * panel_width(dtype), dtype)
    job = np.array(
        [
            rows,
            weights.terms,
            weights.outputs,
            row_parts,
            column_parts,
            address_of(ZEROS),
            address_of(scratch),
            address_of(weights.panels),
            0 if weights.bias is None else address_of(weights.bias),
            address_of(x),
            address_of(y),
        ],
        np.int64,
    )
    worker = dense_float32 if dtype == np.float32 else dense_float64
    team.run(worker.address, address_of(job), parts, 1, parts)
    return y


def sum_products(dy: Array, x: Array) -> tuple[Array, Array]:
    """Return dW = dy^T x, (O, I), and db, (O,), for contiguous dy (N, O) and x (N, I) of one dtype."""
    outputs, inputs = dy.shape[1], x.shape[1]
    if len(dy) == 0:
        return np.zeros((outputs, inputs), dy.dtype), np.zeros(outputs, dy.dtype)
    # The kernel turns the one operand round and cuts the other into panels: the first should be the smaller.
    if inputs <= outputs:
        return _sum_products(dy, x), sum_rows(dy)
    return np.ascontiguousarray(_sum_products(x, dy).T), sum_rows(dy)


def _sum_products(wide: Array, narrow: Array) -> Array:
    """Return the sums over rows of products of the columns of two arrays."""
    (rows, columns), inputs = wide.shape, narrow.shape[1]
    sizes = {"slots": 1, "slot_size": columns, "units": columns, "inputs": inputs, "x_item": 1}
    at_once = min(rows, max(1, _BYTES_AT_ONCE // (inputs * wide.itemsize * ROWS_OF_A_BLOCK)) * ROWS_OF_A_BLOCK)
    sums = WeightGradients({**sizes, "ones": 0, "outputs": 0, "kept_size": 0}, wide.dtype, at_once)
    wide_rows, _room = _rows_with_room(wide)
    narrow_rows, matrix = _row_addresses(narrow), np.empty((columns, inputs), wide.dtype)
    for begin in range(0, rows, at_once):
        part = slice(begin, begin + at_once)
        sums.add(narrow_rows[part], None, wide_rows[part], {"w_ih": matrix} if begin + at_once >= rows else None)
    return matrix


def sum_rows(rows: Array) -> Array:
    """Return the sum over the first axis: blocks of 128 rows in the dtype, their sums in float64."""
    with np.errstate(all="ignore"):  # infinities are not for NumPy to warn of
        whole = len(rows) // _SUMMED_ROWS * _SUMMED_ROWS
        blocks = rows[:whole].reshape(-1, _SUMMED_ROWS, *rows.shape[1:]).sum(axis=1)
        total = blocks.sum(axis=0, dtype=np.float64) + rows[whole:].sum(axis=0)
        return np.asarray(total.astype(rows.dtype))


def _split(rows: int, outputs: int, terms: int, itemsize: int) -> tuple[int, int]:
    """Return into how many parts to split the rows and the panels of a product."""
    return planning.choose_product(rows, outputs, terms, itemsize, threads.usable())


def _row_addresses(array: Array) -> Array:
    """Return the address of each row of a contiguous matrix."""
    return address_of(array) + np.arange(len(array)) * array.strides[0]


def _rows_with_room(array: Array) -> tuple[Array, Any]:
    """Return the address of each row, behind which whole panels may be read, and what has to live as long.

    A panel may end past its row: in the next one, whose numbers are not used, or past the array. The last rows are read
    from a copy that has room.
    """
    rows, columns = array.shape
    past = -columns % panel_width(array.dtype)
    addresses = _row_addresses(array)
    if past == 0:
        return addresses, None
    count = min(rows, -(-past // columns))
    room = np.zeros(count * columns + past, array.dtype)
    room[: count * columns] = array[rows - count :].reshape(-1)
    addresses[rows - count :] = address_of(room) + np.arange(count) * array.strides[0]
    return addresses, room
