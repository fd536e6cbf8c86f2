"""How the package uses Numba: its options, and the host's vector width (LLVM's options: nblstm.kernels.compilers).

Seven decorators say what a compiled function is for:

* ``function``: called from other compiled code only; ends up inside its callers, so it has no cache entry of its own;
* ``inlined``: the same, where it must be inside even though it is large;
* ``entry``: called from Python; releases the GIL; cached on disk;
* ``typed_entry``: the same, for the types that belong to a dtype and no others;
* ``open_entry``: called from Python and from a user's compiled code;
* ``worker``: called by address, with whole numbers as its only arguments; compiled at its first use; cached on disk;
* ``worker_calling``: the same, for one that calls other workers by their names, which are made ready before it.

What is cached is a `Kernel`, and all of them are in `KERNELS` once their modules are imported.

Fast-math is off everywhere: the promise of equal bits needs every operation as it is written. Fused operations are
explicit (`nblstm.kernels.simd.fma`). ``error_model="numpy"`` makes a division a division, without a zero check.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import glob
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import llvmlite.binding as llvm
import numba
from numba.core import types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from nblstm import errors
from nblstm.kernels.compilers import LinkedCompiler, WorkerCompiler
from nblstm.kernels.disk_cache import KernelCache, cache_of

_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "fastmath": False}
Signatures: TypeAlias = "list[tuple[Any, ...]]"

if numba.config.DISABLE_JIT:
    raise RuntimeError(
        errors.message("nblstm", "a Numba that compiles", "NUMBA_DISABLE_JIT=1", hint="Unset that variable")
    )


def _host() -> tuple[int, int, bool, bool]:
    """Return what Numba's CPU has: bytes of a vector, vector registers, fused multiply-add, and AMD's Zen design."""
    triple, name, listed = cpu_target.target_context.codegen().magic_tuple()
    features = set(listed.split(","))
    if not triple.startswith(("x86", "i686", "amd64")):
        return 16, 32, triple.startswith(("aarch64", "arm64", "powerpc64", "ppc64")), False
    is_zen = name.startswith("znver")
    if "+avx512f" in features:
        return 64, 32, True, is_zen
    fused = "+fma" in features
    return (32 if fused and "+avx2" in features else 16), 16, fused, is_zen


VECTOR_BYTES, VECTOR_REGISTERS, HAS_FMA, IS_ZEN = _host()


LINE = 64  # bytes of a cache line


def lanes(itemsize: int) -> int:
    """Return how many numbers of `itemsize` bytes one vector holds."""
    return VECTOR_BYTES // itemsize


def _linked(python_function: Callable[..., Any], inline: bool) -> Any:
    # Inlining is said either way, or what calls it would say.
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": inline}
    return numba.njit(nogil=True, pipeline_class=LinkedCompiler, **options, **_OPTIONS)(python_function)


def function(python_function: Callable[..., Any]) -> Any:
    """Compile for calls from other compiled functions."""
    return _linked(python_function, inline=False)


def inlined(python_function: Callable[..., Any]) -> Any:
    """Compile for one caller, whose code it becomes.

    For large functions that run at every step: LLVM alone would not do so, and the calls cost a tenth of the time of
    one row and 48 units.
    """
    return _linked(python_function, inline=True)


DTYPES = ("float32", "float64")
KERNELS: list[Kernel] = []


class Kernel(ABC):
    """A function with a cache entry of its own.

    name    its module and its own name: ``recurrence.recurrence_float32``
    dtypes  what it can be compiled for; empty if it knows none
    """

    def __init__(self, python_function: Callable[..., Any], dtypes: tuple[str, ...]) -> None:
        self.module = python_function.__module__.rpartition(".")[2]
        self.name = f"{self.module}.{python_function.__qualname__}"
        self.dtypes = dtypes
        self._python_function = python_function
        KERNELS.append(self)

    @functools.cached_property
    def cache(self) -> KernelCache | None:
        """Where it is kept; None where no folder can be written."""
        return cache_of(self._python_function)

    @abstractmethod
    def prepare(self, dtype: str) -> int:
        """Compile for a dtype of its own, or load from the cache, where this has not been done; return how many forms.

        A kernel without dtypes takes any.
        """

    @property
    @abstractmethod
    def cache_hits(self) -> int:
        """How many of its compiled forms this process loaded from the disk cache."""

    def size(self) -> int:
        """Return how many bytes its files in the cache have, for all dtypes and CPUs."""
        if self.cache is None:
            return 0
        files = Path(self.cache.cache_path).glob(f"{glob.escape(self.cache.filename_base)}.*")
        return sum(file.stat().st_size for file in files)


class _DispatcherKernel(Kernel):
    """A kernel that Numba's dispatcher calls, compiled for the types that `signatures` gives for that of a number."""

    def __init__(self, dispatcher: Any, signatures: Callable[[Any], Signatures], dtypes: tuple[str, ...]) -> None:
        super().__init__(dispatcher.py_func, dtypes)
        self._dispatcher, self._signatures = dispatcher, signatures
        if self.cache is not None:
            dispatcher._cache = self.cache

    def prepare(self, dtype: str) -> int:
        """Compile or load every signature of a dtype; return how many there are."""
        signatures = self._signatures(getattr(types, dtype))
        for signature in signatures:
            self._dispatcher.compile(signature)
        return len(signatures)

    @property
    def cache_hits(self) -> int:
        """How many signatures this process loaded from the disk cache."""
        return sum(self._dispatcher.stats.cache_hits.values())


def entry(*signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for calls from Python with arguments of these types: no GIL, cached on disk."""
    return functools.partial(_entry, signature)


def open_entry(python_function: Callable[..., Any]) -> Any:
    """Compile for calls from Python and from a user's compiled code, for the types that come; cached on disk."""
    dispatcher = numba.njit(nogil=True, **_OPTIONS)(python_function)
    with contextlib.suppress(RuntimeError):  # no folder to write to: that is for the kernels to say
        dispatcher._cache = KernelCache(python_function)
    return dispatcher


def _entry(signature: tuple[Any, ...], python_function: Callable[..., Any]) -> Any:
    dispatcher = numba.njit(nogil=True, **_OPTIONS)(python_function)
    _DispatcherKernel(dispatcher, lambda number: [signature], ())
    return dispatcher


_compiling = threading.RLock()
_held = False


def _hold_compilers() -> None:
    """Let no thread compile during a fork: the child would find the lock held for good, by a thread it has not."""
    global _held
    _compiling.acquire()
    global_compiler_lock.acquire()
    _held = True


def _release_compilers() -> None:
    global _held
    if _held:  # not where this module was imported while the fork waited for that
        _held = False
        global_compiler_lock.release()
        _compiling.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_compilers, after_in_parent=_release_compilers, after_in_child=_release_compilers)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's collector from going through all that Numba makes, again and again: 8 to 10 % of a first call."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class TypedEntry(_DispatcherKernel):
    """A function called from Python that is compiled for the types of some dtypes, and never for others.

    A call with other arguments raises TypeError at once, where Numba would compile for seconds: so the types need no
    check before the call.
    """

    def __init__(self, signatures: Callable[[Any], Signatures], python_function: Callable[..., Any]) -> None:
        super().__init__(numba.njit(nogil=True, **_OPTIONS)(python_function), signatures, DTYPES)
        self._ready: set[str] = set()

    def of(self, dtype: Any) -> Any:
        """Return the function, compiled for the `signatures` of the Numba type of a dtype."""
        if dtype.name not in self._ready:
            self.prepare(dtype.name)
        return self._dispatcher

    def prepare(self, dtype: str) -> int:
        """Compile or load the signatures of a dtype, and no others from then on; return how many there are."""
        with _compiling:
            self._dispatcher.disable_compile(False)
            count = super().prepare(dtype)
            self._dispatcher.disable_compile()
            self._ready.add(dtype)
        return count


def typed_entry(signatures: Callable[[Any], Signatures]) -> Callable[[Callable[..., Any]], TypedEntry]:
    """Compile for calls from Python with the types that `signatures` gives for that of a number, and no others."""
    return functools.partial(TypedEntry, signatures)


class Worker(Kernel):
    """A compiled function with whole numbers as its only arguments, which other compiled code calls by its address.

    So one function of the team serves every worker, and none holds the code of another. Its name ends with the dtype
    that it is for. Code that calls it by that name must not be compiled, nor loaded, before `link`: it would crash.
    """

    def __init__(self, python_function: Callable[..., Any], callees: tuple[Worker, ...] = ()) -> None:
        super().__init__(python_function, (python_function.__name__.rpartition("_")[2],))
        self._callees = callees
        self._callback: Any = None

    @property
    def address(self) -> int:
        """The address of the compiled function; compiles it, or loads it from the cache, at the first use."""
        if self._callback is None:
            with _compiling:
                if self._callback is None:
                    self._callback = self._compile()
        return int(self._callback.address)

    def prepare(self, dtype: str) -> int:
        """Compile or load the function, of which there is but one form."""
        return 1 if self.address else 0

    @property
    def cache_hits(self) -> int:
        """1 if this process loaded the function from the disk cache, else 0."""
        return 0 if self._callback is None else int(self._callback.cache_hits)

    def _compile(self) -> Any:
        for callee in self._callees:
            callee.link()
        signature = ((types.int64,) * self._python_function.__code__.co_argcount, types.void)
        callback = CFunc(self._python_function, signature, {}, dict(_OPTIONS), WorkerCompiler)
        if self.cache is not None:
            callback._cache = self.cache
        with _without_collector():
            callback.compile()
        return callback

    def link(self) -> None:
        """Let compiled code call the function by its name: LLVM looks that up when it makes or loads the caller."""
        llvm.add_symbol(symbol_of(self._python_function.__name__), self.address)


worker = Worker


def symbol_of(name: str) -> str:
    """Return the name by which compiled code calls a worker."""
    return f"nblstm_{name}"


def worker_calling(*callees: Worker) -> Callable[[Callable[..., Any]], Worker]:
    """Compile a worker that calls others by their names (`nblstm.kernels.atomics.caller_of`)."""
    return lambda python_function: Worker(python_function, callees)
