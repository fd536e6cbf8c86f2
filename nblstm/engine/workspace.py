"""The scratch memory of one layer and direction: how large each part of it is, and where it lies."""

from __future__ import annotations

from typing import NamedTuple

from nblstm.engine.packing import DirectionWeights
from nblstm.engine.plan import Plan, block_of
from nblstm.kernels.job import ROWS
from nblstm.kernels.policy import LINE, lanes
from nblstm.kernels.recurrence import SUMS_AT_ONCE
from nblstm.kernels.tile import PANEL_VECTORS


class Workspace(NamedTuple):
    """The fields of a job of the same names (nblstm.kernels.job): starts, sizes and strides in elements."""

    block: int
    sums: int
    sums_size: int
    recurrent_sums: int
    products: int
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
    panel = PANEL_VECTORS * vector
    slice_rows = -(-rows // plan.parts) if plan.split == ROWS else rows
    slice_groups = weights.unit_groups if plan.split == ROWS else -(-weights.unit_groups // plan.parts)
    group = weights.unit_group * weights.cell.gates * vector  # gates of a group, which are whole panels
    block = plan.block or block_of(slice_rows, steps, slice_groups * group * weights.inputs * itemsize)
    sums_at_once = max(SUMS_AT_ONCE, slice_rows * group)
    sums = sums_at_once if block == 1 else block * slice_rows * slice_groups * group
    recurrent_start = _lines(sums, itemsize)
    recurrent_sums = 0 if weights.recurrent_bias is None else sums_at_once
    products_start = recurrent_start + _lines(recurrent_sums, itemsize)
    products = slice_rows * -(-weights.outputs // panel) * panel if projects else 0
    sums_size = products_start + _lines(products, itemsize)
    input_stride = _odd_lines(weights.inputs, itemsize)
    c_stride = _odd_lines(weights.unit_blocks * vector, itemsize)
    h_stride = _odd_lines(weights.outputs, itemsize) if projects else c_stride
    c_size = rows * c_stride if weights.cell.has_cell_state else 0
    inputs_size = block * slice_rows * input_stride
    inputs_start = plan.parts * sums_size
    h_start = inputs_start + plan.parts * inputs_size
    c_start = h_start + 2 * rows * h_stride
    m_start = c_start + c_size
    workspace = Workspace(
        block=block,
        sums=0,
        sums_size=sums_size,
        recurrent_sums=recurrent_start,
        products=products_start,
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
