"""The products of the way back that run over all steps at once: gradients of weights, and of a layer's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine.packing import BackwardWeights, DirectionWeights, aligned_empty, input_gates
from nblstm.engine.run import SequenceLayout, deal
from nblstm.kernels import team
from nblstm.kernels.job import PRODUCT_FIELDS
from nblstm.kernels.policy import Worker, lanes
from nblstm.kernels.products import (
    ROWS_AT_ONCE,
    TERMS_AT_ONCE,
    TERMS_STRIDE,
    rows_float32,
    rows_float64,
    sums_float32,
    sums_float64,
)
from nblstm.kernels.tile import PANEL_VECTORS

# What products are added to that begin at nothing: the widest panel of any CPU.
ZEROS = np.zeros(1024, np.uint8)


class RowOrder(NamedTuple):
    """Where the N rows of all steps lie.

    Row n counts them as a packed sequence does: step by step, longest first. That is the order of the sums over rows,
    so that these do not depend on the split; the gradients lie slice by slice within each step, for the kernel's sake.
    """

    starts: Array  # (parts, T): where a slice's rows of a step begin among the gradients
    position: Array  # (N,): where row n lies among the gradients
    steps: Array  # (N,): its step
    rows: Array  # (N,): which row of its step it is
    sizes: Array  # (T,): rows of each step

    @classmethod
    def of(cls, layout: SequenceLayout, parts: int) -> RowOrder:
        """Return the order of a call whose rows are split into so many slices."""
        batch, steps = layout.batch, layout.steps
        if layout.batch_sizes is None:
            sizes, dealt = np.full(steps, batch), np.arange(batch)
            own = np.array([batch // parts + (part < batch % parts) for part in range(parts)])
            alive = np.repeat(own[:, None], steps, axis=1)
        else:
            sizes = layout.batch_sizes
            alive, dealt = deal(sizes, batch, parts)
        first = np.cumsum(sizes) - sizes
        starts = first + np.cumsum(alive, axis=0) - alive
        step, slice_row = np.nonzero(dealt < sizes[:, None])
        position = np.empty(len(step), np.int64)
        position[first[step] + dealt[slice_row]] = np.arange(len(step))
        t = np.repeat(np.arange(steps), sizes)
        return cls(np.ascontiguousarray(starts), position, t, np.arange(len(t)) - first[t], sizes)

    def addresses(self, array: Array, layout: SequenceLayout, steps: Array | None = None) -> Array:
        """Return the address of each row of an x or y, at its own step or at others."""
        steps = self.steps if steps is None else steps
        if layout.packed:
            first = np.cumsum(self.sizes) - self.sizes
            return np.asarray(address_of(array) + (first[steps] + self.rows) * array.strides[0])
        places = self.rows if layout.rows is None else layout.rows[self.rows]
        return np.asarray(address_of(array) + steps * array.strides[0] + places * array.strides[1])


class Part(NamedTuple):
    """One direction of a layer whose gates' gradients are known."""

    weights: DirectionWeights
    layout: SequenceLayout
    order: RowOrder
    gradients: Array  # N rows of `weights.gradient_size`
    workers: int

    def gradient_rows(self, slot: int) -> Array:
        """Return the address of each row's gradients, from a slot on."""
        weights, item = self.weights, self.weights.dtype.itemsize
        start = address_of(self.gradients) + slot * weights.padded_units * item
        return np.asarray(start + self.order.position * (weights.gradient_size * item))

    @property
    def terms(self) -> int:
        """Return how many numbers of a row of gradients belong to one matrix."""
        return self.weights.cell.gates * self.weights.padded_units


def input_weights(part: Part, x: Array) -> tuple[Array, Array]:
    """Return the gradients of w_ih (G*H, I) and b_ih (G*H,)."""
    rows = part.order.addresses(x, part.layout)
    products, sums = _sums(part, part.gradient_rows(0), part.terms, rows, x.strides[-1] // x.itemsize, x.shape[-1])
    gates = np.argsort(input_gates(part.weights.cell))
    return _by_gate(part, products, gates), _by_gate(part, sums, gates)


def recurrent_weights(part: Part, h: Array, h_0: Array | None, direction: int) -> tuple[Array, Array]:
    """Return the gradients of w_hh (G*H, P) and b_hh (G*H,)."""
    weights, order = part.weights, part.order
    earlier = order.steps + (1 if direction else -1)
    inside = (earlier >= 0) & (earlier < part.layout.steps)
    earlier = np.where(inside, earlier, 0)
    known = inside & (order.rows < order.sizes[earlier])
    before = order.addresses(h, part.layout, earlier) + direction * weights.outputs * h.itemsize
    first: Any = np.zeros(weights.outputs, weights.dtype)
    rows = np.where(known, before, address_of(first))
    if h_0 is not None:
        states = order.rows if part.layout.states is None else part.layout.states[order.rows]
        rows = np.where(known, before, address_of(h_0) + direction * h_0.strides[0] + states * h_0.strides[1])
    slot = int(weights.cell.apart)
    products, sums = _sums(part, part.gradient_rows(slot), part.terms, rows, 1, weights.outputs)
    gates = np.arange(weights.cell.gates)
    return _by_gate(part, products, gates), _by_gate(part, sums, gates)


def projection_weights(part: Part, kept: Array, projected: Array, direction: int) -> Array:
    """Return the gradient of w_hr (P, H)."""
    weights, order = part.weights, part.order
    places = (order.addresses(kept, part.layout) - address_of(kept)) // kept.strides[-4]
    slots = kept.reshape(-1, *kept.shape[-3:])[places, direction, :, : weights.units]
    m = slots[:, 3] * np.tanh(slots[:, 4])
    item, outputs = weights.dtype.itemsize, weights.outputs
    gradient_rows = address_of(projected) + order.position * (outputs * item)
    rows = address_of(m) + np.arange(len(m)) * m.strides[0]
    products, _ = _sums(part, gradient_rows, outputs, rows, 1, weights.units)
    return np.ascontiguousarray(products[:, :outputs].T)


def input_gradient(part: Part, packed: BackwardWeights, dx: Array, adds: bool) -> None:
    """Write the gradient of x to `dx`, or add it there."""
    weights, order = part.weights, part.order
    rows = np.empty(len(order.position), np.int64)
    rows[order.position] = order.addresses(dx, part.layout)
    width = PANEL_VECTORS * lanes(weights.dtype.itemsize)
    workers = max(1, min(part.workers, len(rows)))
    scratch = aligned_empty(workers * -(-weights.inputs // width) * ROWS_AT_ONCE * width, weights.dtype)
    fields = {
        "rows": len(rows),
        "terms": part.terms,
        "columns": weights.inputs,
        "weights": address_of(packed.input_panels),
        "gradients": address_of(part.gradients),
        "gradients_stride": weights.gradient_size,
        "dx_rows": address_of(rows),
        "adds": int(adds),
        "workspace": address_of(scratch),
    }
    _run(rows_float32 if weights.dtype == np.float32 else rows_float64, fields, workers)


def _sums(
    part: Part, gradient_rows: Array, terms: int, source_rows: Array, source_item: int, columns: int
) -> tuple[Array, Array]:
    """Return the sums over all rows of gradient times source, (columns, terms), and of the gradient alone, (terms,)."""
    gradient_rows, source_rows = np.ascontiguousarray(gradient_rows), np.ascontiguousarray(source_rows)
    sizes = {"terms": terms, "columns": columns, "source_item": source_item}
    products = sums_over_rows(gradient_rows, source_rows, sizes, part.weights.dtype, part.workers)
    by_column = products.swapaxes(0, 1).reshape(columns + 1, -1)
    return by_column[:columns], by_column[columns]


def sums_over_rows(
    gradient_rows: Array, source_rows: Array, fields: dict[str, int], dtype: np.dtype[Any], workers: int
) -> Array:
    """Return the sums over all rows of gradient times source, and of the gradient alone, (panels, columns + 1, width).

    Rows are given by their addresses; `fields` are the others of nblstm.kernels.job for such a sum.
    """
    width, columns = PANEL_VECTORS * lanes(dtype.itemsize), fields["columns"]
    panels = -(-fields["terms"] // width)
    workers = max(1, min(workers, panels))
    products = aligned_empty(panels * (columns + 1) * width, dtype)
    scratch = aligned_empty(workers * ((columns + 1) * TERMS_STRIDE + TERMS_AT_ONCE * width), dtype)
    own = {
        "rows": len(gradient_rows),
        "products": address_of(products),
        "gradient_rows": address_of(gradient_rows),
        "source_rows": address_of(source_rows),
        "workspace": address_of(scratch),
    }
    _run(sums_float32 if dtype == np.float32 else sums_float64, {**fields, **own}, workers)
    return products.reshape(panels, columns + 1, width)


def _run(worker: Worker, fields: dict[str, int], workers: int) -> None:
    fields = {"zeros": address_of(ZEROS), "parts": workers, **fields}
    job = np.array([fields.get(name, 0) for name in PRODUCT_FIELDS], np.int64)
    team.run(worker.address, address_of(job), workers, 1, workers)


def _by_gate(part: Part, products: Array, gates: Sequence[int] | Array) -> Array:
    """Return (..., slots * padded units) as (slots * H, ...), with the slots in this order and without the padding."""
    weights = part.weights
    slots = products[..., : part.terms].reshape(*products.shape[:-1], weights.cell.gates, weights.padded_units)
    units = slots[..., gates, : weights.units]
    return np.ascontiguousarray(units.reshape(*products.shape[:-1], -1).T)
