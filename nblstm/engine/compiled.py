"""Weights for a user's compiled code: packed, and described so that they need nothing else of this package's Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.core.typing.typeof import Purpose, typeof_impl

from nblstm.arrays import Array
from nblstm.engine.jobs import job_template
from nblstm.engine.packing import BackwardWeights, DirectionWeights, aligned_empty
from nblstm.errors import message
from nblstm.kernels.cells import worker_of
from nblstm.kernels.job import FIELDS, ONE_ROW_FIELDS, ONE_ROW_JOB, VERSION, WEIGHTS, WEIGHTS_BACK
from nblstm.kernels.keeping import keep_float32, keep_float64
from nblstm.kernels.policy import LINE, VECTOR_BYTES, Worker, lanes
from nblstm.kernels.projection import project_float32, project_float64
from nblstm.kernels.recurrence import recurrence_float32, recurrence_float64
from nblstm.kernels.step_back import step_back_float32, step_back_float64
from nblstm.kernels.tile import PANEL_VECTORS

# Steps whose input is projected at once, and the bytes of their inputs and sums, which lie on the stack.
_STEPS_AT_ONCE = 8
_BLOCK_BYTES = 1 << 16
_STACK_BYTES = 1 << 20  # of 8 MB that a program's main thread has, and 512 KB to 8 MB the others


def _restored(kind: Any, layout: Any, jobs: Array, panels: Array) -> Any:
    """Return weights that come from another process, with the addresses of this one."""
    if layout != (VERSION.names, VECTOR_BYTES, PANEL_VECTORS):
        because = "they were packed by another nblstm or for another CPU"
        raise ValueError(message("nopython weights", "those of this nblstm", kind.__name__, because=because))
    memory = aligned_empty(panels.size, panels.dtype)
    memory[:] = panels
    return _finished(kind, jobs, memory)


class _Weights(NamedTuple):
    """What nblstm.kernels.one_row reads: its docstring has the fields."""

    jobs: Array
    panels: Array
    version: Array

    def __reduce__(self) -> tuple[Any, ...]:
        layout = VERSION.names, VECTOR_BYTES, PANEL_VECTORS
        return _restored, (type(self), layout, np.array(self.jobs), np.array(self.panels))


class LSTMWeights(_Weights):
    """The weights of an LSTM for `nblstm.nopython`."""

    __slots__ = ()


class GRUWeights(_Weights):
    """The weights of a GRU for `nblstm.nopython`."""

    __slots__ = ()


class RNNWeights(_Weights):
    """The weights of an RNN for `nblstm.nopython`."""

    __slots__ = ()


@typeof_impl.register(_Weights)  # type: ignore[untyped-decorator]
def _typeof(weights: Any, context: Any) -> Any:
    if context.purpose is Purpose.constant:
        # Numba would write the addresses in them into machine code, which it may keep on disk for other processes.
        raise ValueError(message("nopython weights", "an argument of the function", "a global or a closed-over name"))
    return types.NamedTuple([typeof_impl(array, context) for array in weights], type(weights))


def compiled_weights(
    kind: Any, layers: Sequence[DirectionWeights], back: Sequence[BackwardWeights] | None, biases: bool
) -> Any:
    """Return a named tuple of class `kind`: one job for each layer, and a copy of all packed weights.

    back    the weights for the way back, one for each layer; None: without it
    biases  whether the layers have them as parameters
    """
    parts = [_parts(layer, None if back is None else back[number]) for number, layer in enumerate(layers)]
    dtype = layers[0].dtype
    line = LINE // dtype.itemsize
    jobs, end, place = np.zeros(len(layers), ONE_ROW_JOB), line, 0  # 0: there is none
    for job, layer, arrays in zip(jobs, layers, parts, strict=True):
        _describe(job, layer, _steps_at_once(layers))
        job["place"], job["biases"] = place, biases
        place += _parameters(layer, biases)
        for name, array in arrays.items():
            job[name] = end
            end += -(-array.size // line) * line
    _check_stack(jobs, layers)
    panels = aligned_empty(end, dtype)
    panels[:] = 0
    for job, arrays in zip(jobs, parts, strict=True):
        for name, array in arrays.items():
            panels[job[name] : job[name] + array.size] = array
    return _finished(kind, jobs.view(np.int64).reshape(len(layers), -1), panels)


def _finished(kind: Any, jobs: Array, panels: Array) -> Any:
    """Return the weights, with the addresses of this process' workers."""
    single = panels.dtype == np.float32
    workers: dict[str, Worker | None] = {
        "worker": recurrence_float32 if single else recurrence_float64,
        "cell_worker": worker_of(int(jobs[0, ONE_ROW_FIELDS.index("cell")]), panels.dtype),
        "worker_back": step_back_float32 if single else step_back_float64,
        "keeper": keep_float32 if single else keep_float64,
        "projector": project_float32 if single else project_float64,
    }
    if jobs[0, ONE_ROW_FIELDS.index("projection_weights")] == 0:
        workers["projector"] = None
    if jobs[0, ONE_ROW_FIELDS.index("input_back")] == 0:  # without the way back
        workers["worker_back"] = workers["keeper"] = None
    for name, worker in workers.items():
        jobs[:, ONE_ROW_FIELDS.index(name)] = 0 if worker is None else worker.address
    arrays = jobs, panels, np.empty(0, VERSION)
    for array in arrays:
        array.flags.writeable = False
    return kind(*arrays)


def _parts(layer: DirectionWeights, back: BackwardWeights | None) -> dict[str, Array]:
    """Return the packed arrays of a layer by the names of their fields."""
    own = layer.input_panels, layer.bias, layer.recurrent_panels, layer.recurrent_bias, layer.projection_panels
    arrays = dict(zip(WEIGHTS, own, strict=True)) | dict(zip(WEIGHTS_BACK, back or (None,) * 3, strict=True))
    return {name: array for name, array in arrays.items() if array is not None}


def _steps_at_once(layers: Sequence[DirectionWeights]) -> int:
    row = max((layer.cell.gates * layer.padded_units + layer.inputs) * layer.dtype.itemsize for layer in layers)
    return max(1, min(_STEPS_AT_ONCE, _BLOCK_BYTES // row))


def _check_stack(jobs: Array, layers: Sequence[DirectionWeights]) -> None:
    """Refuse a network whose step, or step back, takes too much of the stack (nblstm.kernels.one_row)."""
    item = layers[0].dtype.itemsize
    scratch = max(int(max(job["scratch"], job["scratch_back"])) for job in jobs)
    between = 2 * int(jobs[0]["block"]) * layers[0].outputs
    kept = max(layer.kept_slots * layer.padded_units for layer in layers)
    columns = max(max(layer.inputs, layer.units, layer.outputs) for layer in layers)
    size = (scratch + max(between, len(layers) * (kept + 3 * columns))) * item
    if size > _STACK_BYTES:
        expected = f"sizes whose step takes up to {_STACK_BYTES >> 20} MB of the stack"
        raise ValueError(message("nopython_weights", expected, f"{size / 2**20:.1f} MB", hint="Use the layer itself"))


def _describe(job: Any, layer: DirectionWeights, steps: int) -> None:
    """Fill in a job but for its weights."""
    template = job_template([layer], steps, 1, 1, 1)
    for name, value in zip(FIELDS, template.records[0], strict=True):
        job[name] = value
    for name in WEIGHTS:
        job[name] = 0
    cell, padded = layer.cell, layer.padded_units
    width = PANEL_VECTORS * lanes(layer.dtype.itemsize)
    units, columns = (-(-size // width) * width for size in (layer.units, max(layer.inputs, layer.outputs)))
    slots = cell.gates + cell.apart
    job["cell"], job["c_n"], job["apart"] = cell.code, cell.has_cell_state, cell.apart
    job["scratch"] = template.workspace
    job["scratch_back"] = width + (slots + 4) * padded + units + columns
    job["slots"], job["kept_slots"] = slots, layer.kept_slots


def _parameters(layer: DirectionWeights, biases: bool) -> int:
    """Return how many numbers a layer's parameters have."""
    projection = 0 if layer.projection_panels is None else layer.outputs * layer.units
    return layer.cell.gates * layer.units * (layer.inputs + layer.outputs + 2 * biases) + projection
