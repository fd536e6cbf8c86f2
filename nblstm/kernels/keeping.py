"""What a step keeps for gradients and traces: its gates, the recurrent sums that stayed apart, and c.

A worker of its own, so that inference does not compile it.
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.job import cell_job_at, job_at
from nblstm.kernels.matmul import panel_vector, panels_at, rows_at
from nblstm.kernels.memory import itemsize_of, numbers_at
from nblstm.kernels.policy import function, worker
from nblstm.kernels.schedule import entry_of
from nblstm.kernels.simd import lanes_of, load, store


@function
def _keep(address, like):
    """Write to the slots of a step what its cell left, whose `CELL_JOB` this is."""
    cell = cell_job_at(address)
    job, lanes = job_at(cell.job), lanes_of(like)
    sums = panels_at(cell.sums, cell.sums_stride, like)
    recurrent_sums = panels_at(cell.recurrent_sums, cell.recurrent_stride, like)
    c, gates = rows_at(cell.c, cell.c_stride, like), job.gates
    size = job.unit_blocks * lanes
    apart = 0 if job.recurrent_bias == 0 else 1
    slots = gates + apart + (0 if job.c_n == 0 else 1)
    start = entry_of(job.starts, cell.t) * job.kept_step
    for row in range(cell.rows):
        place = start + entry_of(job.x_rows, cell.first_row + row) * job.kept_row
        kept = numbers_at(job.kept + place * itemsize_of(sums.array), like)
        for block in range(cell.first_block, cell.last_block):
            for gate in range(gates):
                value = load(sums.array, panel_vector(sums, block * gates + gate, row))
                store(kept, gate * size + block * lanes, value)
            if apart:
                value = load(recurrent_sums.array, panel_vector(recurrent_sums, block * gates + gates - 1, row))
                store(kept, gates * size + block * lanes, value)
            if job.c_n != 0:
                store(kept, (slots - 1) * size + block * lanes, load(c.array, row * c.stride + block * lanes))


@worker
def keep_float32(job, piece, step):
    """The worker for float32."""
    _keep(job, np.float32(0))


@worker
def keep_float64(job, piece, step):
    """The worker for float64."""
    _keep(job, np.float64(0))
