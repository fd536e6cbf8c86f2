"""Memory as compiled code meets it: the address of some numbers of one type, as a value that knows the type.

Numba's arrays carry sizes, strides and an owner, which a kernel has no use for: what it works on, its job describes.
Instead of seven numbers, with a count of references, `Numbers` is one, which takes a twentieth off the first call of a
program, and ``numbers[-1]`` is what lies before. The functions here take contiguous 1-D arrays of a user's too.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from nblstm.kernels.policy import LINE

I64 = ir.IntType(64)


class Numbers(types.Type):  # type: ignore[misc]
    """The Numba type of an address at which numbers of `dtype` lie; ``numbers[i]`` as of an array, with no check."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Numbers({dtype})")


@register_model(Numbers)
class _NumbersModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, numbers: Numbers) -> None:
        super().__init__(dmm, numbers, dmm.lookup(numbers.dtype).get_data_type().as_pointer())


def _is_place(args: tuple[Any, ...]) -> bool:
    return isinstance(args[0], Numbers) and isinstance(args[1], types.Integer)


@infer_global(operator.getitem)
class _ReadTyping(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
        return signature(args[0].dtype, args[0], types.int64) if _is_place(args) else None


@infer_global(operator.setitem)
class _WriteTyping(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
        return signature(types.none, args[0], types.int64, args[0].dtype) if _is_place(args) else None


@lower_builtin(operator.getitem, Numbers, types.int64)
def _read(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.load(builder.gep(args[0], [args[1]]))


@lower_builtin(operator.setitem, Numbers, types.int64, types.Number)
def _write(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    builder.store(args[2], builder.gep(args[0], [args[1]]))
    return context.get_dummy_value()


def element_pointer(context: Any, builder: ir.IRBuilder, kind: Any, numbers: ir.Value, index: ir.Value) -> ir.Value:
    """Return the pointer to element `index` of Numbers or an array, whose type is `kind`."""
    if not isinstance(kind, Numbers):
        # Not by numba.np.arrayobj: to import that takes a fifth of a second, which is the first compilation's to pay.
        numbers = cgutils.create_struct_proxy(kind)(context, builder, value=numbers).data
    return builder.gep(numbers, [index])


def llvm_prefetch(builder: ir.IRBuilder, pointer: ir.Value, level: int) -> None:
    """Emit a request to bring the cache line at `pointer` into the cache of level 1 or 2; no address is wrong."""
    i32 = ir.IntType(32)
    address = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    function_type = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], function_type)
    read, locality, data = (ir.Constant(i32, number) for number in (0, 4 - level, 1))
    builder.call(prefetch, [address, read, locality, data])


@intrinsic
def numbers_at(typing_context: Any, address: Any, like: Any) -> Any:
    """The numbers at `address`, of the type of `like`: a number, Numbers or an array."""
    numbers = Numbers(getattr(like, "dtype", like))

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(numbers))

    return numbers(types.int64, like), codegen


@intrinsic
def address_at(typing_context: Any, numbers: Any, index: Any) -> Any:
    """The address of ``numbers[index]``."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.ptrtoint(element_pointer(context, builder, sig.args[0], *args), I64)

    return types.int64(numbers, types.int64), codegen


@intrinsic
def itemsize_of(typing_context: Any, like: Any) -> Any:
    """How many bytes a number of the type of `like` has (as for `numbers_at`): a constant."""
    dtype = getattr(like, "dtype", like)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return ir.Constant(I64, dtype.bitwidth // 8)

    return types.int64(like), codegen


@intrinsic
def fetch_ahead(typing_context: Any, numbers: Any, index: Any) -> Any:
    """Ask for the cache line of ``numbers[index]`` to be brought into the first-level cache; any index will do."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        llvm_prefetch(builder, element_pointer(context, builder, sig.args[0], *args), 1)
        return context.get_dummy_value()

    return types.void(numbers, types.int64), codegen


@intrinsic
def on_stack(typing_context: Any, size: Any) -> Any:
    """The address of `size` bytes, from the beginning of a cache line, that live until the calling function returns."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        memory = builder.alloca(ir.IntType(8), size=args[0])
        memory.align = LINE
        return builder.ptrtoint(memory, I64)

    return types.int64(types.int64), codegen
