"""One time step of a network, called from Python: as little as there can be between the call and the recurrence.

A step of some microseconds has no time for checks in Python. These functions are compiled for contiguous arrays of one
dtype and nothing else, so that Numba's own choice by type is a check; the sizes are compared here, with those that
the job has anyway, and nothing is done where they differ. The caller sees to it that arrays are aligned and of the
machine's byte order.
"""

from __future__ import annotations

import numba
import numpy as np

from nblstm.kernels.atomics import call_at
from nblstm.kernels.job import FIELDS, JOB
from nblstm.kernels.memory import numbers_at, on_stack
from nblstm.kernels.policy import LINE, function, typed_entry

_ROWS, _INPUTS, _OUTPUTS = FIELDS.index("rows"), FIELDS.index("inputs"), FIELDS.index("outputs")
# Each step reads the weights to the other end: those that a step ends with are still in the cache for the next.
_TURN = FIELDS.index("turn")
_X, _Y, _WORKSPACE = FIELDS.index("x"), FIELDS.index("y"), FIELDS.index("workspace")
_JOB_SIZE, _ZERO = JOB.itemsize, np.int64(0)
_H_N, _C_N = FIELDS.index("h_n"), FIELDS.index("c_n")


_I64 = numba.int64


def _layers_signatures(number):
    return [(_I64, _I64[:, ::1], array, array) for array in (number[::1], number[:, ::1])]


def _cell_signatures(number):
    array = number[:, ::1]
    return [(_I64, _I64[::1], _I64, array, array, array, array, array)]


@typed_entry(_layers_signatures)
def step_layers(worker, jobs, x, y):
    """Do a step of every layer, one after another; return False, and do nothing, if x or y has another shape.

    jobs  inout  (L, fields) int64, a job of one step and one slice for each layer, complete but for the first x and
                 the last y; the states lie where they say
    x     in     (rows, inputs), or (inputs,) for one row
    y     out    (rows, outputs), or (outputs,)
    """
    last = jobs.shape[0] - 1
    rows, inputs, outputs = jobs[0, _ROWS], jobs[0, _INPUTS], jobs[last, _OUTPUTS]
    if x.size != rows * inputs or y.size != rows * outputs:
        return False
    if x.shape[x.ndim - 1] != inputs or y.shape[y.ndim - 1] != outputs:
        return False
    jobs[0, _X] = x.ctypes.data
    jobs[last, _Y] = y.ctypes.data
    for layer in range(jobs.shape[0]):
        call_at(worker, jobs.ctypes.data + layer * jobs.strides[0], 0, 0)
        jobs[layer, _TURN] = 1 - jobs[layer, _TURN]
    return True


@function
def _copy_state(source, target):
    # In Python's own words, `target[:] = source`, it took seconds to compile.
    for row in range(source.shape[0]):
        for column in range(source.shape[1]):
            target[row, column] = source[row, column]


@typed_entry(_cell_signatures)
def step_cell(worker, template, scratch, x, h, c, h_next, c_next):
    """Do a step of one layer with the user's states; return False, and do nothing, if an array has another shape.

    template        inout  (fields,) int64: a job of one step, one slice and B rows without the fields of this call
    scratch         elements of scratch memory that it takes, with B * units for its output
    x               in   (B, inputs)
    h, c            in   (B, units); of a cell without c, h twice
    h_next, c_next  out  the same; of a cell without c, h_next twice
    """
    rows, inputs, units = h_next.shape[0], template[_INPUTS], template[_OUTPUTS]
    fits = x.shape[0] == rows and x.shape[1] == inputs and h.shape[1] == units and c.shape[1] == units
    if not fits or h.shape[0] != rows or c.shape[0] != rows:
        return False
    memory = np.empty(scratch + LINE // x.itemsize, x.dtype)
    job_at = on_stack(_JOB_SIZE)
    job = numbers_at(job_at, _ZERO)
    for field in range(template.size):
        job[field] = template[field]
    workspace = (memory.ctypes.data + LINE - 1) // LINE * LINE
    job[_WORKSPACE] = workspace
    job[_X] = x.ctypes.data
    job[_Y] = workspace + (scratch - rows * units) * x.itemsize
    _copy_state(h, h_next)
    job[_H_N] = h_next.ctypes.data
    if job[_C_N] != 0:
        _copy_state(c, c_next)
        job[_C_N] = c_next.ctypes.data
    call_at(worker, job_at, 0, 0)
    template[_TURN] = 1 - template[_TURN]  # whatever another thread does to it meanwhile: the bits are the same
    return True
