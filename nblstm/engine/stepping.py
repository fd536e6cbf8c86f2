"""Single steps: jobs that are made once and run again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from nblstm import threads
from nblstm.arrays import Array, address_of
from nblstm.engine.jobs import NO_TABLES, JobTemplate, fill_jobs, job_template
from nblstm.engine.packing import DirectionWeights, aligned_empty
from nblstm.kernels import stepping
from nblstm.kernels.job import FIELDS
from nblstm.kernels.policy import LINE

_C_N = FIELDS.index("c_n")


class Step(NamedTuple):
    """A step of a cell and a number of rows."""

    run: Callable[[Array, Array, Array, Array, Array], bool]  # step_cell, with all it has to know before the arrays
    has_cell_state: bool


def is_plain(array: Any, dtype: np.dtype[Any]) -> bool:
    """Say whether it is a contiguous, aligned array of this dtype; whether it can be written to Numba sees.

    A subclass is not: it may have masked elements, or be of no type that Numba knows.
    """
    if type(array) is not ndarray:  # np.ndarray, looked up as that, takes three times as long
        return False
    flags, found = array.flags, array.dtype
    # Most are the very dtype, which is seen in a third of the time.
    return flags.c_contiguous and flags.aligned and (found is dtype or found == dtype)


def step_of(weights: DirectionWeights, rows: int) -> Step | None:
    """Return what a step of so many rows needs, from the weights if they have it; None if it needs several threads."""
    key = rows, threads.setting()
    try:
        step: Step | None = weights.job_templates[key]
    except KeyError:
        step = weights.job_templates[key] = _make_step(weights, rows)
    return step


def _make_step(weights: DirectionWeights, rows: int) -> Step | None:
    if rows == 0 or not runs_alone(weights, rows):
        return None
    record, template = _job(weights, rows)
    record[_C_N] = int(weights.cell.has_cell_state)
    run, nothing = stepping.step_cell.of(weights.dtype), np.empty((1, 0), weights.dtype)
    # Numba learns a type from the first array that has it, and by ways that warn of some of NumPy's: so from this one.
    run(0, record, 0, *[nothing] * 5)
    # A partial is C: it hands its arguments on in less time than Python takes to look them up.
    prepared = partial(run, template.worker, record, template.workspace + rows * weights.outputs)
    return Step(prepared, weights.cell.has_cell_state)


def runs_alone(weights: DirectionWeights, rows: int) -> bool:
    """Say whether a step of so many rows is best done by the calling thread."""
    plan = job_template([weights], 1, rows, rows, threads.usable()).plan
    return plan.threads == 1 or plan.brief


class Stepper:
    """A network of one direction that goes on step by step, for a fixed number of rows; not for two threads at once.

    states  h (L, B, P) and, where there is one, c (L, B, H): those after the last step, in place
    step    goes a step on, from x (B, I) to y (B, P), or both without B for one row; False, and nothing done, for
            others; TypeError for other types than contiguous arrays of the weights' dtype with one or two axes
    """

    step: Callable[[Array, Array], bool]

    def __init__(self, weights: Sequence[DirectionWeights], rows: int, states: Sequence[Array]) -> None:
        """Begin with these states, which become the stepper's own."""
        self._weights, self._rows, self.states = list(weights), rows, list(states)
        first, item = self._weights[0], self._weights[0].dtype.itemsize
        records, templates = zip(*(_job(layer, rows) for layer in self._weights), strict=True)
        self._jobs = np.array(records)
        run, nothing = stepping.step_layers.of(first.dtype), np.empty((1, 0), first.dtype)
        for array in (nothing, nothing[0]):  # as for a cell
            run(0, self._jobs, array, array)
        line = LINE // item
        count = len(templates)
        sizes = [-(-template.workspace // line) * line for template in templates]
        sizes += [rows * first.outputs] * (count - 1)
        self._memory = aligned_empty(sum(sizes), first.dtype)
        places = address_of(self._memory) + np.cumsum([0, *sizes[:-1]]) * item
        self._set("workspace", places[:count])
        self._set("y", [*places[count:], 0])
        self._set("x", [0, *places[count:]])
        for name, state in zip(("h_n", "c_n"), self.states, strict=False):
            self._set(name, address_of(state) + np.arange(count) * state.strides[0])
        self.step = partial(run, templates[0].worker, self._jobs)

    def _set(self, field: str, values: Any) -> None:
        self._jobs[:, FIELDS.index(field)] = values

    def copy(self) -> Stepper:
        """Return another one that goes on from the same states."""
        return Stepper(self._weights, self._rows, [state.copy() for state in self.states])


def _job(weights: DirectionWeights, rows: int) -> tuple[Array, JobTemplate]:
    """Return a job of one step without its addresses, and the template that it is made from."""
    template = job_template([weights], 1, rows, rows, 1)
    x, y = np.empty((1, rows, weights.inputs), weights.dtype), np.empty((1, rows, weights.outputs), weights.dtype)
    states = [np.empty((1, rows, size), weights.dtype) for size in weights.state_sizes]
    record: Array = fill_jobs(template, x, y, states, None, NO_TABLES, False, 0)[0]
    return record, template
