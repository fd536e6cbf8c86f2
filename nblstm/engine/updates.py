"""One pass of a kernel of `nblstm.kernels.updates` over many arrays, on as many threads as it is worth."""

from __future__ import annotations

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.engine.plan import workers_for
from nblstm.kernels import team
from nblstm.kernels.policy import Worker
from nblstm.kernels.updates import SCRATCH, UPDATE_JOB

_NUMBER = 0.5  # nanoseconds, of Adam's four arrays


def run_over_arrays(worker: Worker, records: Array, numbers: int) -> None:
    """Let `worker` do its pass over the arrays that the records (N,) describe, which have so many numbers together."""
    parts = workers_for(numbers * _NUMBER, max(numbers, 1))
    scratch = np.empty(parts * SCRATCH, np.uint8)
    job = np.array([(address_of(records), len(records), parts, address_of(scratch))], UPDATE_JOB)
    team.run(worker.address, address_of(job), parts, 1, parts)
