"""The products of the way back that wait for no step: gradients of weights, and of a layer's input."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine import plan as planning
from nblstm.engine.packing import aligned_empty
from nblstm.kernels import team
from nblstm.kernels.job import GRADIENT_FIELDS, PRODUCT_FIELDS
from nblstm.kernels.policy import LINE, Worker, lanes
from nblstm.kernels.products import ROWS_AT_ONCE as PRODUCT_ROWS
from nblstm.kernels.products import rows_float32, rows_float64
from nblstm.kernels.tile import PANEL_VECTORS
from nblstm.kernels.weight_gradients import (
    ROWS_AT_ONCE,
    ROWS_STRIDE,
    TRANSPOSED_COLUMNS,
    TRANSPOSED_ROWS,
    weight_gradients_float32,
    weight_gradients_float64,
)

# What products are added to that begin at nothing: the widest panel of any CPU.
ZEROS = np.zeros(1024, np.uint8)


def panel_width(dtype: np.dtype[Any]) -> int:
    """Return how many outputs a panel of weights holds."""
    return PANEL_VECTORS * lanes(dtype.itemsize)


class WeightGradients:
    """The gradients of one matrix of inputs and one of hidden states, or of one alone, summed over several calls."""

    def __init__(self, fields: dict[str, int], dtype: np.dtype[Any], rows: int) -> None:
        """Make the buffers for calls of up to so many rows; `fields` are those of the sizes."""
        columns = fields["inputs"] + fields["ones"] + fields["outputs"]
        width = panel_width(dtype)
        panels = -(-fields["slots"] * fields["slot_size"] // width)
        alone = planning.product_estimate(columns, panels * width, rows, dtype.itemsize)
        self._workers = planning.workers_for(alone, panels)
        sizes = {
            "columns": -(-rows // ROWS_AT_ONCE) * columns * ROWS_STRIDE,
            "packed": self._workers * ROWS_AT_ONCE * width,
            "sums": panels * columns * width,
            "scratch": self._workers * TRANSPOSED_ROWS * (TRANSPOSED_COLUMNS + fields["kept_size"]),
        }
        line = LINE // dtype.itemsize
        starts = list(accumulate((-(-size // line) * line for size in sizes.values()), initial=0))
        self._memory = aligned_empty(starts[-1], dtype)
        places = {
            name: address_of(self._memory) + start * dtype.itemsize for name, start in zip(sizes, starts, strict=False)
        }
        self._fields = {**fields, **places, "parts": self._workers, "begins": 1, "zeros": address_of(ZEROS)}
        self._worker = weight_gradients_float32 if dtype == np.float32 else weight_gradients_float64

    def add(self, x_rows: Array, h_rows: Array | None, gradient_rows: Array, results: dict[str, Array] | None) -> None:
        """Add the products of these rows; with `results`, write the sums there."""
        own = {
            "rows": len(x_rows),
            "x_rows": address_of(x_rows),
            "h_rows": 0 if h_rows is None else address_of(h_rows),
            "gradient_rows": address_of(gradient_rows),
        }
        if results is not None:
            own |= {name: address_of(array) for name, array in results.items()}
        fields = self._fields | own
        job = np.array([fields.get(name, 0) for name in GRADIENT_FIELDS], np.int64)
        stages = 2 if results is None else 3
        team.run(self._worker.address, address_of(job), self._workers, stages, self._workers)
        self._fields["begins"] = 0


def multiply_to_rows(gradients: Array, panels: Array, terms: int, rows: Array, columns: int, adds: bool) -> None:
    """Write the first `terms` numbers of each row of `gradients` (N, any) times `panels` to rows at these addresses."""
    dtype = gradients.dtype
    width = panel_width(dtype)
    alone = planning.product_estimate(len(rows), columns, terms, dtype.itemsize)
    workers = planning.workers_for(alone, len(rows))
    scratch = aligned_empty(workers * -(-columns // width) * PRODUCT_ROWS * width, dtype)
    fields = {
        "rows": len(rows),
        "terms": terms,
        "columns": columns,
        "parts": workers,
        "zeros": address_of(ZEROS),
        "workspace": address_of(scratch),
        "weights": address_of(panels),
        "gradients": address_of(gradients),
        "gradients_stride": gradients.strides[0] // gradients.itemsize,
        "dx_rows": address_of(rows),
        "adds": int(adds),
    }
    worker: Worker = rows_float32 if dtype == np.float32 else rows_float64
    job = np.array([fields[name] for name in PRODUCT_FIELDS], np.int64)
    team.run(worker.address, address_of(job), workers, 1, workers)
