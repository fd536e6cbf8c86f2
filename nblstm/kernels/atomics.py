"""What threads need to work together: atomic words, a polite wait, and calls by address."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from nblstm.kernels.policy import function
from nblstm.kernels.simd import I64

_YIELD = "nblstm_yield_to_system"
# Compiled code finds this function by name, so that code from the disk cache finds it in a later process too.
_system = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
_yield_to_system = _system.SwitchToThread if sys.platform == "win32" else _system.sched_yield
llvm.add_symbol(_YIELD, ctypes.cast(_yield_to_system, ctypes.c_void_p).value)

_ROUNDS_BEFORE_YIELD = 2000


def _word(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    return builder.gep(make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def atomic_load(typing_context: Any, words: Any, index: Any) -> Any:
    """The int64 ``words[index]``; what its writer wrote before it is seen from here on (acquire)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.load_atomic(_word(context, builder, sig.args[0], *args), "acquire", 8)

    return types.int64(words, types.int64), codegen


@intrinsic
def atomic_store(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    """Set ``words[index]``; whoever loads the value sees all that was written before (release)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.store_atomic(args[2], _word(context, builder, sig.args[0], *args[:2]), "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


@intrinsic
def compare_and_swap(typing_context: Any, words: Any, index: Any, expected: Any, replacement: Any) -> Any:
    """Set ``words[index]`` to `replacement` if it is `expected`; return whether it was."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _word(context, builder, sig.args[0], *args[:2])
        pair = builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire")
        return builder.zext(builder.extract_value(pair, 1), context.get_value_type(types.boolean))

    return types.boolean(words, types.int64, types.int64, types.int64), codegen


def _call_extern(builder: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    function_type = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), values)


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Tell the core that this is a waiting loop, where the CPU has an instruction for that."""
    machine = cpu_target.target_context.codegen().magic_tuple()[0].split("-")[0]

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if machine in ("x86_64", "i686"):
            _call_extern(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif machine in ("aarch64", "arm64"):
            _call_extern(builder, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(ir.IntType(32), 1))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _yield(typing_context: Any) -> Any:
    """Let the system run another thread on this core."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _call_extern(builder, _YIELD, ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_at(typing_context: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Call the C function ``void (int64, int64, int64)`` at `address`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        function_type = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64), codegen


@function
def wait_until_beyond(words, index, value):
    """Return when ``words[index] > value``: first at full attention, then leaving the core to others."""
    rounds = 0
    while atomic_load(words, index) <= value:
        if rounds < _ROUNDS_BEFORE_YIELD:
            rounds += 1
            _pause()
        else:
            _yield()
