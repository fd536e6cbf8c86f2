"""Where compiled kernels are kept from process to process: Numba's disk cache, for all sources at once."""

from __future__ import annotations

import hashlib
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature

_PACKAGE = Path(__file__).resolve().parent.parent
# What ends up in compiled code, and what lays out the numbers that it reads from a user's pickle.
_SOURCES = (
    "kernels/*.py",
    "nopython.py",
    "engine/compiled.py",
    "engine/jobs.py",
    "engine/packing.py",
    "engine/workspace.py",
)


def _sources_digest() -> str:
    """Return a digest of these sources."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in _PACKAGE.glob(pattern)):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


DIGEST = _sources_digest()


def _with_digest(locator_class: type[Any]) -> type[Any]:
    """Return a cache locator whose stamp covers every kernel source, not only the file of the cached function.

    Numba stamps a cache entry with the function's own file: an edited helper in another file, or an upgrade of the
    package, would run stale code (tests/test_kernel_cache.py). Nothing but the sources counts, no time of a file:
    an image's layers round those.
    """

    class Locator(locator_class):  # type: ignore[misc]
        def get_source_stamp(self) -> str:
            return DIGEST

        def ensure_cache_path(self) -> None:
            try:
                super().ensure_cache_path()
            except OSError:  # what `warmup` filled may be read for all that
                if not _complete(self.get_cache_path()).exists():
                    raise

    return Locator


def _complete(folder: str) -> Path:
    """Return the file that says of a cache folder that this version's kernels are in it."""
    return Path(folder) / f"nblstm-{DIGEST[:16]}.complete"


def _digest_of(target_context: Any, content: bytes) -> bytes:
    """Return a digest of compiled code and the CPU that it is for."""
    return hashlib.sha256(repr(target_context.codegen().magic_tuple()).encode() + content).digest()


class _KernelCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    """With a digest of what is kept: of spoilt code, LLVM ends the process, or runs it."""

    _locator_classes = tuple(_with_digest(cls) for cls in CompileResultCacheImpl._locator_classes)

    def reduce(self, result: Any) -> tuple[bytes, bytes]:
        content = dumps(super().reduce(result))
        return _digest_of(result.target_context, content), content

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, content = payload
        if _digest_of(target_context, content) != digest:
            raise ValueError("the file is damaged, or of another CPU")
        return super().rebuild(target_context, pickle.loads(content))


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


class KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's disk cache, which neither a damaged file nor a full disk can stop."""

    _impl_class = _KernelCacheImpl

    @property
    def filename_base(self) -> str:
        """What the names of its files begin with."""
        return str(self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled form for a signature, or None."""
        try:
            result = super().load_overload(sig, target_context)
            # Two processes that fill an empty cache may give a file to one signature in the index, and the code of
            # another to that file.
            if result is None or result.signature.args == normalize_signature(sig)[0]:
                return result
            self._discard()
        except OSError as error:
            _warn_uncached(error)
        except Exception:
            # Bytes spoilt by a crash, a full disk or a bad one fail in many ways, and would at every start to come.
            self._discard()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled form."""
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


def cache_of(python_function: Callable[..., Any]) -> KernelCache | None:
    """Return the cache of a function, or None where no folder can be written."""
    try:
        return KernelCache(python_function)
    except RuntimeError as error:  # Numba's way to say: no folder to write to
        _warn_uncached(error)
        return None


def cache_folder() -> str | None:
    """Return the folder in which kernels of this package are kept, or None where none can be written."""
    cache = cache_of(cache_folder)
    return None if cache is None else str(cache.cache_path)


def mark_complete() -> None:
    """Let the cache be used also where it cannot be written, as in an image that another user runs."""
    if (folder := cache_folder()) is not None:
        _complete(folder).touch()
