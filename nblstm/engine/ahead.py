"""Every kernel compiled before the first call, for a container image or the start of a service."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from nblstm import errors, kernels
from nblstm.kernels.disk_cache import mark_complete
from nblstm.kernels.policy import DTYPES, KERNELS

# Modules of kernels that a service never calls: gradients, losses, optimisers, what only nblstm.training has, dropout.
TRAINING_ONLY = frozenset(
    {"backprop", "dense", "dropout", "embedding", "losses", "products", "step_back", "updates", "weight_gradients"}
)
_OF_THE_BENCH = frozenset({"limits"})  # python -m nblstm bench measures the machine with it


class ReadyKernel(NamedTuple):
    """A kernel that `warmup` has made ready."""

    name: str  # its module and its own name
    seconds: float
    size: int  # bytes of its files in the cache; 0 where nothing can be cached
    cached: bool  # this process found all of it in the cache and compiled nothing


def warmup(
    dtypes: Any = DTYPES,
    *,
    training: bool = False,
    progress: Callable[[ReadyKernel], object] | None = None,
) -> list[ReadyKernel]:
    """Compile every kernel that a service needs, or load it from the cache, and return them in order.

    No call of a layer, cell or stream compiles anything after it, whatever its shapes, in this process or in a later
    one with the same cache; ``python -m nblstm warmup`` does it when a container image is built. A user's function that
    calls `nblstm.nopython` is the user's to keep, with ``cache=True``. Compiled code is for the kind of CPU it was
    compiled on: on another one the first call compiles anew. Set ``NUMBA_CPU_NAME`` to compile for the least of several
    kinds.

    Parameters
    ----------
    dtypes : dtype or iterable of dtypes
        float32, float64 or both: of the layers that are going to run.
    training : bool
        Whether `vjp`, dropout and all of `nblstm.training` are to be ready too.
    progress : callable, optional
        Is called with each kernel as soon as it is ready.

    Returns
    -------
    list
        Of each kernel ``name``, ``seconds``, ``size`` in bytes on the disk and whether it came from the cache,
        ``cached``.

    Raises
    ------
    ValueError, TypeError
        Another dtype, or none; something that is no dtype.

    Examples
    --------
    >>> import nblstm
    >>> ready = nblstm.warmup("float32")
    >>> [kernel.name for kernel in ready if kernel.name.startswith("recurrence")]
    ['recurrence.recurrence_float32']
    """
    several = isinstance(dtypes, Iterable) and not isinstance(dtypes, (str, type))
    wanted = [np.dtype(dtype).name for dtype in (dtypes if several else [dtypes])]
    if not wanted or not set(wanted) <= set(DTYPES):
        raise ValueError(errors.message("warmup dtypes", f"some of {', '.join(DTYPES)}", wanted or "none"))
    for module in pkgutil.iter_modules(kernels.__path__):
        importlib.import_module(f"{kernels.__name__}.{module.name}")
    left_out = _OF_THE_BENCH if training else _OF_THE_BENCH | TRAINING_ONLY
    ready = []
    for kernel in list(KERNELS):
        own = [dtype for dtype in kernel.dtypes or wanted[:1] if dtype in wanted]
        if own and kernel.module not in left_out:
            begin = time.perf_counter()
            forms = sum(kernel.prepare(dtype) for dtype in own)
            seconds = time.perf_counter() - begin
            ready.append(ReadyKernel(kernel.name, seconds, kernel.size(), kernel.cache_hits >= forms))
            if progress is not None:
                progress(ready[-1])
    with contextlib.suppress(OSError):  # a full disk: there has been a warning
        mark_complete()
    return ready
