"""Cross-entropy of rows of logits, with its gradient, a row at a time.

    loss = log(sum over k of exp(x[k] - m)) + m - x[t]        m = max x, t the target
    gradient[k] = (exp(x[k] - m) / sum - [k = t]) / divisor

The sum is made of blocks of 32 vectors, added up in float64; its order depends on the number of classes alone, and no
row on another. NaN and +inf among the logits make their row NaN, as in torch.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.activations import exp_of_negative
from nblstm.kernels.job import loss_job_at
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, worker
from nblstm.kernels.schedule import share
from nblstm.kernels.simd import lanes_of, larger, load, store

# Vectors of scratch memory of a slice: zeros, -inf, the last logits of a row followed by -inf, sums by lane.
SCRATCH_VECTORS = 4
_BLOCK = 32  # vectors


@function
def _exponentials(logits, classes, scratch, gradient):
    """Set `gradient` to exp(x - m); return m and the sum."""
    lanes = lanes_of(logits)
    whole, rest, lane = classes - classes % lanes, 2 * lanes, 3 * lanes
    store(scratch, rest, load(scratch, lanes))
    for k in range(whole, classes):
        scratch[rest + k - whole] = logits[k]
    top = load(scratch, rest)
    for k in range(0, whole, lanes):
        top = larger(load(logits, k), top)
    store(scratch, lane, top)
    highest = scratch[lane]
    for i in range(lane + 1, lane + lanes):
        if not highest >= scratch[i]:
            highest = scratch[i]
    total = 0.0
    for first in range(0, whole, _BLOCK * lanes):
        sums = load(scratch, 0)
        for k in range(first, min(first + _BLOCK * lanes, whole), lanes):
            e = exp_of_negative(load(logits, k) - highest)
            store(gradient, k, e)
            sums = sums + e
        store(scratch, lane, sums)
        for i in range(lane, lane + lanes):
            total += np.float64(scratch[i])
    store(scratch, rest, exp_of_negative(load(scratch, rest) - highest))
    for k in range(whole, classes):
        gradient[k] = scratch[rest + k - whole]
        total += np.float64(gradient[k])
    return np.float64(highest), total


@function
def _cross_entropy_slice(address, piece, like):
    """Do a share of the rows."""
    job = loss_job_at(address)
    lanes = lanes_of(like)
    classes = job.classes
    logits, gradients = numbers_at(job.logits, like), numbers_at(job.gradient, like)
    item, size = itemsize_of(logits), SCRATCH_VECTORS * lanes
    scratch = numbers_at(job.workspace + piece * size * item, like)
    targets, losses = numbers_at(job.targets, np.int64(0)), numbers_at(job.losses, np.float64(0))
    first, last = share(job.rows, piece, job.parts)
    for n in range(first, last):
        target = targets[n]
        gradient = numbers_at(job.gradient + n * classes * item, gradients)
        if target < 0:
            losses[n] = 0.0
            for k in range(classes):
                gradient[k] = 0
        else:
            row = numbers_at(job.logits + n * classes * item, logits)
            highest, total = _exponentials(row, classes, scratch, gradient)
            losses[n] = np.log(total) + (highest - np.float64(row[target]))
            own = (np.float64(gradient[target]) / total - 1.0) / job.divisor
            scale = 1.0 / (total * job.divisor)
            whole = classes - classes % lanes
            for k in range(0, whole, lanes):
                store(gradient, k, load(gradient, k) * scale)
            for k in range(whole, classes):
                gradient[k] = gradient[k] * scale
            gradient[target] = own


@worker
def cross_entropy_float32(job, piece, step):
    """The worker for float32."""
    _cross_entropy_slice(job, piece, np.float32(0))


@worker
def cross_entropy_float64(job, piece, step):
    """The worker for float64."""
    _cross_entropy_slice(job, piece, np.float64(0))
