"""The team: threads that work through the same steps together, and cannot hang.

A call is cut into `slices` that run side by side and `steps` that follow one another; slice j of step s may begin when
every slice of step s - 1 is done. Each slice has two words on the `board`: how many of its steps were claimed, and how
many are done. A worker claims its own slice first, by compare-and-swap on the number of the step, then any slice
that nobody has claimed yet, then waits until the step is done.

So no worker is needed: one that the system starts late, or never (a container's quota, OMP_THREAD_LIMIT, ``taskset``),
finds its slices done by others. A barrier that counts all workers would hang there, and costs the same here when all
run: 1.0 us a step at H = 128. Words stand a cache line apart; a shared line would go back and forth between cores.
"""

from __future__ import annotations

import numba
import numpy as np

from nblstm.kernels.atomics import atomic_load, atomic_store, call_at, compare_and_swap, wait_until_beyond
from nblstm.kernels.policy import entry, function, parallel_entry

# int64 words of the board for one slice: two lines of 64 bytes, doubled because some CPUs fetch lines in pairs.
_WORDS_PER_SLICE = 32
_DONE = 16
_I64 = numba.int64


def run(worker: int, job: int, slices: int, steps: int, members: int) -> None:
    """Do every step of every slice on up to `members` threads; on the calling thread alone if that is 1.

    worker  address of a C function ``void (job, slice, step)``
    job     what it is given: an address
    """
    if members == 1:
        _run_alone(worker, job, slices, steps)
        return
    board = np.zeros(slices * _WORDS_PER_SLICE, np.int64)
    # The mask belongs to the calling thread and would shape the user's own parallel loops if it stayed. To set it twice
    # takes a third of the time of a launch.
    users_mask = numba.get_num_threads()
    if users_mask == members:
        _run_together(worker, job, slices, steps, members, board)
        return
    numba.set_num_threads(members)
    try:
        _run_together(worker, job, slices, steps, members, board)
    finally:
        numba.set_num_threads(users_mask)


@entry(_I64, _I64, _I64, _I64)
def _run_alone(worker, job, slices, steps):
    for step in range(steps):
        for piece in range(slices):
            call_at(worker, job, piece, step)


@function
def _take_part(worker, job, slices, steps, member, board):
    for step in range(steps):
        for k in range(slices):
            piece = (member + k) % slices
            claimed = piece * _WORDS_PER_SLICE
            if atomic_load(board, claimed) == step and compare_and_swap(board, claimed, step, step + 1):
                call_at(worker, job, piece, step)
                atomic_store(board, claimed + _DONE, step + 1)
        # After the last step too: the threading layer's own wait at the end of a region may spin for milliseconds on a
        # core that the last worker needs.
        for piece in range(slices):
            wait_until_beyond(board, piece * _WORDS_PER_SLICE + _DONE, step)


@parallel_entry(_I64, _I64, _I64, _I64, _I64, _I64[::1])
def _run_together(worker, job, slices, steps, members, board):
    """The package's only parallel function. board: inout (slices * _WORDS_PER_SLICE,) int64, zeros."""
    for member in numba.prange(members):
        _take_part(worker, job, slices, steps, numba.int64(member), board)
