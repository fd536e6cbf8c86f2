"""Weights as the kernels read them: panels of the register tile.

The gates of a unit must meet in the same tile's rows, so outputs are ordered by unit blocks of one vector each:
vector number ``block * gates + gate`` holds that gate of units ``block * lanes ... block * lanes + lanes - 1``, but for
half a block at the end (`_by_unit_block`). Units are padded to whole vectors with zero weights. What comes of these is
NaN where an input is infinite. The way there never reads it; the way back, whose products would, sets its gradients to
zero first (nblstm.kernels.cells).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

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
    def gate_vectors(self) -> int:
        """Return how many vectors the gates of all units fill: the last block has half of them if that is enough."""
        halved = _ends_with_half(self.cell, self.units, lanes(self.dtype.itemsize))
        return self.cell.gates * self.unit_blocks - (self.cell.gates // 2 if halved else 0)

    @cached_property
    def padded_units(self) -> int:
        """Return H rounded up to whole vectors."""
        return self.unit_blocks * lanes(self.dtype.itemsize)

    @property
    def gradient_size(self) -> int:
        """Return how many numbers of gradients of its sums a row and step has (nblstm.kernels.job)."""
        return (self.cell.gates + self.cell.apart) * self.padded_units

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
    with np.errstate(all="ignore"):  # a sum too large becomes inf without a warning, as in torch
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
        input_panels=pack_panels(_by_unit_block(w_ih, cell)),
        bias=pack_panels(_by_unit_block(bias[:, None], cell)),
        recurrent_panels=pack_panels(_by_unit_block(w_hh, cell)),
        recurrent_bias=None if recurrent_bias is None else pack_panels(_by_unit_block(recurrent_bias[:, None], cell)),
        projection_panels=None if w_hr is None else pack_panels(w_hr),
    )


def _ends_with_half(cell: Cell, units: int, width: int) -> bool:
    """Say whether there are no units in the upper half of the last block, and the cell takes it so."""
    return cell.takes_half and 0 < units % width <= width // 2


def _by_unit_block(weights: Array, cell: Cell) -> Array:
    """Order rows (gate, unit) as (unit block, gate, lane), with zero rows for the padded units.

    Half a block at the end is (half, gate, lane): all gates lie in the first half of its vectors, and nobody needs to
    compute the second.
    """
    (rows, terms), gates = weights.shape, cell.gates
    width, units = lanes(weights.dtype.itemsize), rows // gates
    blocks = -(-units // width)
    padded = np.zeros((gates, blocks * width, terms), weights.dtype)
    padded[:, :units] = weights.reshape(gates, units, terms)
    by_block = padded.reshape(gates, blocks, width, terms).swapaxes(0, 1)
    ordered = by_block.reshape(gates * blocks * width, terms)
    if _ends_with_half(cell, units, width):
        last = by_block[-1].reshape(gates, 2, width // 2, terms).swapaxes(0, 1)
        ordered[-gates * width :] = last.reshape(gates * width, terms)
    return ordered


def pack_panels(weights: Array) -> Array:
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


class BackwardWeights(NamedTuple):
    """One layer and direction, packed for the way back: panels of the transposed matrices.

    The terms of the first two are gradients of the gates' sums, a slot of padded units for each gate.
    """

    input_panels: Array  # I outputs
    recurrent_panels: Array  # P outputs
    projection_panels: Array | None  # H outputs, P terms


def pack_backward(cell: Cell, w_ih: Array, w_hh: Array, w_hr: Array | None = None) -> BackwardWeights:
    """Pack torch's arrays of one layer and direction for the way back; they are those of `pack_direction`."""
    return BackwardWeights(
        pack_panels(_gate_columns(w_ih, input_gates(cell))),
        pack_panels(_gate_columns(w_hh, range(cell.gates))),
        None if w_hr is None else pack_panels(np.ascontiguousarray(w_hr.T)),
    )


def input_gates(cell: Cell) -> list[int]:
    """Return the gates in the order of their slots that the input went into: the last one first where it is apart.

    So the slots of the input, and those of h behind them, are neighbours: n over x, r, z, n over h.
    """
    gates = list(range(cell.gates))
    return [gates[-1], *gates[:-1]] if cell.apart else gates


def _gate_columns(matrix: Array, gates: Sequence[int]) -> Array:
    """Return the transpose of `matrix` (G*H, K) as (K, G * padded units), its gates in this order."""
    rows, terms = matrix.shape
    width, units = lanes(matrix.dtype.itemsize), rows // len(gates)
    padded = -(-units // width) * width
    columns = np.zeros((terms, len(gates), padded), matrix.dtype)
    columns[:, :, :units] = matrix.reshape(len(gates), units, terms)[list(gates)].transpose(2, 0, 1)
    return columns.reshape(terms, len(gates) * padded)
