"""The team: a call on several threads of nblstm's own, which cannot hang and needs none of them.

`nblstm.kernels.board` says how they share a call, in compiled code, without the GIL. Here are the threads.

Numba's own parallel loops end when each of their threads has begun and left. Beside busy processes, where a thread is
off its core for milliseconds, a call of 100 us took 2 to 11 times as long on two threads as on one (docs/serving.md);
they belong to a layer (OpenMP, tbb, workqueue) that is the user's choice, and one of these ends the process when two
loops meet; and a process that was forked after one must never begin another.
"""

from __future__ import annotations

import atexit
import os
import threading
import time

import numpy as np

from nblstm.arrays import Array, address_of
from nblstm.kernels import board
from nblstm.kernels.atomics import new_lock, release_lock

# Seconds: after the system refused a thread nobody asks for one, and how long a program's end waits for busy helpers.
_REFUSED, _PATIENCE = 1.0, 1.0


class Team:
    """The helpers of a process: started when a call wants them, sent home at the end of the program."""

    def __init__(self) -> None:
        # It stays until the program ends, with the threads that look at it.
        self.memory = np.zeros(board.WORDS, np.int64)
        self.address = address_of(self.memory)
        self.helpers: list[threading.Thread] = []
        self._begun = 0  # numbers of helpers that were used up, each with a lock of its own
        self._refused_until = 0.0
        # Reentrant: a signal's handler, which may interrupt `start`, may call a layer.
        self._starting = threading.RLock()

    def start(self, count: int) -> None:
        """Have `count` helpers, or as many as can be had."""
        with self._starting:
            if time.monotonic() < self._refused_until:
                return
            if self._begun == 0:
                atexit.register(self.close)
                # Compiled before what the helpers run: the first call needs this, and not that.
                board.run_together(0, 0, 0, 0, 1, self.address)
            while len(self.helpers) < count and self._begun < board.MOST_HELPERS:
                # Used up before anything else: an interrupt on the way costs a number, and no more.
                number, self._begun = self._begun, self._begun + 1
                thread = threading.Thread(target=self._help, args=(number,), name=f"nblstm {number + 1}", daemon=True)
                place = self._place(number)
                place[board.STATE] = board.BUSY  # until it is there
                try:
                    place[board.LOCK] = new_lock()
                    self.memory[board.COUNT] = self._begun
                    self.helpers.append(thread)
                    thread.start()
                except (RuntimeError, MemoryError):  # no more for this process, or it is ending
                    self.helpers = [helper for helper in self.helpers if helper is not thread]
                    self._refused_until = time.monotonic() + _REFUSED
                    return

    def _place(self, helper: int) -> Array:
        """Return the words of a helper."""
        return self.memory[board.FIRST_HELPER + helper * board.APART :][: board.APART]

    def _help(self, number: int) -> None:
        try:
            board.help_calls(self.address, number)
        finally:
            self._place(number)[board.STATE] = board.BUSY  # nobody waits for it, or wakes it

    def close(self) -> None:
        """Send all helpers home, since compiled code goes away at the end of the program."""
        self.memory[board.CALLS] = board.CLOSED
        for helper in range(self._begun):
            if lock := int(self._place(helper)[board.LOCK]):
                release_lock(lock)
        ends = time.monotonic() + _PATIENCE
        for thread in self.helpers:
            if thread.is_alive():
                thread.join(max(0.0, ends - time.monotonic()))


_team = Team()


def _after_fork_in_child() -> None:
    """Begin anew: the parent's helpers are not in this process."""
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def run(worker: int, job: int, slices: int, steps: int, members: int) -> None:
    """Do every step of every slice on up to `members` threads; on the calling thread alone if that is 1.

    worker  address of a C function ``void (job, slice, step)``
    job     what it is given: an address
    """
    if members == 1 or slices > board.MOST_SLICES:
        board.run_alone(worker, job, slices, steps)
        return
    team = _team
    if len(team.helpers) < members - 1:
        team.start(members - 1)
    board.run_together(worker, job, slices, steps, members, team.address)
