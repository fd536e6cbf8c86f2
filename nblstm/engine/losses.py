"""One call of a loss becomes a job for its kernel: rows split over threads where that pays."""

from __future__ import annotations

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine.packing import aligned_empty
from nblstm.engine.plan import workers_for
from nblstm.kernels import team
from nblstm.kernels.losses import SCRATCH_VECTORS, cross_entropy_float32, cross_entropy_float64
from nblstm.kernels.policy import VECTOR_BYTES, lanes

_VECTOR = 12.0  # nanoseconds for one vector of logits: exp, and three passes over the row


def cross_entropy_rows(logits: Array, targets: Array, divisor: int) -> tuple[Array, Array]:
    """Return the loss of each row (N,) in float64, and the gradient (N, C) of their sum over the divisor.

    logits   (N, C) contiguous, float32 or float64
    targets  (N,) int64 contiguous, below C; below 0: a row that is left out, with zeros for both
    """
    rows, classes = logits.shape
    losses, gradient = np.zeros(rows), np.empty_like(logits)
    if rows == 0:
        return losses, gradient
    parts = workers_for(rows * -(-classes // lanes(logits.itemsize)) * _VECTOR, rows)
    scratch = aligned_empty(parts * SCRATCH_VECTORS * (VECTOR_BYTES // logits.itemsize), logits.dtype)
    scratch.reshape(parts, SCRATCH_VECTORS, -1)[:, :2] = [[0.0], [-np.inf]]
    addresses = (address_of(array) for array in (scratch, logits, targets, losses, gradient))
    job = np.array([rows, classes, parts, divisor, *addresses], np.int64)
    worker = cross_entropy_float32 if logits.dtype == np.float32 else cross_entropy_float64
    team.run(worker.address, address_of(job), parts, 1, parts)
    return losses, gradient
