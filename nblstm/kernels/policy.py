"""How the package uses Numba: the one file that names its options, its cache and the host's vector width.

Five decorators say what a compiled function is for:

* ``function``: called from other compiled code only; ends up inside its callers, so it has no cache entry of its own;
* ``inlined``: the same, but as text of its one caller, for large functions;
* ``entry``: called from Python; releases the GIL; cached on disk;
* ``parallel_entry``: an entry with a loop over threads;
* ``worker``: called by address, with whole numbers as its only arguments; compiled at its first use; cached on disk.

Fast-math is off everywhere: the promise of equal bits needs every operation as it is written. Fused operations are
explicit (`nblstm.kernels.simd.fma`). ``error_model="numpy"`` makes a division a division, without a zero check.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from nblstm import errors

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "fastmath": False}
_PACKAGE = Path(__file__).resolve().parent.parent

if numba.config.DISABLE_JIT:
    raise RuntimeError(
        errors.message("nblstm", "a Numba that compiles", "NUMBA_DISABLE_JIT=1", hint="Unset that variable")
    )


def _host() -> tuple[int, int, bool]:
    """Return (vector width in bytes, vector registers, whether FMA is an instruction) of the CPU Numba compiles for."""
    triple, _, listed = cpu_target.target_context.codegen().magic_tuple()
    features = set(listed.split(","))
    if not triple.startswith(("x86", "i686", "amd64")):
        return 16, 32, triple.startswith(("aarch64", "arm64", "powerpc64", "ppc64"))
    if "+avx512f" in features:
        return 64, 32, True
    fused = "+fma" in features
    return (32 if fused and "+avx2" in features else 16), 16, fused


VECTOR_BYTES, VECTOR_REGISTERS, HAS_FMA = _host()


LINE = 64  # bytes of a cache line


def lanes(itemsize: int) -> int:
    """Return how many numbers of `itemsize` bytes one vector holds."""
    return VECTOR_BYTES // itemsize


def _sources_digest() -> str:
    """Return a digest of all sources that end up in compiled code."""
    digest = hashlib.sha256()
    for path in sorted((_PACKAGE / "kernels").glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


DIGEST = _sources_digest()


def _with_digest(locator_class: type[Any]) -> type[Any]:
    """Return a cache locator whose stamp covers every kernel source, not only the file of the cached function.

    Numba stamps a cache entry with the function's own file: an edited helper in another file, or an upgrade of the
    package, would run stale code (tests/test_kernel_cache.py).
    """

    class Locator(locator_class):  # type: ignore[misc]
        def get_source_stamp(self) -> tuple[Any, str]:
            return super().get_source_stamp(), DIGEST

    return Locator


class _KernelCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = tuple(_with_digest(cls) for cls in CompileResultCacheImpl._locator_classes)


_warned = threading.Event()


def _warn_uncached(reason: object) -> None:
    if not _warned.is_set():
        _warned.set()
        warnings.warn(
            f"nblstm compiles its kernels anew in every process, because they cannot be cached: {reason}. "
            "Set NUMBA_CACHE_DIR to a folder that can be written",
            RuntimeWarning,
            stacklevel=3,
        )


class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's disk cache, which neither a damaged file nor a full disk can stop."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            _warn_uncached(error)
        except Exception:
            # Bytes spoilt by a crash, a full disk or a bad one fail in many ways, and would at every start to come.
            self._discard()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_uncached(error)
        except Exception:  # the index was spoilt between the load and the save
            self._discard()

    def _discard(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _warn_uncached(error)


def _cache_of(python_function: Callable[..., Any]) -> _KernelCache | None:
    try:
        return _KernelCache(python_function)
    except RuntimeError as error:  # Numba's way to say: no folder to write to
        _warn_uncached(error)
        return None


def function(python_function: Callable[..., Any]) -> Any:
    """Compile for calls from other compiled functions."""
    return numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(python_function)


def inlined(python_function: Callable[..., Any]) -> Any:
    """Compile as text of its one caller.

    Numba links and optimises all that a function calls once more for every function on the way up: a chain of large
    ones costs its length in compile time. Not for what users call: the caller's options would apply.
    """
    return numba.njit(nogil=True, inline="always", **_OPTIONS)(python_function)


def entry(python_function: Callable[..., Any]) -> Any:
    """Compile for calls from Python: no GIL, cached on disk."""
    return _cached(numba.njit(nogil=True, **_OPTIONS)(python_function), python_function)


def parallel_entry(python_function: Callable[..., Any]) -> Any:
    """Compile for calls from Python, with ``prange`` over threads. Only `nblstm.kernels.team` needs it."""
    return _cached(numba.njit(nogil=True, parallel=True, **_OPTIONS)(python_function), python_function)


def _cached(dispatcher: Any, python_function: Callable[..., Any]) -> Any:
    cache = _cache_of(python_function)
    if cache is not None:
        dispatcher._cache = cache
    return dispatcher


def cache_folder() -> str | None:
    """Return the folder in which kernels of this package are kept, or None where none can be written."""
    cache = _cache_of(cache_folder)
    return None if cache is None else str(cache.cache_path)


_compiling = threading.RLock()


def _hold_compilers() -> None:
    """Let no thread compile during a fork: the child would find the lock held for good, by a thread it has not."""
    _compiling.acquire()
    global_compiler_lock.acquire()


def _release_compilers() -> None:
    global_compiler_lock.release()
    _compiling.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_compilers, after_in_parent=_release_compilers, after_in_child=_release_compilers)


class TypedEntry:
    """A function called from Python that is compiled for the types of some dtypes, and never for others.

    A call with other arguments raises TypeError at once, where an `entry` would compile for seconds: so the types need
    no check before the call.
    """

    def __init__(self, signatures: Callable[[Any], list[tuple[Any, ...]]], python_function: Callable[..., Any]) -> None:
        self._signatures = signatures
        self._dispatcher = entry(python_function)
        self._ready: set[str] = set()

    def of(self, dtype: Any) -> Any:
        """Return the function, compiled for the `signatures` of the Numba type of a dtype."""
        if dtype.name not in self._ready:
            with _compiling:
                self._dispatcher.disable_compile(False)
                for signature in self._signatures(numba.from_dtype(dtype)):
                    self._dispatcher.compile(signature)
                self._dispatcher.disable_compile()
                self._ready.add(dtype.name)
        return self._dispatcher


def typed_entry(signatures: Callable[[Any], list[tuple[Any, ...]]]) -> Callable[[Callable[..., Any]], TypedEntry]:
    """Compile for calls from Python with the types that `signatures` gives for that of a number, and no others."""
    return functools.partial(TypedEntry, signatures)


class Worker:
    """A compiled function that other compiled code calls by its address: ``void (int64, int64, int64)``.

    A call by address keeps the parallel function that calls it small: it compiles in 0.1 s where a call by name takes
    1.3 s, and one parallel function serves every worker.
    """

    def __init__(self, python_function: Callable[..., Any]) -> None:
        self._python_function = python_function
        self._callback: Any = None

    @property
    def address(self) -> int:
        """The address of the compiled function; compiles it, or loads it from the cache, at the first use."""
        if self._callback is None:
            with _compiling:
                if self._callback is None:
                    self._callback = self._compile()
        return int(self._callback.address)

    @property
    def cache_hits(self) -> int:
        """1 if this process loaded the function from the disk cache, else 0."""
        return 0 if self._callback is None else int(self._callback.cache_hits)

    def _compile(self) -> Any:
        signature = ((types.int64, types.int64, types.int64), types.void)
        callback = CFunc(self._python_function, signature, locals={}, options=dict(_OPTIONS))
        cache = _cache_of(self._python_function)
        if cache is not None:
            callback._cache = cache
        callback.compile()
        return callback


worker = Worker
