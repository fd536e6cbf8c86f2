"""The one file that imports numba.cuda: devices, memory, streams and launches, on a GPU or in Numba's simulator.

Without numba-cuda `cuda` is None: everything still imports, and `check_device` says what is missing.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nblstm.arrays import Array
from nblstm.errors import message

# Numba's own numba.cuda, which numba-cuda takes the place of, is no longer kept up.
cuda: Any = None if importlib.util.find_spec("numba_cuda") is None else importlib.import_module("numba.cuda")

# A NumPy array that the simulator takes for memory of a device has no address on one.
SIMULATED = cuda is not None and "simulator" in cuda.jit.__module__

INSTALL = 'pip install "nblstm[cuda]"'
LIBRARIES = 'pip install "numba-cuda[cu13]"'

_MOST_CONFIGURED = 1024  # launches of a kernel that are kept, and need not be configured anew

DeviceArray = Any  # numba-cuda's, which has no types

_stream: contextvars.ContextVar[Any] = contextvars.ContextVar("nblstm_cuda_stream", default=0)


class Limits(NamedTuple):
    """What a plan has to know of a device."""

    processors: int
    shared_bytes: int  # that one block may have
    cooperative: bool  # a kernel may wait for all of its blocks


def check_device(argument: str, device: str) -> int:
    """Return the number of the device "cuda" or "cuda:N"; ValueError for another name, RuntimeError if there is none.

    >>> check_device("LSTM.to device", "tpu")
    Traceback (most recent call last):
    ValueError: LSTM.to device: expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got 'tpu'
    """
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(message(argument, "'cpu', 'cuda' or 'cuda:0', 'cuda:1', ...", repr(device)))
    if cuda is None:
        raise RuntimeError(message(argument, "numba-cuda", "a machine without it", hint=f"Install it: {INSTALL}"))
    count, problem = _count()
    if count == 0:
        hint = f"It needs an NVIDIA GPU with its driver, and the libraries of CUDA: {LIBRARIES} brings these"
        raise RuntimeError(message(argument, "a CUDA device", f"none ({problem})", hint=hint))
    index = int(number) if colon else 0
    if index >= count:
        raise RuntimeError(message(argument, f"a device below cuda:{count}", device, because=f"there are {count}"))
    return index


def _count() -> tuple[int, str]:
    """Return how many devices there are, and what is wrong if there are none."""
    try:
        if cuda.is_available():
            return len(cuda.gpus), ""
        cuda.current_context()  # raises what is wrong with the driver or the device
    except Exception as error:  # several kinds, from Numba's driver and from NVIDIA's bindings
        words = " ".join(str(error).split())
        return 0, words.removeprefix("Error at driver init: ").rstrip(": ") or type(error).__name__
    return 0, "CUDA's compiler library, NVVM, is missing"


@functools.cache
def limits(index: int) -> Limits:
    """Return the limits of a device; the simulator's are small, so that small layers meet them in tests."""
    if SIMULATED:
        return Limits(processors=3, shared_bytes=1 << 15, cooperative=True)
    device = cuda.gpus[index]
    return Limits(
        device.MULTIPROCESSOR_COUNT,
        device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        bool(device.COOPERATIVE_LAUNCH),
    )


@contextlib.contextmanager
def using_stream(stream: Any) -> Iterator[None]:
    """Let calls in this block run on `stream`: of Numba, CuPy or torch, or its address. Otherwise the default stream.

    It holds for the thread, or the task of asyncio, that entered the block.

    >>> with using_stream(0):  # CUDA's default stream
    ...     pass
    """
    if not _is_stream(stream):
        expected = "a stream of Numba, CuPy or torch, or its address"
        raise TypeError(message("nblstm.cuda.using_stream stream", expected, type(stream).__name__))
    token = _stream.set(stream)
    try:
        yield
    finally:
        _stream.reset(token)


def current_stream() -> Any:
    """Return the stream of this call as Numba takes it: a stream of Numba, or 0 for the default one."""
    return _as_stream(_stream.get())


def _is_stream(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    addresses = (getattr(value, name, None) for name in ("cuda_stream", "ptr"))
    of_numba = hasattr(value, "auto_synchronize")
    return of_numba or hasattr(value, "__cuda_stream__") or any(isinstance(address, int) for address in addresses)


def _as_stream(stream: Any) -> Any:
    if isinstance(stream, int):
        return cuda.external_stream(stream) if stream else 0
    for attribute in ("cuda_stream", "ptr"):  # of torch, of CuPy
        address = getattr(stream, attribute, None)
        if isinstance(address, int):
            return _as_stream(address)
    if hasattr(stream, "__cuda_stream__") and not hasattr(stream, "__int__"):  # Numba's has both
        return _as_stream(int(stream.__cuda_stream__()[1]))
    return stream


def order_after(other: Any, stream: Any) -> None:
    """Let what comes on `stream` wait for what is under way on another one, or on the one with that address."""
    if not SIMULATED and int(other) != int(stream):
        other = cuda.external_stream(other) if isinstance(other, int) and other else other
        event = cuda.event(timing=False)
        event.record(other)
        event.wait(stream)


def on_device(value: Any) -> bool:
    """Say whether `value` is an array in the memory of a device."""
    return hasattr(value, "__cuda_array_interface__") or bool(getattr(value, "__cuda_ndarray__", False))


def as_device_array(argument: str, value: Any, stream: Any) -> DeviceArray:
    """Return an array with ``__cuda_array_interface__`` as Numba's, without a copy; work on `stream` waits for it.

    An array that names no stream is taken for one of the default stream.
    """
    if getattr(value, "__cuda_ndarray__", False):
        order_after(value.stream, stream)
        return value
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise TypeError(message(argument, "an array without a mask", "one with a mask"))
    order_after(interface.get("stream") or 0, stream)
    return cuda.from_cuda_array_interface(interface, owner=value, sync=False)


def check_there(argument: str, array: DeviceArray, index: int) -> None:
    """Raise ValueError for an array in the memory of another device, where the driver can say that it is."""
    found = _device_of(array) if array.size else None
    if found is not None and found != index:
        raise ValueError(message(argument, f"an array on cuda:{index}", f"one on cuda:{found}"))


def _device_of(array: DeviceArray) -> int | None:
    """Return the number of the device that an array lies on; None if the driver does not say, or it lies on no one."""
    if SIMULATED:
        return None
    from cuda.bindings import driver

    attribute, address = driver.CUpointer_attribute, array.device_ctypes_pointer.value
    of_device = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    found = {}
    for name in ("MEMORY_TYPE", "IS_MANAGED", "DEVICE_ORDINAL"):
        asked = getattr(attribute, f"CU_POINTER_ATTRIBUTE_{name}")
        status, found[name] = driver.cuPointerGetAttribute(asked, address)
        if int(status):
            return None
    on_one = int(found["MEMORY_TYPE"]) == int(of_device) and not int(found["IS_MANAGED"])
    return int(found["DEVICE_ORDINAL"]) if on_one else None


def upload(array: Array, stream: Any) -> DeviceArray:
    """Return a contiguous copy of a host array in the memory of the device."""
    return cuda.to_device(np.ascontiguousarray(array), stream=stream)


def empty(shape: tuple[int, ...], dtype: Any, stream: Any) -> DeviceArray:
    """Return a new contiguous array whose elements are not set."""
    return cuda.device_array(shape, dtype, stream=stream)


def strided(array: DeviceArray, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> DeviceArray:
    """Return a view of the memory of `array`: `strides` and `offset` in bytes, which have to stay within it."""
    if SIMULATED:
        as_strided, skipped = np.lib.stride_tricks.as_strided, offset // array.dtype.itemsize
        start = as_strided(array._ary, (skipped + 1,), (array.dtype.itemsize,))[skipped:]
        return type(array)(as_strided(start, shape, strides))
    data = array.gpu_data.view(offset) if offset and array.size else array.gpu_data
    return type(array)(shape=shape, strides=strides, dtype=array.dtype, stream=array.stream, gpu_data=data)


def address_range(array: DeviceArray) -> tuple[int, int]:
    """Return the addresses of the first byte of `array` and of the one behind its last."""
    start = array._ary.ctypes.data if SIMULATED else int(array.device_ctypes_pointer.value or 0)
    reach = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    if array.size == 0:
        return start, start
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.dtype.itemsize


@contextlib.contextmanager
def selected(index: int) -> Iterator[None]:
    """Make a device the current one within the block; if none was, it stays the thread's."""
    current = cuda.gpus.current
    if current is not None and current.id != index:
        with cuda.gpus[index]:
            yield
        return
    if current is None:
        # numba-cuda frees the arrays of a call when they die, which is after it, in whatever context is current then.
        cuda.select_device(index)
    else:
        cuda.current_context()  # another library may have made it: Numba has to get it ready
    yield


def device_function(function: Any) -> Any:
    """Compile for calls from kernels and from one another; types are those of the call."""
    return cuda.jit(function, device=True)


class Kernel:
    """A kernel for one signature: compiled at its first launch, for each device anew."""

    def __init__(self, function: Any, signature: Any) -> None:
        self.function, self.signature = function, signature
        self._compiled: dict[int, Any] = {}
        self._configured: dict[Any, Any] = {}
        self._blocks: dict[Any, int] = {}

    def on(self, index: int) -> Any:
        """Return the kernel compiled for a device; it may have all the shared memory of a processor."""
        kernel = self._compiled.get(index)
        if kernel is None:
            kernel = cuda.jit(self.function) if SIMULATED else cuda.jit(self.signature)(self.function)
            if not SIMULATED:
                _allow_shared_memory(kernel, limits(index).shared_bytes)
            self._compiled[index] = kernel
        return kernel

    def most_cooperative_blocks(self, index: int, threads: int, shared_bytes: int) -> int:
        """Return how many blocks may wait for one another in a launch."""
        if SIMULATED:
            return 1
        key = index, threads, shared_bytes
        if key not in self._blocks:
            (overload,) = self.on(index).overloads.values()
            self._blocks[key] = int(overload.max_cooperative_grid_blocks(threads, shared_bytes))
        return self._blocks[key]

    def launch(self, index: int, grid: Any, block: Any, stream: Any, shared_bytes: int, *arguments: Any) -> None:
        """Start the kernel; it may be under way when this returns."""
        if SIMULATED:  # whose kernels are configured in place
            self.on(index)[grid, block, stream, shared_bytes](*arguments)
            return
        key = index, grid, block, int(stream), shared_bytes
        configured = self._configured.get(key)
        if configured is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # small grids: a step of a small network has no more work
                configured = self.on(index)[grid, block, stream, shared_bytes]
            if len(self._configured) >= _MOST_CONFIGURED:
                self._configured.clear()
            self._configured[key] = configured
        configured(*arguments)


def _allow_shared_memory(kernel: Any, size: int) -> None:
    """Let a kernel have more than the 48 KiB of shared memory that a launch may ask for without this."""
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (overload,) = kernel.overloads.values()
    function = overload._codelibrary.get_cufunc()
    (status,) = driver.cuKernelSetAttribute(
        attribute, size - function.attrs.shared, function.handle, function.device.id
    )
    if int(status):
        raise RuntimeError(f"cuKernelSetAttribute: {status}")


def synchronize(stream: Any) -> None:
    """Wait until all that was started on a stream is done."""
    if stream:
        stream.synchronize()
    elif cuda is not None:
        cuda.synchronize()
