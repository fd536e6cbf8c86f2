"""The team: threads that work through the same steps together, and cannot hang.

A call is cut into `slices` that run side by side and `steps` that follow one another; slice j of step s may begin when
every slice of step s - 1 is done. Each slice has two words on a board: how many of its steps were claimed, and how
many are done. A member claims its own slice first, by compare-and-swap on the number of the step, then any slice
that nobody has claimed yet, then waits until the step is done. So no member is needed: one that the system starts late,
or takes from its core, or never starts, finds its slices done by others.

The caller is one member. The others are helpers: threads of this process that wait for calls in compiled code, awake
at first, then asleep. A call takes a stand, writes there what is to be done, and opens a door to so many helpers;
whoever is free comes in. When all is done the caller shuts the door and returns, and waits for nobody: steps are
numbered on from call to call, so that a helper that comes late, or comes back to its core late, finds the words of the
board beyond every number that it would claim, and leaves. Nothing of a call but its stand is touched without a claim.

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

import numba
import numpy as np

from nblstm.arrays import address_of
from nblstm.kernels.atomics import (
    atomic_load,
    atomic_store,
    call_at,
    compare_and_swap,
    new_lock,
    pause,
    release_lock,
    sleep_at,
    wait_until_beyond,
    wake_at,
)
from nblstm.kernels.policy import entry, function

_I64 = numba.int64

# All words are int64. Those that several threads write stand two lines of 64 bytes apart: a shared line would go back
# and forth between cores, and some CPUs fetch lines in pairs.
_APART = 16
# The memory of the team: how many doors were opened so far, which waiting helpers look at, and how many helpers;
_CALLS, _COUNT = 0, _APART
# for each helper what it does, and the address of the lock that it sleeps at;
_FIRST_HELPER, _MOST_HELPERS = 2 * _APART, 1024
_STATE, _LOCK = 0, 1
_IDLE, _ASLEEP, _BUSY = 0, 1, 2
# and for each stand whether it is taken, its door, what is to be done, and the board.
_FIRST_STAND, _STANDS = _FIRST_HELPER + _MOST_HELPERS * _APART, 8
_TAKEN, _DOOR, _BOARD = 0, _APART, 2 * _APART
_WORKER, _JOB, _SLICES, _STEPS, _FIRST_STEP = range(_DOOR + 1, _DOOR + 6)
_CLAIMED, _DONE, _SLICE = 0, _APART, 2 * _APART
_MOST_SLICES = 1024
_STAND = _BOARD + _MOST_SLICES * _SLICE
# A door is its number times this, plus the places that are left.
_PLACES = 1 << 16
# How long a helper looks for the next call before it sleeps: some 0.3 to 1 ms. To be woken takes it 25 to 100 us.
_ROUNDS_AWAKE = 20_000
# A call is soon after another if the helpers are still awake; so many of them, one soon after another, are a row.
_SOON, _A_ROW = 4e-4, 8
_WAKES = 2  # sleepers that each member wakes at most: each of them wakes more
_CLOSED = -(2**62)  # of _CALLS: helpers leave


def calls_in_a_row() -> bool:
    """Say whether brief calls, each of which asks here, come so fast that the helpers stay awake in between."""
    global _asked, _in_a_row
    now = time.perf_counter()
    _in_a_row = _in_a_row + 1 if now - _asked < _SOON else 0
    _asked = now
    return _in_a_row >= _A_ROW


@function
def _alone(worker, job, slices, steps):
    for step in range(steps):
        for piece in range(slices):
            call_at(worker, job, piece, step)


@entry(_I64, _I64, _I64, _I64)
def _run_alone(worker, job, slices, steps):
    _alone(worker, job, slices, steps)


@function
def _take_part(memory, stand, worker, job, slices, steps, first_step, member):
    board = stand + _BOARD
    for step in range(steps):
        number = first_step + step
        for k in range(slices):
            piece = (member + k) % slices
            claimed = board + piece * _SLICE + _CLAIMED
            if atomic_load(memory, claimed) == number and compare_and_swap(memory, claimed, number, number + 1):
                call_at(worker, job, piece, step)
                atomic_store(memory, board + piece * _SLICE + _DONE, number + 1)
        for piece in range(slices):
            wait_until_beyond(memory, board + piece * _SLICE + _DONE, number)


@function
def _take_stand(memory):
    """Return the place of a free stand, which is the caller's from now on, or 0 if all are taken."""
    for number in range(_STANDS):
        stand = _FIRST_STAND + number * _STAND
        if atomic_load(memory, stand + _TAKEN) == 0 and compare_and_swap(memory, stand + _TAKEN, 0, 1):
            return stand
    return 0


@function
def _wake(memory, wanted):
    """Wake so many helpers less those that are awake and idle, but no more than _WAKES."""
    woken = 0
    for helper in range(atomic_load(memory, _COUNT)):
        if woken == min(wanted, _WAKES):
            return
        place = _FIRST_HELPER + helper * _APART
        state = atomic_load(memory, place + _STATE)
        if state == _IDLE:
            wanted -= 1
        elif state == _ASLEEP and compare_and_swap(memory, place + _STATE, _ASLEEP, _IDLE):
            wake_at(atomic_load(memory, place + _LOCK))
            woken += 1


@function
def _add(memory, index, amount):
    """Add to a word that other threads may add to; return what it was."""
    before = atomic_load(memory, index)
    while not compare_and_swap(memory, index, before, before + amount):
        before = atomic_load(memory, index)
    return before


@entry(_I64, _I64, _I64, _I64, _I64, _I64)
def _run_together(worker, job, slices, steps, members, memory):
    stand = _take_stand(memory)
    if stand == 0:
        _alone(worker, job, slices, steps)
        return
    # Nobody else writes these words: the door is shut, and what late helpers might claim is behind.
    first_step = atomic_load(memory, stand + _FIRST_STEP) + atomic_load(memory, stand + _STEPS)
    for piece in range(slices):
        atomic_store(memory, stand + _BOARD + piece * _SLICE + _CLAIMED, first_step)
        atomic_store(memory, stand + _BOARD + piece * _SLICE + _DONE, first_step)
    atomic_store(memory, stand + _WORKER, worker)
    atomic_store(memory, stand + _JOB, job)
    atomic_store(memory, stand + _SLICES, slices)
    atomic_store(memory, stand + _STEPS, steps)
    atomic_store(memory, stand + _FIRST_STEP, first_step)
    _add(memory, stand + _DOOR, members - 1)
    _add(memory, _CALLS, 1)
    _wake(memory, members - 1)
    _take_part(memory, stand, worker, job, slices, steps, first_step, 0)
    door = atomic_load(memory, stand + _DOOR)
    while not compare_and_swap(memory, stand + _DOOR, door, (door // _PLACES + 1) * _PLACES):
        door = atomic_load(memory, stand + _DOOR)
    atomic_store(memory, stand + _TAKEN, 0)


@function
def _enter(memory, place, stand):
    """Take part in the call at a stand if there is a place."""
    door = atomic_load(memory, stand + _DOOR)
    places = door % _PLACES
    if places == 0:
        return
    worker, job = atomic_load(memory, stand + _WORKER), atomic_load(memory, stand + _JOB)
    slices, steps = atomic_load(memory, stand + _SLICES), atomic_load(memory, stand + _STEPS)
    first_step = atomic_load(memory, stand + _FIRST_STEP)
    # The door has a number: if this succeeds, all that was read is of the call that opened it.
    if compare_and_swap(memory, stand + _DOOR, door, door - 1):
        atomic_store(memory, place + _STATE, _BUSY)
        _wake(memory, places - 1)
        _take_part(memory, stand, worker, job, slices, steps, first_step, places)
        atomic_store(memory, place + _STATE, _IDLE)


@function
def _sleep(memory, place, calls):
    """Sleep until someone opens a door, if nobody has since there were so many calls."""
    compare_and_swap(memory, place + _STATE, _IDLE, _ASLEEP)
    # Who opens one from here on sees that this helper sleeps. One that saw it has taken the state back, and wakes it.
    if atomic_load(memory, _CALLS) == calls or not compare_and_swap(memory, place + _STATE, _ASLEEP, _IDLE):
        sleep_at(atomic_load(memory, place + _LOCK))


@entry(_I64, _I64)
def _help(memory, helper):
    """Take part in calls until the team is closed."""
    place = _FIRST_HELPER + helper * _APART
    calls = atomic_load(memory, _CALLS)
    while calls >= 0:
        for number in range(_STANDS):
            _enter(memory, place, _FIRST_STAND + number * _STAND)
        rounds = 0
        while atomic_load(memory, _CALLS) == calls:
            if rounds < _ROUNDS_AWAKE:
                rounds += 1
                pause()
            else:
                _sleep(memory, place, calls)
        calls = atomic_load(memory, _CALLS)


class _Helpers:
    """The helpers of this process: started when a call wants them, ended with the program."""

    def __init__(self) -> None:
        # It stays until the program ends, with the threads that look at it.
        self.memory = np.zeros(_FIRST_STAND + _STANDS * _STAND, np.int64)
        self.address = address_of(self.memory)
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    def start(self, count: int) -> None:
        """Have `count` helpers, or as many as can be had."""
        with self._starting:
            if not self._threads:
                atexit.register(self._close)
            for helper in range(len(self._threads), min(count, _MOST_HELPERS)):
                self.memory[_FIRST_HELPER + helper * _APART + _LOCK] = new_lock()
                name = f"nblstm helper {helper + 1}"
                thread = threading.Thread(target=_help, args=(self.address, helper), name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads for this process, or it is ending
                    return
                self._threads.append(thread)
                self.memory[_COUNT] = helper + 1

    def __len__(self) -> int:
        return len(self._threads)

    def _close(self) -> None:
        """Send all helpers home: at the end of the program compiled code goes away."""
        self.memory[_CALLS] = _CLOSED
        for helper, thread in enumerate(self._threads):
            release_lock(int(self.memory[_FIRST_HELPER + helper * _APART + _LOCK]))
            thread.join()


_helpers = _Helpers()
_asked, _in_a_row = 0.0, 0


def _after_fork_in_child() -> None:
    """Begin anew: the parent's helpers are not in this process."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def run(worker: int, job: int, slices: int, steps: int, members: int) -> None:
    """Do every step of every slice on up to `members` threads; on the calling thread alone if that is 1.

    worker  address of a C function ``void (job, slice, step)``
    job     what it is given: an address
    """
    if members == 1 or slices > _MOST_SLICES:
        _run_alone(worker, job, slices, steps)
    else:
        if len(_helpers) < members - 1:
            _helpers.start(members - 1)
        _run_together(worker, job, slices, steps, members, _helpers.address)
