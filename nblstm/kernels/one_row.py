"""A network of one row, called from a user's compiled code: no Python, no memory but the stack.

Each layer is a job of the engine (nblstm.kernels.job) that is complete but for what depends on the call. The workers
are called by address: so a user's function compiles none of their code, and has the bits of the layers whatever options
it was compiled with.

Weights are a named tuple (nblstm.engine.compiled):

    jobs     in  (L, fields) int64, `ONE_ROW_JOB`; the fields of weights are places in `panels`, in elements, 0: none
    panels   in  (elements,): the packed weights of all layers, from a cache line on
    version      for its type alone

The states h (L, P) and, of an LSTM, c (L, H) are contiguous, as are all arrays given by address.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.atomics import call_at
from nblstm.kernels.job import ONE_ROW_FIELDS, WEIGHTS, WEIGHTS_BACK, one_row_job_at
from nblstm.kernels.matmul import panel_width
from nblstm.kernels.memory import numbers_at, on_stack
from nblstm.kernels.policy import LINE, function
from nblstm.kernels.schedule import add_numbers, copy_numbers
from nblstm.kernels.simd import lanes_of

_PLACES = np.array([ONE_ROW_FIELDS.index(name) for name in (*WEIGHTS, *WEIGHTS_BACK)])
_JOB_WORDS = len(ONE_ROW_FIELDS)
_ZERO = np.int64(0)


@function
def job_of(weights, layer):
    """Return the job of a layer as it is in the weights."""
    return one_row_job_at(weights.jobs.ctypes.data + layer * _JOB_WORDS * 8)


@function
def have_sizes_of(weights, h, c):
    """Say whether the states h and, where there is one, c have the sizes of the weights."""
    first, layers = job_of(weights, 0), weights.jobs.shape[0]
    if h.shape[0] != layers or h.shape[1] != first.outputs:
        return False
    return first.c_n == 0 or (c.shape[0] == layers and c.shape[1] == first.units)


@function
def parameters_of(weights):
    """Return how many numbers the parameters of all layers have."""
    last = job_of(weights, weights.jobs.shape[0] - 1)
    biases = 2 if last.biases != 0 else 0
    projection = last.outputs * last.units if last.projection_weights != 0 else 0
    return last.place + last.gates * last.units * (last.inputs + last.outputs + biases) + projection


@function
def set_state(source, target):
    """Copy a state (L, size) to another array, or the same."""
    if source.ctypes.data != target.ctypes.data:
        for layer in range(source.shape[0]):
            for unit in range(source.shape[1]):
                target[layer, unit] = source[layer, unit]


@function
def _begin_job(weights, layer, words):
    """Copy a layer's job to `words`, and make addresses of the places of its weights."""
    for word in range(_JOB_WORDS):
        words[word] = weights.jobs[layer, word]
    for field in _PLACES:
        if words[field] != 0:
            words[field] = weights.panels.ctypes.data + words[field] * weights.panels.itemsize


@function
def _lines(size):
    """Round bytes up to whole cache lines."""
    return (size + LINE - 1) // LINE * LINE


@function
def run_network(weights, x, y, steps, h_n, c_n):
    """Take all layers through some steps.

    x         address in   (steps, I)
    y         address out  (steps, P); 0: not wanted
    h_n, c_n  address inout  (L, P) and (L, H): from the first states to the last; c_n 0 where there is no cell state
    """
    item, first = weights.panels.itemsize, job_of(weights, 0)
    layers = weights.jobs.shape[0]
    scratch = _ZERO
    for layer in range(layers):
        scratch = max(scratch, job_of(weights, layer).scratch)
    at_once = max(1, min(steps, first.block))  # the same for all layers
    between_size = _lines(at_once * first.outputs * item)
    workspace = on_stack(_lines(scratch * item) + 2 * between_size)
    between = workspace + _lines(scratch * item)
    words_at = on_stack(_JOB_WORDS * 8)
    words, job = numbers_at(words_at, _ZERO), one_row_job_at(words_at)
    for begin in range(0, steps, at_once):
        count = min(steps - begin, at_once)
        source = x + begin * first.inputs * item
        for layer in range(layers):
            _begin_job(weights, layer, words)
            target = between + (layer % 2) * between_size
            if layer == layers - 1 and y != 0:
                target = y + begin * first.outputs * item
            job.steps = job.block = count
            job.stages = 1 + count * (1 if job.projection_weights == 0 else 2)
            job.workspace = workspace
            job.x, job.x_step, job.x_row, job.x_item = source, job.inputs, job.inputs, 1
            job.y, job.y_step, job.y_row = target, job.outputs, job.outputs
            job.h_n = h_n + layer * job.outputs * item
            if job.c_n != 0:
                job.c_n = c_n + layer * job.units * item
            call_at(job.worker, words_at, 0, 0)
            source = target


@function
def _state_sizes(weights):
    """Return the elements of a layer's kept slots, of a vector of its inputs and of its outputs: the largest of all."""
    kept, columns = _ZERO, _ZERO
    width = panel_width(weights.panels)
    for layer in range(weights.jobs.shape[0]):
        job = job_of(weights, layer)
        kept = max(kept, job.kept_slots * job.unit_blocks * lanes_of(weights.panels))
        columns = max(columns, job.inputs, job.outputs, job.units)
    return kept, (columns + width - 1) // width * width


@function
def back_through_network(weights, x, h, c, dh, dc, dx, d_parameters, parameters):
    """Take all layers back through one step, which is done again for that.

    x             address in     (I,)
    h, c          address in     (L, P) and (L, H): the states before the step; c 0 where there is no cell state
    dh, dc        address inout  (L, P) and (L, H): from the gradients of the states after the step to those before
    dx            address out    (I,)
    d_parameters  address inout  (parameters,): what is added to, flat and in torch's order; without elements not wanted
    """
    item, layers = weights.panels.itemsize, weights.jobs.shape[0]
    kept, columns = _state_sizes(weights)
    scratch = _ZERO
    for layer in range(layers):
        scratch = max(scratch, job_of(weights, layer).scratch, job_of(weights, layer).scratch_back)
    row = _lines((kept + 3 * columns) * item)  # of a layer: what it keeps, its h and c, and what goes down from it
    workspace = on_stack(_lines(scratch * item) + layers * row)
    rows = workspace + _lines(scratch * item)
    words_at = on_stack(_JOB_WORDS * 8)
    words, job = numbers_at(words_at, _ZERO), one_row_job_at(words_at)
    for upward in range(2 * layers):
        layer = upward if upward < layers else 2 * layers - 1 - upward
        _begin_job(weights, layer, words)
        job.steps = job.block = 1
        job.stages = 2 if job.projection_weights == 0 else 3
        job.workspace = workspace
        own = rows + layer * row
        new_h, new_c, down = own + kept * item, own + (kept + columns) * item, own + (kept + 2 * columns) * item
        job.x, job.x_item = x if layer == 0 else own - row + kept * item, 1
        job.h_0 = h + layer * job.outputs * item
        if job.c_n != 0:
            job.c_0 = c + layer * job.units * item
        job.kept = own
        if upward < layers:
            job.h_n = new_h
            _copy(job.h_0, new_h, job.outputs, weights.panels)
            if job.c_n != 0:
                job.c_n = new_c
                _copy(job.c_0, new_c, job.units, weights.panels)
            job.y = down  # the same numbers as the state
            call_at(job.worker, words_at, 0, 0)
            continue
        job.dh = dh + layer * job.outputs * item
        job.dc = dc + layer * job.units * item
        if layer < layers - 1:
            above, into = numbers_at(down + row, weights.panels), job.dh
            add_numbers(above, _ZERO, numbers_at(into, weights.panels), _ZERO, job.outputs)
        job.dx = dx if layer == 0 else down
        if parameters != 0:
            job.d_parameters = d_parameters + job.place * item
        call_at(job.worker_back, words_at, 0, 0)


@function
def _copy(source, target, count, like):
    copy_numbers(numbers_at(source, like), _ZERO, numbers_at(target, like), _ZERO, count)
