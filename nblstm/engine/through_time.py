"""The way back of a layer step by step: the jobs of nblstm.kernels.backprop, and the buffers they fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine.packing import BackwardWeights, DirectionWeights, aligned_empty
from nblstm.engine.plan import Plan
from nblstm.engine.products import ZEROS, panel_width
from nblstm.engine.rows import RowOrder
from nblstm.engine.run import LayerRecord, SequenceLayout, row_tables
from nblstm.kernels import team
from nblstm.kernels.backprop import backward_float32, backward_float64
from nblstm.kernels.job import BACKWARD_FIELDS, ROWS
from nblstm.kernels.policy import LINE
from nblstm.kernels.tile import PANEL_VECTORS

_TABLES = ("starts", "batch_sizes", "x_rows", "state_rows")
_OF_A_RUN = [BACKWARD_FIELDS.index(name) for name in ("first_step", "last_step", "stages", "gradients", "d_projected")]


class TapedLayer(NamedTuple):
    """The part of a tape that belongs to one layer in all its directions."""

    weights: list[DirectionWeights]
    packed: list[BackwardWeights]
    layout: SequenceLayout
    x: Array
    record: LayerRecord
    initial: Sequence[Array | None]

    def h(self, direction: int) -> Array:
        """Return the part of the output that is a direction's."""
        outputs = self.weights[0].outputs
        return self.record.h[..., direction * outputs : (direction + 1) * outputs]

    def first_h(self, direction: int) -> Array:
        """Return h_0 (B, P) of a direction, in the order of the kernel's rows."""
        h_0, rows = self.initial[0], self.layout.states
        if h_0 is None:
            return np.zeros((self.layout.batch, self.weights[0].outputs), self.x.dtype)
        own: Array = h_0[direction]
        return own if rows is None else own[rows]


class ThroughTime:
    """The steps of a layer in all its directions.

    gradients  by direction: of the gates' sums, (rows, slots * padded units)
    projected  by direction: of h, (rows, P); None without a projection

    The first rows of both are those of the steps that were run last, slice by slice within each step (`RowOrder`).
    """

    def __init__(
        self, layer: TapedLayer, plan: Plan, order: RowOrder, rows: int, dy: Array | None, d_states: Sequence[Array]
    ) -> None:
        """Make the jobs, and buffers for up to so many rows; `dy` and `d_states` are those of `run_backward`."""
        first = layer.weights[0]
        dtype = first.dtype
        self._plan, self._order = plan, order
        self._worker = backward_float32 if dtype == np.float32 else backward_float64
        self._halves = 1 if first.projection_panels is None else 2
        self.gradients = [_rows(rows, first.gradient_size, dtype) for _ in layer.weights]
        self.projected: list[Array] | list[None] = [None for _ in layer.weights]
        self._projected_stride = 0
        if first.projection_panels is not None:
            self.projected = [_rows(rows, first.outputs, dtype) for _ in layer.weights]
            self._projected_stride = self.projected[0].strides[0] // dtype.itemsize
        self._fill_jobs(layer, dy, d_states)

    def run(self, first: int, last: int) -> None:
        """Go back through steps number `first` to `last` - 1, from where the run before has come to."""
        stages = 2 + self._halves * (last - first)
        for direction, (gradients, projected) in enumerate(zip(self.gradients, self.projected, strict=True)):
            begin, _ = self._order.rows_of(first, last, direction)
            own = first, last, stages, _address_before(gradients, begin), _address_before(projected, begin)
            self._jobs[direction, _OF_A_RUN] = own
        steps = 1 if self._plan.split == ROWS else stages
        slices = len(self._jobs) * self._plan.parts
        team.run(self._worker.address, address_of(self._jobs), slices, steps, self._plan.threads)

    def _fill_jobs(self, layer: TapedLayer, dy: Array | None, d_states: Sequence[Array]) -> None:
        first, layout, plan = layer.weights[0], layer.layout, self._plan
        workspace, size = _workspace(first, plan, layout.batch)
        scratch = aligned_empty(len(layer.weights) * size, first.dtype)
        tables = row_tables(layout, plan.parts if plan.split == ROWS else 1)
        fields: dict[str, Any] = {
            "steps": layout.steps,
            "rows": layout.batch,
            "units": first.units,
            "outputs": first.outputs,
            "cell": first.cell.code,
            "unit_blocks": first.unit_blocks,
            "unit_group": PANEL_VECTORS,
            "split": plan.split,
            "parts": plan.parts,
            "needs_before": int(first.cell.has_cell_state or first.cell.apart),
            "zeros": address_of(ZEROS),
            "recurrent_slot": int(first.cell.apart),
            "recurrent_slots": first.cell.gates,
            "slots": first.cell.gates + first.cell.apart,
            "kept_slots": first.kept_slots,
            **workspace,
            **dict(zip(_TABLES, (0 if table is None else address_of(table) for table in tables), strict=True)),
            "gradient_starts": address_of(self._order.starts),
            "gradients_stride": self.gradients[0].strides[0] // first.dtype.itemsize,
            "projected_stride": self._projected_stride,
            **_steps("dy", dy, layout),
            **_steps("y", layer.record.h, layout),
            **_steps("kept", layer.record.kept, layout),
        }
        h_0, c_0 = (*layer.initial, None)[:2]
        d_h, d_c = (*d_states, None)[:2]
        self._jobs = np.zeros((len(layer.weights), len(BACKWARD_FIELDS)), np.int64)
        for direction, (weights, packed) in enumerate(zip(layer.weights, layer.packed, strict=True)):
            item = weights.dtype.itemsize
            own = fields | {
                "recurrent_weights": address_of(packed.recurrent_panels),
                "projection_weights": _address(packed.projection_panels),
                "reverse": direction,
                "workspace": address_of(scratch) + direction * size * item,
                "dy": _address(dy, direction * weights.outputs * item),
                "y": _address(layer.record.h, direction * weights.outputs * item),
                "kept": _address(layer.record.kept, direction * layer.record.kept.strides[-3]),
                "h_0": _direction_of(h_0, direction),
                "c_0": _direction_of(c_0, direction),
                "d_h": _direction_of(d_h, direction),
                "d_c": _direction_of(d_c, direction),
            }
            self._jobs[direction] = [own.get(name, 0) for name in BACKWARD_FIELDS]
        self._kept_alive = scratch, tables


def _address_before(rows: Array | None, count: int) -> int:
    """Return the address of row 0 of what row `count` and those after it are in `rows`."""
    return 0 if rows is None else address_of(rows) - count * rows.strides[0]


def _workspace(weights: DirectionWeights, plan: Plan, batch: int) -> tuple[dict[str, int], int]:
    """Return where the buffers of one direction begin, with their sizes and strides in elements, and their sum."""
    c_stride, h_stride = _stride(weights.units, weights.dtype), _stride(weights.outputs, weights.dtype)
    sizes = {
        "h_before": plan.parts * c_stride,
        "dh": batch * h_stride,
        "dm": batch * c_stride,
        "dc": batch * c_stride,
    }
    starts = np.cumsum([0, *sizes.values()])
    places = {name: int(start) for name, start in zip(sizes, starts, strict=False)}
    return {**places, "h_stride": h_stride, "c_stride": c_stride}, int(starts[-1])


def _stride(count: int, dtype: np.dtype[Any]) -> int:
    """Round up to whole panels and an odd number of cache lines, as in `nblstm.engine.workspace`."""
    width, line = panel_width(dtype), LINE // dtype.itemsize
    return (-(-(-(-count // width) * width) // line) | 1) * line


def _rows(count: int, size: int, dtype: np.dtype[Any]) -> Array:
    """Return uninitialised rows of `size` numbers; a panel's width more can be read past the last one."""
    stride, width = _stride(size, dtype), panel_width(dtype)
    return aligned_empty(count * stride + width, dtype)[: count * stride].reshape(count, stride)[:, :size]


def _steps(name: str, array: Array | None, layout: SequenceLayout) -> dict[str, int]:
    """Return the fields that say how far a step and a row of x or y are from the next."""
    if array is None:
        return {f"{name}_step": 0, f"{name}_row": 0}
    step, row = array.strides[0] // array.itemsize, array.strides[0 if layout.packed else 1] // array.itemsize
    return {f"{name}_step": step, f"{name}_row": row}


def _address(array: Array | None, offset: int = 0) -> int:
    return 0 if array is None else address_of(array) + offset


def _direction_of(states: Array | None, direction: int) -> int:
    return 0 if states is None else address_of(states) + direction * states.strides[0]
