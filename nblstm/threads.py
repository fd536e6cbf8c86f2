"""How many threads a call may use, and when it must not start any.

The number is nblstm's own, one for the process, and never touches Numba's: Numba's count belongs to the calling thread
and asking for it loads a threading layer.

A process that was forked never launches a parallel region: the parent's threads are gone in it, and libgomp kills a
child that launches after its parent did, or hangs. Compiled code on one thread is safe there and gives the same bits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba

from nblstm import errors
from nblstm.arrays import as_whole_number

_MOST = 2**16  # far beyond any machine: such a number is a mistake
_lock = threading.Lock()
_num_threads = 0  # 0: not set, take what the process may use
_forked = False
_layer: str | None = None


def _after_fork_in_child() -> None:
    global _forked, _lock
    _forked = True
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _available() -> int:
    """Return how many cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def get_num_threads() -> int:
    """Return how many threads one call may use.

    At first that is the number of cores this process may run on, or ``NUMBA_NUM_THREADS`` where that is smaller.

    >>> import nblstm
    >>> nblstm.get_num_threads() >= 1
    True
    """
    return _num_threads or max(1, min(_available(), int(numba.config.NUMBA_NUM_THREADS)))


def set_num_threads(n: int) -> None:
    """Let calls from any thread of this process use up to `n` threads each. Results do not depend on it.

    Raises TypeError if n is not a whole number, ValueError if it is below 1 or above 65536. More than there are cores
    is allowed; a call never uses more than ``NUMBA_NUM_THREADS``, nor more than there are cores for this process.

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


def usable() -> int:
    """Return how many threads a call may use at this moment: 1 in a forked process and under ``workqueue``.

    Loads Numba's threading layer when more than one was asked for and none is loaded yet.
    """
    # Threads that take turns on a core only add waiting: 8 on 2 cores took up to 1.8 times as long as one.
    wanted = min(get_num_threads(), int(numba.config.NUMBA_NUM_THREADS), _available())
    if wanted == 1 or _forked or threading_layer() == "workqueue":
        return 1
    return wanted


def threading_layer() -> str:
    """Return the name of Numba's threading layer (``omp``, ``tbb`` or ``workqueue``), loading it if need be.

    ``workqueue`` ends the whole process when two parallel regions meet, even one of ours and one of the user's.
    """
    global _layer
    if _layer is None:
        with _lock:
            from numba.np.ufunc.parallel import _launch_threads

            _launch_threads()
            _layer = str(numba.threading_layer())
    return _layer
