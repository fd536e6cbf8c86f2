"""How many threads a call may use.

The number is nblstm's own, one for the process, as its threads are (nblstm.kernels.team): Numba's count belongs to the
calling thread, and shapes the user's parallel loops.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nblstm import errors
from nblstm.arrays import as_whole_number

_MOST = 2**16  # far beyond any machine: such a number is a mistake
_num_threads = 0  # 0: not set, take what the process may use
_cores, _known_until = 1, -math.inf  # what _available() found, and until when it is believed
_BELIEVED = 1.0  # seconds: to ask the system takes 2 to 8 us, 5 % of a call of 100 steps and 48 units


def _after_fork_in_child() -> None:
    global _num_threads
    _num_threads = 1  # its siblings have the other cores


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _available() -> int:
    """Return how many cores this process may use: those it may run on, has the time of, and Numba's settings allow."""
    global _cores, _known_until
    now = time.monotonic()
    if now >= _known_until:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
        cores = math.ceil(min(cores, _quota(), _limit_of_numba()))
        _cores, _known_until = max(1, cores), now + _BELIEVED
    return _cores


def _limit_of_numba() -> float:
    """Return Numba's limit: its own, or what the environment says before it is imported, which takes half a second."""
    config = getattr(sys.modules.get("numba"), "config", None)
    with suppress(ValueError, TypeError):
        return int(getattr(config, "NUMBA_NUM_THREADS", None) or os.environ.get("NUMBA_NUM_THREADS"))  # type: ignore[arg-type]
    return math.inf


@functools.cache
def _quota() -> float:
    """Return of how many cores the control groups of this process allow the time, as a container's limit is set.

    More threads than that use the time up together, and then all stand still until the next period. Of a part of a core
    the rest is not left unused: 1.5 cores are two threads.
    """
    quota = math.inf
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                quota = min(quota, *_quotas(Path("/sys/fs/cgroup"), path, "cpu.max"))
            elif "cpu" in controllers.split(","):
                quota = min(quota, *_quotas(Path("/sys/fs/cgroup/cpu"), path, "cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return quota


def _quotas(mount: Path, path: str, *files: str) -> Iterator[float]:
    """Give the quotas of a group and of those that it is in, in cores; in a container the mount may be the group."""
    group = mount / path.lstrip("/")
    yield math.inf
    for place in (group, *group.parents):
        with suppress(OSError, ValueError):
            quota, period = " ".join((place / file).read_text(encoding="ascii") for file in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        if place == mount:
            return


def get_num_threads() -> int:
    """Return the upper limit of the threads of a call: what was set, or else how many there may be.

    At first that is the number of cores this process may run on, ``NUMBA_NUM_THREADS`` or what a container's limit
    amounts to, whichever is the smallest; in a forked process it is 1.

    >>> import nblstm
    >>> nblstm.get_num_threads() >= 1
    True
    """
    return _num_threads or usable()


def set_num_threads(n: int) -> None:
    """Let calls from any thread of this process use up to `n` threads each. Results do not depend on it.

    Raises TypeError if n is not a whole number, ValueError if it is below 1 or above 65536. More than there are cores
    is allowed; a call never uses more than ``NUMBA_NUM_THREADS``, nor more than there are cores for this process. The
    threads are nblstm's own, whatever threading layer Numba has.

    >>> import nblstm
    >>> before = nblstm.get_num_threads()
    >>> nblstm.set_num_threads(1)
    >>> nblstm.get_num_threads()
    1
    >>> nblstm.set_num_threads(before)
    """
    global _num_threads
    number = as_whole_number("set_num_threads n", n)
    if not 1 <= number <= _MOST:
        raise ValueError(errors.message("set_num_threads n", f"1 ... {_MOST}", number))
    _num_threads = number


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use up to `n` threads a call inside the ``with`` block, in every thread of the process.

    >>> import nblstm
    >>> with nblstm.num_threads(1):
    ...     nblstm.get_num_threads()
    1
    """
    global _num_threads
    before = _num_threads
    set_num_threads(n)
    try:
        yield
    finally:
        _num_threads = before


def setting() -> int:
    """Return the number that was set, 0 if none was: for what is decided once for a setting, as a step of a cell."""
    return _num_threads


def usable() -> int:
    """Return how many threads a call may use at this moment."""
    # Threads that take turns on a core only add waiting: 8 on 2 cores took up to 1.8 times as long as one.
    if _num_threads == 1:
        return 1
    return min(_num_threads or _MOST, _available())
