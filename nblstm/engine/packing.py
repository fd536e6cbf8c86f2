"""Weights as the kernels read them: panels of the register tile.

The gates of a unit must meet in the same tile's rows, so outputs are ordered by unit blocks of one vector each:
vector number ``block * 4 + gate`` holds that gate of units ``block * lanes ... block * lanes + lanes - 1``. Units are
padded to whole vectors with zero weights, whose results are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.arrays import Array, address_of
from nblstm.kernels.cells import LSTM_GATES
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

    inputs: int
    units: int
    outputs: int
    dtype: np.dtype[Any]
    input_panels: Array
    bias: Array
    recurrent_panels: Array
    projection_panels: Array | None
    # What `nblstm.engine.jobs` has worked out for calls of some sizes; forgotten with the weights.
    job_templates: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def unit_blocks(self) -> int:
        """Return how many vectors hold one gate of all units."""
        return -(-self.units // lanes(self.dtype.itemsize))


def pack_lstm_direction(
    w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None, w_hr: Array | None
) -> DirectionWeights:
    """Pack torch's arrays of one layer and direction: (4H, I), (4H, P), (4H,) or None twice, (P, H) or None.

    Gate order i, f, g, o. b_ih + b_hh is rounded once, here.
    """
    dtype = w_ih.dtype
    units = w_hh.shape[0] // LSTM_GATES
    bias = np.zeros(w_hh.shape[0], dtype) if b_ih is None or b_hh is None else b_ih + b_hh
    return DirectionWeights(
        inputs=w_ih.shape[1],
        units=units,
        outputs=w_hh.shape[1],
        dtype=dtype,
        input_panels=_panels(_by_unit_block(w_ih, units)),
        bias=_panels(_by_unit_block(bias[:, None], units)),
        recurrent_panels=_panels(_by_unit_block(w_hh, units)),
        projection_panels=None if w_hr is None else _panels(w_hr),
    )


def _by_unit_block(weights: Array, units: int) -> Array:
    """Order rows (gate, unit) as (unit block, gate, lane), with zero rows for the padded units."""
    terms = weights.shape[1]
    width = lanes(weights.dtype.itemsize)
    blocks = -(-units // width)
    padded = np.zeros((LSTM_GATES, blocks * width, terms), weights.dtype)
    padded[:, :units] = weights.reshape(LSTM_GATES, units, terms)
    by_block = padded.reshape(LSTM_GATES, blocks, width, terms).swapaxes(0, 1)
    return by_block.reshape(LSTM_GATES * blocks * width, terms)


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
