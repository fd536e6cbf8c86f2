"""How a team of threads shares a call: who does which step of which slice, and who waits for what.

A call is cut into `slices` that run side by side and `steps` that follow one another; slice j of step s may begin when
every slice of step s - 1 is done. Each slice has two words on a board: how many of its steps were claimed, and how
many are done. A member claims its own slice first, by compare-and-swap on the number of the step, then any slice
that nobody has claimed yet, then waits until the step is done. So no member is needed: what one that the system starts
late, or never, has not begun is done by others. Only a step that a member has begun is waited for.

The caller is one member. The others are helpers, threads that wait for calls, awake at first, then asleep. A call
takes a stand, writes there what is to be done, and opens a door to so many helpers; whoever is free comes in. When all
is done the caller shuts the door and returns. Steps are numbered on from call to call, so that a helper that comes
late, or comes back to its core late, finds the words of the board beyond every number that it would claim, and leaves.
Nothing of a call but its stand is touched without a claim.

`nblstm.kernels.team` has the threads, and the memory that all of this lies in.
"""

from __future__ import annotations

import numba

from nblstm.kernels.atomics import (
    atomic_load,
    atomic_store,
    call_at,
    compare_and_swap,
    pause,
    sleep_at,
    wait_until_beyond,
    wake_at,
)
from nblstm.kernels.policy import entry, function

_I64 = numba.int64

# All words are int64. Those that several threads write stand two lines of 64 bytes apart: a shared line would go back
# and forth between cores, and some CPUs fetch lines in pairs.
APART = 16
# The memory of a team: how many doors were opened so far, which waiting helpers look at, and how many helpers;
CALLS, COUNT = 0, APART
# for each helper what it does, and the address of the lock that it sleeps at;
FIRST_HELPER, MOST_HELPERS = 2 * APART, 1024
STATE, LOCK = 0, 1
IDLE, ASLEEP, BUSY = 0, 1, 2
# and for each stand whether it is taken, its door, what is to be done, and the board.
_FIRST_STAND, STANDS = FIRST_HELPER + MOST_HELPERS * APART, 8
_TAKEN, _DOOR, _BOARD = 0, APART, 2 * APART
_WORKER, _JOB, _SLICES, _STEPS, _FIRST_STEP = range(_DOOR + 1, _DOOR + 6)
_CLAIMED, _DONE, _SLICE = 0, APART, 2 * APART
MOST_SLICES = 1024
_STAND = _BOARD + MOST_SLICES * _SLICE
WORDS = _FIRST_STAND + STANDS * _STAND
# A door is its number times this, plus the places that are left.
_PLACES = 1 << 16
# How long a helper looks for the next call before it sleeps: 0.57 ms on Zen 3, where a pause takes 28 ns; elsewhere 0.1
# to 1. To be woken takes it 50 to 150 us.
_ROUNDS_AWAKE = 20_000
_WAKES = 2  # sleepers that each member wakes at most: each of them wakes more
CLOSED = -(2**62)  # of CALLS: helpers leave


@function
def _alone(worker, job, slices, steps):
    for step in range(steps):
        for piece in range(slices):
            call_at(worker, job, piece, step)


@entry(_I64, _I64, _I64, _I64)
def run_alone(worker, job, slices, steps):
    """Do every step of every slice on the calling thread: ``worker(job, slice, step)``."""
    _alone(worker, job, slices, steps)


@function
def _steps_done(memory, stand, slices, steps, first_step):
    """Return how many steps of a call are done; all, if the stand has another call by now."""
    done = steps
    for piece in range(slices):
        done = min(done, atomic_load(memory, stand + _BOARD + piece * _SLICE + _DONE) - first_step)
    return done


@function
def _take_part(memory, stand, worker, job, slices, steps, first_step, member):
    board = stand + _BOARD
    for step in range(_steps_done(memory, stand, slices, steps, first_step), steps):
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
    for number in range(STANDS):
        stand = _FIRST_STAND + number * _STAND
        if atomic_load(memory, stand + _TAKEN) == 0 and compare_and_swap(memory, stand + _TAKEN, 0, 1):
            return stand
    return 0


@function
def _wake(memory, wanted):
    """Wake so many helpers less those that are awake and idle, but no more than _WAKES."""
    count = atomic_load(memory, COUNT)
    for helper in range(count):
        if atomic_load(memory, FIRST_HELPER + helper * APART + STATE) == IDLE:
            wanted -= 1
    left = min(wanted, _WAKES)
    for helper in range(count):
        place = FIRST_HELPER + helper * APART
        if left <= 0:
            return
        if atomic_load(memory, place + STATE) == ASLEEP and compare_and_swap(memory, place + STATE, ASLEEP, IDLE):
            wake_at(atomic_load(memory, place + LOCK))
            left -= 1


@function
def _add(memory, index, amount):
    """Add to a word that other threads may add to."""
    before = atomic_load(memory, index)
    while not compare_and_swap(memory, index, before, before + amount):
        before = atomic_load(memory, index)


@entry(_I64, _I64, _I64, _I64, _I64, _I64)
def run_together(worker, job, slices, steps, members, memory):
    """Do the same with up to `members` - 1 helpers of the team whose memory has this address."""
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
    _add(memory, CALLS, 1)
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
    while door % _PLACES > 0:
        worker, job = atomic_load(memory, stand + _WORKER), atomic_load(memory, stand + _JOB)
        slices, steps = atomic_load(memory, stand + _SLICES), atomic_load(memory, stand + _STEPS)
        first_step = atomic_load(memory, stand + _FIRST_STEP)
        # The door has a number: if this succeeds, all that was read is of the call that opened it.
        if compare_and_swap(memory, stand + _DOOR, door, door - 1):
            atomic_store(memory, place + STATE, BUSY)
            _wake(memory, door % _PLACES - 1)
            _take_part(memory, stand, worker, job, slices, steps, first_step, door % _PLACES)
            atomic_store(memory, place + STATE, IDLE)
            return
        door = atomic_load(memory, stand + _DOOR)  # another helper took a place: there may be more


@function
def _sleep(memory, place, calls):
    """Sleep until someone opens a door, if nobody has since there were so many calls."""
    compare_and_swap(memory, place + STATE, IDLE, ASLEEP)
    # Who opens one from here on sees that this helper sleeps. One that saw it has taken the state back, and wakes it.
    if atomic_load(memory, CALLS) == calls or not compare_and_swap(memory, place + STATE, ASLEEP, IDLE):
        sleep_at(atomic_load(memory, place + LOCK))


@entry(_I64, _I64)
def help_calls(memory, helper):
    """Take part in calls, as the helper of this number, until the team is closed."""
    place = FIRST_HELPER + helper * APART
    atomic_store(memory, place + STATE, IDLE)
    calls = atomic_load(memory, CALLS)
    while calls >= 0:
        for number in range(STANDS):
            _enter(memory, place, _FIRST_STAND + number * _STAND)
        rounds = 0
        while atomic_load(memory, CALLS) == calls:
            if rounds < _ROUNDS_AWAKE:
                rounds += 1
                pause()
            else:
                _sleep(memory, place, calls)
        calls = atomic_load(memory, CALLS)
