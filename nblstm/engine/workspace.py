"""The scratch memory of one layer and direction: how large each part of it is, and where it lies."""

from __future__ import annotations

from typing import NamedTuple

from nblstm.engine.packing import DirectionWeights
from nblstm.engine.plan import Plan, block_of
from nblstm.kernels.cells import LSTM_GATES
from nblstm.kernels.job import ROWS
from nblstm.kernels.policy import LINE, lanes
from nblstm.kernels.recurrence import GATES_AT_ONCE
from nblstm.kernels.tile import PANEL_VECTORS


class Workspace(NamedTuple):
    """The fields of a job of the same names (nblstm.kernels.job): starts, sizes and strides in elements."""

    block: int
    gates: int
    gates_size: int
    products_start: int
    inputs_block: int
    inputs_block_size: int
    input_stride: int
    h: int
    h_stride: int
    c: int
    c_stride: int
    m: int


def workspace_of(weights: DirectionWeights, plan: Plan, steps: int, rows: int) -> tuple[Workspace, int]:
    """Return how the scratch memory for `rows` rows of the batch is laid out, and its size in elements.

    It does not grow with the number of steps beyond a block.
    """
    itemsize = weights.dtype.itemsize
    vector = lanes(itemsize)
    projects = weights.projection_panels is not None
    slice_rows = -(-rows // plan.parts) if plan.split == ROWS else rows
    slice_blocks = weights.unit_blocks if plan.split == ROWS else -(-weights.unit_blocks // plan.parts)
    gates_of_block = LSTM_GATES * vector
    block = block_of(slice_rows, steps, slice_blocks * gates_of_block * weights.inputs * itemsize)
    if block > 1:
        gates = block * slice_rows * slice_blocks * gates_of_block
    else:
        gates = max(GATES_AT_ONCE, slice_rows * gates_of_block)
    products_start = _lines(gates, itemsize)
    panel = PANEL_VECTORS * vector
    products = slice_rows * -(-weights.outputs // panel) * panel if projects else 0
    gates_size = products_start + _lines(products, itemsize)
    input_stride = _odd_lines(weights.inputs, itemsize)
    c_stride = _odd_lines(weights.unit_blocks * vector, itemsize)
    h_stride = _odd_lines(weights.outputs, itemsize) if projects else c_stride
    inputs_size = block * slice_rows * input_stride
    inputs_start = plan.parts * gates_size
    h_start = inputs_start + plan.parts * inputs_size
    c_start = h_start + 2 * rows * h_stride
    m_start = c_start + rows * c_stride
    workspace = Workspace(
        block=block,
        gates=0,
        gates_size=gates_size,
        products_start=products_start,
        inputs_block=inputs_start,
        inputs_block_size=inputs_size,
        input_stride=input_stride,
        h=h_start,
        h_stride=h_stride,
        c=c_start,
        c_stride=c_stride,
        m=m_start,
    )
    return workspace, m_start + (rows * c_stride if projects else 0)


def _lines(elements: int, itemsize: int) -> int:
    """Round up to whole cache lines."""
    line = LINE // itemsize
    return -(-elements // line) * line


def _odd_lines(elements: int, itemsize: int) -> int:
    """Round up to an odd number of cache lines: with a power of two a tile's rows would share one set of the cache."""
    return (-(-elements * itemsize // LINE) | 1) * (LINE // itemsize)
