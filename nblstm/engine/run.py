"""One call of a recurrent network: for every layer a plan, a workspace, a job for each direction, and the launch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nblstm import threads
from nblstm.arrays import Array, address_of
from nblstm.engine.jobs import NO_TABLES, JobTemplate, fill_jobs, job_template, layer_templates
from nblstm.engine.packing import DirectionWeights, aligned_empty
from nblstm.engine.plan import Plan, heed, is_for_one_thread_now
from nblstm.kernels import team
from nblstm.kernels.dropout import drop_units
from nblstm.kernels.job import ROWS
from nblstm.kernels.policy import LINE, lanes

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

    @property
    def mean_rows(self) -> int:
        """Return the rows of a step in the mean, in eighths of B, so that nearly the same lengths share a plan."""
        if self.batch_sizes is None:
            return self.batch
        eighth = -(-self.batch // 8)
        return -(-int(self.batch_sizes.sum()) // (self.steps * eighth)) * eighth


class Dropout(NamedTuple):
    """Dropout between layers: probability, seed and call number. Layer and step are the engine's to add."""

    p: float
    seed: int
    call: int


class LayerRecord(NamedTuple):
    """What a layer went through, at every step: for `trace`, and for gradients.

    h     (T, B, D*P), or (N, D*P) if packed: its output, before dropout
    kept  (T, B, D, slots, units), or (N, D, slots, units): the gates in their order, then the recurrent sum of the last
          one where it stays apart, then c where there is one; units are padded to whole vectors
    """

    h: Array
    kept: Array


def new_records(weights: list[list[DirectionWeights]], y: Array, layout: SequenceLayout) -> list[LayerRecord]:
    """Return empty records for a call with the output `y`, which becomes the h of the last layer.

    Past the end of a row they are zero.
    """
    records = []
    new = np.empty if layout.batch_sizes is None or layout.packed else np.zeros
    for layer in weights:
        first = layer[0]
        units = first.unit_blocks * lanes(first.dtype.itemsize)
        kept = new((*y.shape[:-1], len(layer), first.kept_slots, units), first.dtype)
        records.append(LayerRecord(y if layer is weights[-1] else new(y.shape, first.dtype), kept))
    return records


def run_layers(
    weights: list[list[DirectionWeights]],
    x: Array,
    layout: SequenceLayout,
    initial: Sequence[Array | None],
    y: Array,
    dropout: Dropout | None = None,
    records: list[LayerRecord] | None = None,
) -> tuple[Array, ...]:
    """Run all layers; write the output to `y`; return h_n (L*D, B, P) and, of an LSTM, c_n (L*D, B, H).

    weights  [layer][direction]
    x        (T, B, I), any strides, or (N, I) if packed; not written
    initial  h_0 and, of an LSTM, c_0, shaped like the last states, any strides, not written; None: zeros
    y        (T, B, D*P) with unit stride in the last axis, or (N, D*P) if packed; positions beyond a row's length
             are set to zero
    records  from `new_records` for this y: filled

    All arrays of the weights' dtype. The caller has validated everything.
    """
    first, directions = weights[0][0], len(weights[0])
    rows = len(weights) * directions, layout.batch
    states = [_state(s, (*rows, n), first.dtype) for s, n in zip(initial, first.state_sizes, strict=True)]
    if layout.batch == 0:
        return tuple(states)
    if layout.rows is not None and layout.batch_sizes is not None:
        y[...] = 0
        longest = int(np.count_nonzero(layout.batch_sizes))
        layout, cut = _part(layout, 0, longest)
        x, y, records = x[cut], y[cut], _cut(records, cut)
    if len(weights) == 1:
        _run_layer(weights[0], x, layout, states, y, None if records is None else records[0].kept)
    elif directions > 1:
        _run_part(weights, x, layout, 0, states, y, dropout, records)
    else:
        for begin, end in _chunks(layout, y):
            part, cut = _part(layout, begin, end)
            _run_part(weights, x[cut], part, begin, states, y[cut], dropout, _cut(records, cut))
    return tuple(states)


def _run_part(
    weights: list[list[DirectionWeights]],
    x: Array,
    layout: SequenceLayout,
    first_step: int,
    states: Sequence[Array],
    y: Array,
    dropout: Dropout | None,
    records: list[LayerRecord] | None,
) -> None:
    """Run all layers over steps that begin with `first_step` of the call; `states` go from initial to final."""
    directions = len(weights[0])
    templates = None
    if directions == 1 and (dropout is None or dropout.p == 0.0):
        sizes = layout.steps, layout.batch, layout.mean_rows
        templates = layer_templates(weights, *sizes, threads.usable())
        if templates is not None and not is_for_one_thread_now(templates[0].plan):
            _run_at_once(templates, x, layout, states, y, records)
            return
    for number, layer in enumerate(weights):
        last = number == len(weights) - 1
        record = None if records is None else records[number]
        target = y if last else np.empty(y.shape, y.dtype) if record is None else record.h
        own = slice(number * directions, (number + 1) * directions)
        _run_layer(layer, x, layout, [state[own] for state in states], target, None if record is None else record.kept)
        if dropout is not None and dropout.p > 0.0 and not last:
            target = target if record is None else target.copy()
            drop_between(target, layout, first_step, number, dropout)
        x = target
    if templates is not None:  # so that brief calls of a stack, too, come in a row from the end of one to the next
        end = time.perf_counter()
        heed(templates[0].plan, end, end)


def _run_at_once(
    templates: list[JobTemplate],
    x: Array,
    layout: SequenceLayout,
    states: Sequence[Array],
    y: Array,
    records: list[LayerRecord] | None,
) -> None:
    """Run several layers of one direction side by side, each a block of steps behind the one before."""
    memory = [aligned_empty(template.workspace, y.dtype) for template in templates]
    targets = [np.empty(y.shape, y.dtype) for _ in templates[1:]] if records is None else [r.h for r in records[:-1]]
    targets.append(y)
    tables = row_tables(layout, 1)
    jobs = []
    for n, template in enumerate(templates):
        own = [state[n : n + 1] for state in states]
        kept = None if records is None else records[n].kept
        source = x if n == 0 else targets[n - 1]
        jobs.append(fill_jobs(template, source, targets[n], own, kept, tables, layout.packed, address_of(memory[n])))
    plan = templates[0].plan
    blocks = -(-layout.steps // plan.block)
    _run(templates[0], np.concatenate(jobs), blocks + len(jobs) - 1, plan)


def _state(initial: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a fresh contiguous copy of the initial state; the kernels turn it into the final one."""
    return np.zeros(shape, dtype) if initial is None else np.array(initial, dtype, order="C")


def _chunks(layout: SequenceLayout, y: Array) -> Iterator[tuple[int, int]]:
    """Cut the steps so that what lies between two layers does not grow with T."""
    length = max(1, _CHUNK_BYTES // (layout.batch * y.shape[-1] * y.itemsize))
    for begin in range(0, layout.steps, length):
        yield begin, min(begin + length, layout.steps)


def _part(layout: SequenceLayout, begin: int, end: int) -> tuple[SequenceLayout, slice]:
    """Return the layout of steps [begin, end), and where they lie along the first axis of x and y."""
    sizes = layout.batch_sizes
    part = layout._replace(steps=end - begin)
    if sizes is not None:
        part = part._replace(batch_sizes=sizes[begin:end], batch=int(sizes[begin]))
    if not layout.packed or sizes is None:
        return part, slice(begin, end)
    return part, slice(int(sizes[:begin].sum()), int(sizes[:end].sum()))


def _cut(records: list[LayerRecord] | None, steps: slice) -> list[LayerRecord] | None:
    return None if records is None else [LayerRecord(h[steps], kept[steps]) for h, kept in records]


def drop_between(y: Array, layout: SequenceLayout, first_step: int, layer: int, dropout: Dropout) -> None:
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
    drop_rows(y.reshape(-1, y.shape[-1]), steps, rows, first_step, layer, dropout)


def drop_rows(y: Array, steps: Array, rows: Array, first_step: int, layer: int, dropout: Dropout) -> None:
    """Apply dropout in place to (N, F) rows, fresh and contiguous, each of which has a step and a row of the batch."""
    kept = 1.0 - dropout.p
    scale = y.dtype.type(1.0 / kept if kept > 0.0 else 0.0)
    seed, call = np.uint64(dropout.seed), np.uint64(dropout.call)
    threshold = round(dropout.p * 2**32)
    drop_units.of(y.dtype)(y, steps, rows, first_step, seed, call, layer, threshold, scale)


def _run_layer(
    layer: list[DirectionWeights],
    x: Array,
    layout: SequenceLayout,
    states: Sequence[Array],
    y: Array,
    kept: Array | None,
) -> None:
    """Run one layer in all its directions; the states, (D, B, size) each, go from initial to final."""
    first = layer[0]
    sizes = layout.steps, layout.batch, layout.mean_rows
    template = job_template(layer, *sizes, threads.usable())
    meant = template.plan
    if is_for_one_thread_now(meant):
        template = job_template(layer, *sizes, 1)
    plan = template.plan
    memory = np.empty(len(layer) * template.workspace * first.dtype.itemsize + LINE, np.uint8)
    workspace = -(-address_of(memory) // LINE) * LINE
    tables = row_tables(layout, plan.parts if plan.split == ROWS else 1)
    jobs = fill_jobs(template, x, y, states, kept, tables, layout.packed, workspace)
    _run(template, jobs, 1 if plan.split == ROWS else template.stages, meant)


def _run(template: JobTemplate, jobs: Array, steps: int, meant: Plan) -> None:
    """Run the jobs, each in the parts of the template's plan, through so many steps of the team.

    meant  the plan that was chosen, where this one is for one thread for the moment
    """
    plan = template.plan
    begin = time.perf_counter()
    team.run(template.worker, address_of(jobs), len(jobs) * plan.parts, steps, plan.threads)
    heed(meant, begin, time.perf_counter())


def row_tables(layout: SequenceLayout, parts: int) -> tuple[Array | None, ...]:
    """Return starts, batch_sizes, x_rows and state_rows of the jobs, for slices of rows in so many parts.

    Rows of different lengths are dealt out, to and fro: in slices of neighbours the first would have most of the work.
    """
    sizes = layout.batch_sizes
    if sizes is None:
        return NO_TABLES if layout.rows is None and layout.states is None else (None, None, layout.rows, layout.states)
    starts = np.cumsum(sizes) - sizes if layout.packed else None
    alive, dealt = deal(sizes, layout.batch, parts)
    if parts == 1:
        return starts, alive, layout.rows, layout.states
    x_rows, state_rows = (dealt if rows is None else rows[dealt] for rows in (layout.rows, layout.states))
    return starts, alive, x_rows, state_rows


def deal(sizes: Array, batch: int, parts: int) -> tuple[Array, Array]:
    """Deal out rows, sorted by length, to slices: return the rows alive (parts, T), and the row that is each slice's.

    To and fro: in slices of neighbours the first would have most of the work.
    """
    if parts == 1:
        return sizes[None], np.arange(batch)
    rounds = np.arange(-(-batch // parts) * parts).reshape(-1, parts)
    # The last one, perhaps not whole, goes to the first parts, as in `share`.
    rounds[-2::-2] = rounds[-2::-2, ::-1].copy()
    slices = rounds.T
    return np.array([np.searchsorted(rows, sizes) for rows in slices]), slices[slices < batch]
