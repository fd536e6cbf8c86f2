"""The job records of a layer: what depends on sizes alone is worked out once, the rest at each call.

A record has forty fields; choosing a plan and filling them anew took three quarters of a call of one step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine import plan as planning
from nblstm.engine.packing import DirectionWeights
from nblstm.engine.plan import Plan
from nblstm.engine.workspace import workspace_of
from nblstm.kernels.job import FIELDS

_CALL_FIELDS = slice(FIELDS.index("reverse"), len(FIELDS))
# Templates that a layer keeps; a program whose calls have more sizes than this pays for them again.
_MOST_TEMPLATES = 32


class JobTemplate(NamedTuple):
    """The jobs of a layer in all its directions, with the fields of the call still empty."""

    plan: Plan
    records: Array  # (D, fields) int64
    workspace: int  # elements of scratch memory that each direction needs
    stages: int


def job_template(layer: list[DirectionWeights], steps: int, rows: int, threads: int) -> JobTemplate:
    """Return the template for calls of these sizes, from the layer's first direction if it has it."""
    templates = layer[0].job_templates
    key = steps, rows, threads, len(layer)
    template: JobTemplate | None = templates.get(key)
    if template is None:
        if len(templates) >= _MOST_TEMPLATES:
            templates.clear()
        plan = planning.choose(layer[0], len(layer), steps, rows, threads)
        template = templates[key] = _make_template(layer, plan, steps, rows)
    return template


def _make_template(layer: list[DirectionWeights], plan: Plan, steps: int, rows: int) -> JobTemplate:
    records = np.zeros((len(layer), len(FIELDS)), np.int64)
    workspace, size = workspace_of(layer[0], plan, steps, rows)
    stages = 1 + steps * (1 if layer[0].projection_panels is None else 2)
    for record, weights in zip(records, layer, strict=True):
        fields: dict[str, Any] = {
            "steps": steps,
            "rows": rows,
            "inputs": weights.inputs,
            "units": weights.units,
            "outputs": weights.outputs,
            "unit_blocks": weights.unit_blocks,
            "split": plan.split,
            "parts": plan.parts,
            "stages": stages,
            "input_weights": address_of(weights.input_panels),
            "bias": address_of(weights.bias),
            "recurrent_weights": address_of(weights.recurrent_panels),
            "projection_weights": 0 if weights.projection_panels is None else address_of(weights.projection_panels),
            **workspace._asdict(),
        }
        for name, value in fields.items():
            record[FIELDS.index(name)] = value
    return JobTemplate(plan, records, size, stages)


class Places(NamedTuple):
    """Where the arrays of a call lie: addresses and strides in elements, in the order of the fields of a job."""

    x: int
    x_step: int
    x_row: int
    x_item: int
    y: int
    y_step: int
    y_row: int
    starts: int
    batch_sizes: int
    x_rows: int
    state_rows: int
    h_n: int
    c_n: int


def fill_jobs(template: JobTemplate, places: Places, workspace: Array, rows: int, outputs: int, units: int) -> Array:
    """Return the jobs of a call: each direction has its part of the workspace, of y's last axis and of the states."""
    item = workspace.itemsize
    records = template.records.copy()
    address = address_of(workspace)
    for direction, record in enumerate(records):
        record[_CALL_FIELDS] = (
            direction,
            address + direction * template.workspace * item,
            *places._replace(
                y=places.y + direction * outputs * item,
                h_n=places.h_n + direction * rows * outputs * item,
                c_n=places.c_n + direction * rows * units * item,
            ),
        )
    return records
