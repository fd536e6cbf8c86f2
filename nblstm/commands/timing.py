"""How long a call takes, and which other packages there are to compare with."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable


def median_seconds(call: Callable[[], object], budget: float = 0.3) -> float:
    """Return the median time of a `call`: of as many as fit into `budget` seconds, at least 11, after 3 to warm up."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 11 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def is_installed(package: str) -> bool:
    """Return whether `package` could be imported, without importing it.

    >>> is_installed("numpy"), is_installed("no_such_package")
    (True, False)
    """
    return importlib.util.find_spec(package) is not None
