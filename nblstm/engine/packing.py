"""Weights as the kernels read them: panels of the register tile.

The gates of a unit must meet in the same tile's rows, so outputs are ordered by unit blocks of one vector each:
vector number ``block * gates + gate`` holds that gate of units ``block * lanes ... block * lanes + lanes - 1``. Units
are padded to whole vectors with zero weights, whose results are never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, address_of
from nblstm.kernels.cells import Cell
from nblstm.kernels.policy import LINE, lanes
from nblstm.kernels.tile import PANEL_VECTORS


def aligned_empty(count: int, dtype: npt.DTypeLike) -> Array:
    """Return `count` uninitialised elements that begin at a cache line: a vector load must not straddle two."""
    size = count * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    offset = -address_of(memory) % LINE
    return memory[offset : offset + size].view(dtype)


@dataclass(frozen=True)
class DirectionWeights:
    """One layer and direction, packed. Sizes: I input features, H units, P outputs (P = H without projection)."""

    cell: Cell
    inputs: int
    units: int
    outputs: int
    dtype: np.dtype[Any]
    input_panels: Array
    bias: Array
    recurrent_panels: Array
    recurrent_bias: Array | None  # for recurrent sums that stay apart
    projection_panels: Array | None
    # What `nblstm.engine.jobs` has worked out for calls of some sizes; forgotten with the weights.
    job_templates: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def unit_blocks(self) -> int:
        """Return how many vectors hold one gate of all units."""
        return -(-self.units // lanes(self.dtype.itemsize))

    @cached_property
    def unit_group(self) -> int:
        """Return the number of unit blocks whose gates fill whole panels: slices of units are whole groups."""
        return PANEL_VECTORS // math.gcd(self.cell.gates, PANEL_VECTORS)

    @cached_property
    def unit_groups(self) -> int:
        """Return how many such groups there are; the last one may have fewer blocks."""
        return -(-self.unit_blocks // self.unit_group)

    @cached_property
    def state_sizes(self) -> tuple[int, ...]:
        """Return the last axis of each state: P of h and, where there is one, H of c."""
        return (self.outputs, self.units) if self.cell.has_cell_state else (self.outputs,)

    @property
    def kept_slots(self) -> int:
        """Return how many numbers of a unit and step are kept on request: gates, the recurrent sum apart, and c."""
        return self.cell.gates + self.cell.apart + self.cell.has_cell_state


def pack_direction(
    cell: Cell, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None, w_hr: Array | None = None
) -> DirectionWeights:
    """Pack torch's arrays of one layer and direction: (G*H, I), (G*H, P), (G*H,) or None twice, (P, H) or None.

    G gates in torch's order. b_ih + b_hh is rounded once, here, but for a last gate whose recurrent sum stays apart.
    """
    dtype, gates = w_ih.dtype, cell.gates
    units = w_hh.shape[0] // gates
    recurrent_bias = None
    bias = np.zeros(w_hh.shape[0], dtype) if b_ih is None or b_hh is None else b_ih + b_hh
    if cell.apart:
        recurrent_bias, last = np.zeros_like(bias), slice(units * (gates - 1), None)
        if b_ih is not None and b_hh is not None:
            bias[last], recurrent_bias[last] = b_ih[last], b_hh[last]
    return DirectionWeights(
        cell=cell,
        inputs=w_ih.shape[1],
        units=units,
        outputs=w_hh.shape[1],
        dtype=dtype,
        input_panels=_panels(_by_unit_block(w_ih, gates)),
        bias=_panels(_by_unit_block(bias[:, None], gates)),
        recurrent_panels=_panels(_by_unit_block(w_hh, gates)),
        recurrent_bias=None if recurrent_bias is None else _panels(_by_unit_block(recurrent_bias[:, None], gates)),
        projection_panels=None if w_hr is None else _panels(w_hr),
    )


def _by_unit_block(weights: Array, gates: int) -> Array:
    """Order rows (gate, unit) as (unit block, gate, lane), with zero rows for the padded units."""
    rows, terms = weights.shape
    width = lanes(weights.dtype.itemsize)
    blocks = -(-(rows // gates) // width)
    padded = np.zeros((gates, blocks * width, terms), weights.dtype)
    padded[:, : rows // gates] = weights.reshape(gates, rows // gates, terms)
    by_block = padded.reshape(gates, blocks, width, terms).swapaxes(0, 1)
    return by_block.reshape(gates * blocks * width, terms)


def _panels(weights: Array) -> Array:
    """Lay the rows (outputs) of `weights` (N, K) into panels [panel, k, j]; returned as 1-D."""
    outputs, terms = weights.shape
    width = PANEL_VECTORS * lanes(weights.dtype.itemsize)
    panels = -(-outputs // width)
    packed = aligned_empty(panels * terms * width, weights.dtype)
    by_panel = packed.reshape(panels, terms, width)
    whole = outputs // width
    by_panel[:whole] = weights[: whole * width].reshape(whole, width, terms).swapaxes(1, 2)
    if whole < panels:
        by_panel[whole] = 0
        by_panel[whole, :, : outputs - whole * width] = weights[whole * width :].T
    return packed
