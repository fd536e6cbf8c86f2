"""The job records of a layer: what depends on sizes alone is worked out once, the rest at each call.

A record has some fifty fields; choosing a plan and filling them anew took three quarters of a call of one step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine import plan as planning
from nblstm.engine.packing import DirectionWeights
from nblstm.engine.plan import Plan
from nblstm.engine.workspace import workspace_of
from nblstm.kernels.cells import worker_of
from nblstm.kernels.job import FIELDS
from nblstm.kernels.keeping import keep_float32, keep_float64
from nblstm.kernels.projection import project_float32, project_float64
from nblstm.kernels.recurrence import recurrence_float32, recurrence_float64

# The fields of the call, in the order of FIELDS: packed at once, for a quarter of what NumPy takes to set them.
_CALL_START = FIELDS.index("reverse") * 8
_CALL_FIELDS = struct.Struct(f"={len(FIELDS) - FIELDS.index('reverse')}q")
# starts, batch_sizes, x_rows and state_rows where every row runs through all steps and lies where it is.
NO_TABLES = (None, None, None, None)
# Templates that a layer keeps; a program whose calls have more sizes than this pays for them again.
_MOST_TEMPLATES = 1024


class JobTemplate(NamedTuple):
    """The jobs of a layer in all its directions, with the fields of the call still empty."""

    plan: Plan
    records: Array  # (D, fields) int64
    workspace: int  # elements of scratch memory that each direction needs
    stages: int
    worker: int  # address of the worker of nblstm.kernels.recurrence


def job_template(layer: list[DirectionWeights], steps: int, rows: int, mean_rows: int, threads: int) -> JobTemplate:
    """Return the template for calls of these sizes, from the layer's first direction if it has it.

    Of the `rows` of the batch `mean_rows` run at a step in the mean.
    """
    templates = layer[0].job_templates
    key = steps, rows, mean_rows, threads, len(layer)
    template: JobTemplate | None = templates.get(key)
    if template is None:
        if len(templates) >= _MOST_TEMPLATES:
            templates.clear()
        plan = planning.choose(layer[0], len(layer), steps, rows, mean_rows, threads)
        template = templates[key] = _make_template(layer, plan, steps, rows)
    return template


def layer_templates(
    layers: list[list[DirectionWeights]], steps: int, rows: int, mean_rows: int, threads: int
) -> list[JobTemplate] | None:
    """Return a template for each of several layers of one direction at once; None where one after another is faster."""
    templates = layers[0][0].job_templates
    key = steps, rows, mean_rows, threads, -len(layers)
    several: list[JobTemplate] | None = templates.get(key, [])
    if several == []:
        if len(templates) >= _MOST_TEMPLATES:
            templates.clear()
        plan = planning.choose_for_layers([first for (first,) in layers], steps, rows, mean_rows, threads)
        several = None if plan is None else [_make_template(layer, plan, steps, rows) for layer in layers]
        templates[key] = several
    return several


def _make_template(layer: list[DirectionWeights], plan: Plan, steps: int, rows: int) -> JobTemplate:
    records = np.zeros((len(layer), len(FIELDS)), np.int64)
    workspace, size = workspace_of(layer[0], plan, steps, rows)
    stages = 1 + steps * (1 if layer[0].projection_panels is None else 2)
    projector = project_float32 if layer[0].dtype == np.float32 else project_float64
    for record, weights in zip(records, layer, strict=True):
        fields: dict[str, Any] = {
            "steps": steps,
            "rows": rows,
            "inputs": weights.inputs,
            "units": weights.units,
            "outputs": weights.outputs,
            "cell_worker": worker_of(weights.cell.code, weights.dtype).address,
            "gates": weights.cell.gates,
            "unit_blocks": weights.unit_blocks,
            "unit_group": weights.unit_group,
            "gate_vectors": weights.gate_vectors,
            "split": plan.split,
            "parts": plan.parts,
            "stages": stages,
            "input_weights": address_of(weights.input_panels),
            "bias": address_of(weights.bias),
            "recurrent_weights": address_of(weights.recurrent_panels),
            "recurrent_bias": 0 if weights.recurrent_bias is None else address_of(weights.recurrent_bias),
            "projection_weights": 0 if weights.projection_panels is None else address_of(weights.projection_panels),
            "projector": 0 if weights.projection_panels is None else projector.address,
            **workspace._asdict(),
        }
        for name, value in fields.items():
            record[FIELDS.index(name)] = value
    worker = recurrence_float32 if layer[0].dtype == np.float32 else recurrence_float64
    return JobTemplate(plan, records, size, stages, worker.address)


def fill_jobs(
    template: JobTemplate,
    x: Array,
    y: Array,
    states: Sequence[Array],
    kept: Array | None,
    tables: Iterable[Array | None],
    packed: bool,
    workspace: int,
) -> Array:
    """Return the jobs of a call: each direction has its part of the workspace, of y's last axis and of the states.

    x, y       (T, B, I) and (T, B, D*P), or (N, I) and (N, D*P) if packed
    states     (D, B, P) and, where there is a cell state, (D, B, H); contiguous
    kept       (T, B, D, slots, units of whole vectors), or (N, D, ...) if packed, contiguous; or None
    tables     starts, batch_sizes, x_rows, state_rows: int64, or None; NO_TABLES itself takes no time
    workspace  address of D * template.workspace elements
    """
    records = template.records.copy()
    item = x.itemsize
    x_row, x_item = x.strides[-2:]
    y_row = y.strides[-2]
    # Packed, a step begins `starts` rows after the first one.
    x_step, y_step = (x_row, y_row) if packed else (x.strides[0], y.strides[0])
    table_addresses: tuple[int, ...] = (0, 0, 0, 0)
    if tables is not NO_TABLES:
        table_addresses = tuple(0 if table is None else address_of(table) for table in tables)
    x_address, y_address = address_of(x), address_of(y)
    kept_address, kept_size, kept_steps = 0, 0, (0, 0, 0)
    if kept is not None:
        keeper = (keep_float32 if kept.dtype == np.float32 else keep_float64).address
        kept_address, kept_size, row = address_of(kept), kept.strides[-3], kept.strides[-4] // item
        kept_steps = (row, row, keeper) if packed else (kept.strides[0] // item, row, keeper)
    h_address, h_size = address_of(states[0]), states[0].strides[0]
    c_address, c_size = (0, 0) if len(states) == 1 else (address_of(states[1]), states[1].strides[0])
    for direction in range(len(records)):
        _CALL_FIELDS.pack_into(
            records,  # type: ignore[arg-type]
            direction * records.strides[0] + _CALL_START,
            direction,
            workspace + direction * template.workspace * item,
            x_address,
            x_step // item,
            x_row // item,
            x_item // item,
            y_address + direction * states[0].shape[2] * item,
            y_step // item,
            y_row // item,
            kept_address + direction * kept_size,
            *kept_steps,
            *table_addresses,
            h_address + direction * h_size,
            c_address + direction * c_size,
        )
    return records
