"""One call of a recurrent network: for every layer a plan, a workspace, a job for each direction, and the launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nblstm import threads
from nblstm.arrays import Array, address_of
from nblstm.engine.jobs import fill_jobs, job_template
from nblstm.engine.packing import DirectionWeights
from nblstm.kernels import team
from nblstm.kernels.dropout import drop_units
from nblstm.kernels.job import ROWS
from nblstm.kernels.policy import LINE
from nblstm.kernels.recurrence import lstm_float32, lstm_float64

# Bytes of output that one layer hands to the next at once: the most that lies between two layers, however long T is.
_CHUNK_BYTES = 1 << 21


class SequenceLayout(NamedTuple):
    """Where the rows of a call lie. Kernels work on rows sorted by length, longest first.

    steps        T, at least 1
    batch        B
    batch_sizes  (T,) int64, never increasing: rows alive at each step; None: all B at every step
    rows         (B,) int64: the kernel's row r is row rows[r] of x and y; None: row r
    states       (B,) int64: its states are row states[r] of h_0, c_0, h_n and c_n; None: row r
    packed       x is (N, I) and y (N, D*P), the rows of each step after those of the step before
    """

    steps: int
    batch: int
    batch_sizes: Array | None = None
    rows: Array | None = None
    states: Array | None = None
    packed: bool = False


class Dropout(NamedTuple):
    """Dropout between layers: probability, seed and call number. Layer and step are the engine's to add."""

    p: float
    seed: int
    call: int


def run_lstm(
    weights: list[list[DirectionWeights]],
    x: Array,
    layout: SequenceLayout,
    h_0: Array | None,
    c_0: Array | None,
    y: Array,
    dropout: Dropout | None = None,
) -> tuple[Array, Array]:
    """Run all layers; write the output to `y` and return fresh h_n (L*D, B, P) and c_n (L*D, B, H).

    weights   [layer][direction]
    x         (T, B, I), any strides, or (N, I) if packed; not written
    h_0, c_0  (L*D, B, P) and (L*D, B, H), any strides, not written; None: zeros
    y         (T, B, D*P) with unit stride in the last axis, or (N, D*P) if packed; positions beyond a row's length
              are set to zero

    All arrays of the weights' dtype. The caller has validated everything.
    """
    first = weights[0][0]
    directions = len(weights[0])
    count = len(weights) * directions
    h_n = _state(h_0, (count, layout.batch, first.outputs), first.dtype)
    c_n = _state(c_0, (count, layout.batch, first.units), first.dtype)
    if layout.batch == 0:
        return h_n, c_n
    if layout.rows is not None and layout.batch_sizes is not None:
        y[...] = 0
        longest = int(np.count_nonzero(layout.batch_sizes))
        layout, x, y = _part(layout, x, y, 0, longest)
    chunks = _chunks(layout, y) if len(weights) > 1 and directions == 1 else [(0, layout.steps)]
    for begin, end in chunks:
        part, x_part, y_part = layout, x, y
        if end - begin < layout.steps:
            part, x_part, y_part = _part(layout, x, y, begin, end)
        source = x_part
        for number, layer in enumerate(weights):
            last = number == len(weights) - 1
            target = y_part if last else np.empty(y_part.shape, first.dtype)
            states = slice(number * directions, (number + 1) * directions)
            _run_layer(layer, source, part, h_n[states], c_n[states], target)
            if dropout is not None and dropout.p > 0.0 and not last:
                _drop(target, part, begin, number, dropout)
            source = target
    return h_n, c_n


def _state(initial: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a fresh contiguous copy of the initial state; the kernels turn it into the final one."""
    return np.zeros(shape, dtype) if initial is None else np.array(initial, dtype, order="C")


def _chunks(layout: SequenceLayout, y: Array) -> Iterator[tuple[int, int]]:
    """Cut the steps so that what lies between two layers does not grow with T."""
    length = max(1, _CHUNK_BYTES // (layout.batch * y.shape[-1] * y.itemsize))
    for begin in range(0, layout.steps, length):
        yield begin, min(begin + length, layout.steps)


def _part(layout: SequenceLayout, x: Array, y: Array, begin: int, end: int) -> tuple[SequenceLayout, Array, Array]:
    """Return the layout and the views of x and y for steps [begin, end)."""
    sizes = layout.batch_sizes
    part = layout._replace(steps=end - begin)
    if sizes is not None:
        part = part._replace(batch_sizes=sizes[begin:end], batch=int(sizes[begin]))
    if not layout.packed or sizes is None:
        return part, x[begin:end], y[begin:end]
    first, last = int(sizes[:begin].sum()), int(sizes[:end].sum())
    return part, x[first:last], y[first:last]


def _drop(y: Array, layout: SequenceLayout, first_step: int, layer: int, dropout: Dropout) -> None:
    """Apply dropout in place to what one layer hands to the next, a fresh contiguous array."""
    if layout.packed and layout.batch_sizes is not None:
        sizes = layout.batch_sizes
        starts = np.cumsum(sizes) - sizes
        steps = np.repeat(np.arange(layout.steps), sizes)
        rows = np.arange(y.shape[0]) - starts[steps]
        rows = rows if layout.states is None else layout.states[rows]
    else:
        steps = np.repeat(np.arange(layout.steps), y.shape[1])
        rows = np.tile(np.arange(y.shape[1]), layout.steps)
    kept = 1.0 - dropout.p
    scale = y.dtype.type(1.0 / kept if kept > 0.0 else 0.0)
    flat = y.reshape(-1, y.shape[-1])
    seed, call = np.uint64(dropout.seed), np.uint64(dropout.call)
    threshold = round(dropout.p * 2**32)
    drop_units(flat, steps, rows, first_step, seed, call, layer, threshold, scale)


def _run_layer(layer: list[DirectionWeights], x: Array, layout: SequenceLayout, h: Array, c: Array, y: Array) -> None:
    """Run one layer in all its directions; h (D, B, P) and c (D, B, H) go from initial to final."""
    first = layer[0]
    template = job_template(layer, layout.steps, layout.batch, threads.get_num_threads())
    if template.plan.threads > 1 and threads.usable() < template.plan.threads:
        template = job_template(layer, layout.steps, layout.batch, threads.usable())
    plan = template.plan
    memory = np.empty(len(layer) * template.workspace * first.dtype.itemsize + LINE, np.uint8)
    workspace = -(-address_of(memory) // LINE) * LINE
    sizes = layout.batch_sizes
    starts = np.cumsum(sizes) - sizes if layout.packed and sizes is not None else None
    tables = starts, sizes, layout.rows, layout.states
    jobs = fill_jobs(template, x, y, h, c, tables, layout.packed, workspace)
    steps = 1 if plan.split == ROWS else template.stages
    worker = lstm_float32 if first.dtype == np.float32 else lstm_float64
    team.run(worker.address, address_of(jobs), len(layer) * plan.parts, steps, plan.threads)
