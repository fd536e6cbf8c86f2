"""What threads need to work together: atomic words, a polite wait, sleep, and calls by address or name."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from nblstm.kernels.memory import I64
from nblstm.kernels.policy import function, symbol_of

# Compiled code finds these functions by name, so that code from the disk cache finds them in a later process too.
_YIELD, _ACQUIRE, _RELEASE = "nblstm_yield_to_system", "nblstm_acquire_lock", "nblstm_release_lock"
_system = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
_yield_to_system = _system.SwitchToThread if sys.platform == "win32" else _system.sched_yield
# Python's own locks, the same on every system: acquired by one thread, released by another, without the GIL.
_python = ctypes.pythonapi
_python.PyThread_allocate_lock.restype = ctypes.c_void_p
_python.PyThread_release_lock.argtypes = [ctypes.c_void_p]
_python.PyThread_acquire_lock.argtypes = [ctypes.c_void_p, ctypes.c_int]
_symbols = {_YIELD: _yield_to_system, _ACQUIRE: _python.PyThread_acquire_lock, _RELEASE: _python.PyThread_release_lock}
for _name, _address in _symbols.items():
    llvm.add_symbol(_name, ctypes.cast(_address, ctypes.c_void_p).value)

_ROUNDS_BEFORE_YIELD = 2000


def _word(builder: ir.IRBuilder, words: ir.Value, index: ir.Value) -> ir.Value:
    return builder.gep(builder.inttoptr(words, I64.as_pointer()), [index])


@intrinsic
def atomic_load(typing_context: Any, words: Any, index: Any) -> Any:
    """The int64 ``words[index]`` of an address; what its writer wrote before it is seen from here on."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.load_atomic(_word(builder, *args), "seq_cst", 8)

    i64 = types.int64
    return i64(i64, i64), codegen


@intrinsic
def atomic_store(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    """Set ``words[index]``; whoever loads the value sees all that was written before (release)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.store_atomic(args[2], _word(builder, *args[:2]), "release", 8)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64), codegen


@intrinsic
def compare_and_swap(typing_context: Any, words: Any, index: Any, expected: Any, replacement: Any) -> Any:
    """Set ``words[index]`` to `replacement` if it is `expected`; return whether it was.

    Loads and swaps of all threads have one order (sequentially consistent).
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pair = builder.cmpxchg(_word(builder, *args[:2]), args[2], args[3], "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(pair, 1), context.get_value_type(types.boolean))

    i64 = types.int64
    return types.boolean(i64, i64, i64, i64), codegen


def _call_extern(builder: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    function_type = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), values)


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tell the core that this is a waiting loop, where the CPU has an instruction for that."""
    machine = cpu_target.target_context.codegen().magic_tuple()[0].split("-")[0]

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if machine in ("x86_64", "i686"):
            _call_extern(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif machine in ("aarch64", "arm64"):
            # A barrier for instructions takes some ten ns; `yield`, which is meant for this, takes none on most cores.
            _call_extern(builder, "llvm.aarch64.isb", ir.VoidType(), ir.Constant(ir.IntType(32), 15))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _yield(typing_context: Any) -> Any:
    """Let the system run another thread on this core."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _call_extern(builder, _YIELD, ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), codegen


def new_lock() -> int:
    """Return the address of a lock, locked, which lives as long as the process."""
    lock = _python.PyThread_allocate_lock()
    if not lock:
        raise MemoryError("nblstm: no lock can be made")
    _python.PyThread_acquire_lock(lock, 1)
    return int(lock)


def release_lock(lock: int) -> None:
    """Wake the thread that is asleep at the lock, or the next one to come."""
    _python.PyThread_release_lock(lock)


@intrinsic
def sleep_at(typing_context: Any, lock: Any) -> Any:
    """Sleep until another thread wakes this one at the lock of this address."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        address = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        _call_extern(builder, _ACQUIRE, ir.IntType(32), address, ir.Constant(ir.IntType(32), 1))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def wake_at(typing_context: Any, lock: Any) -> Any:
    """Wake the thread that sleeps at the lock of this address, or is about to."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _call_extern(builder, _RELEASE, ir.VoidType(), builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def call_at(typing_context: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Call the C function ``void (int64, int64, int64)`` at `address`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        function_type = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64), codegen


def caller_of(name: str) -> Any:
    """Return the function of compiled code that calls the worker of this name for the dtype of `like`.

    What uses it has to be compiled by `worker_calling` of that worker (tests/test_project.py).
    """

    @intrinsic
    def call(typing_context: Any, like: Any, numbers: Any) -> Any:
        """Call the worker with a tuple of int64."""
        symbol = symbol_of(f"{name}_{getattr(like, 'dtype', like)}")

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            _call_extern(builder, symbol, ir.VoidType(), *cgutils.unpack_tuple(builder, args[1]))
            return context.get_dummy_value()

        return types.void(like, types.UniTuple(types.int64, len(numbers))), codegen

    return call


@function
def wait_until_beyond(words, index, value):
    """Return when ``words[index] > value``: first at full attention, then leaving the core to others."""
    rounds = 0
    while atomic_load(words, index) <= value:
        if rounds < _ROUNDS_BEFORE_YIELD:
            rounds += 1
            pause()
        else:
            _yield()
