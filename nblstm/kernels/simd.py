"""Vectors as values: a Numba type for one hardware vector, its arithmetic, its loads and stores.

A kernel written with it reads as the formula for one number and runs on a whole vector: ``1 / (1 + e)`` divides eight
numbers at once on AVX2. Three things follow that a loop left to LLVM's vectoriser does not give: no remainder loop that
could round otherwise, no check for overlap each time round, and the same instructions whatever surrounds it.

Float literals take the type of the vector they meet, so that float32 arithmetic stays float32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from nblstm.kernels.memory import I64, element_pointer
from nblstm.kernels.policy import HAS_FMA, lanes


class Vector(types.Type):  # type: ignore[misc]
    """The Numba type of one hardware vector of `dtype` (float32 or float64)."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = lanes(dtype.bitwidth // 8)
        super().__init__(name=f"Vector({dtype} x {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, vector: Vector) -> None:
        super().__init__(dmm, vector, llvm_vector(vector.dtype))


def llvm_element(dtype: types.Float) -> ir.Type:
    """Return LLVM's type of one element."""
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def llvm_vector(dtype: types.Float) -> ir.VectorType:
    """Return LLVM's type of one hardware vector."""
    return ir.VectorType(llvm_element(dtype), lanes(dtype.bitwidth // 8))


def holds_16_singles(vector: ir.VectorType) -> bool:
    """Whether it is AVX-512's vector of float32, whose lanes one instruction picks out of 32 numbers (vpermi2ps)."""
    return bool(vector.count == 16)


def llvm_fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Emit a * b + c, rounded once where the CPU can; elsewhere ``llvm.fma`` would be a slow library call."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(a, b), c)
    return llvm_call(builder, "llvm.fma", a, b, c)


def llvm_call(builder: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    """Emit a call of LLVM's intrinsic `name` for vectors or numbers of one type, which is that of its result too."""
    kind = values[0].type
    element, count = (kind.element, f"v{kind.count}") if isinstance(kind, ir.VectorType) else (kind, "")
    suffix = f"{count}f{32 if element == ir.FloatType() else 64}"
    function_type = ir.FunctionType(kind, [kind] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, f"{name}.{suffix}"), values)


def splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Emit a vector whose `count` elements are all `value`."""
    vector = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    """Emit the vector of these lanes of a and, counted on, b."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


@lower_cast(types.Float, Vector)
@lower_cast(types.Integer, Vector)
def _number_to_vector(context: Any, builder: ir.IRBuilder, source: Any, target: Vector, value: ir.Value) -> ir.Value:
    return splat(builder, context.cast(builder, value, source, target.dtype), target.lanes)


def _vector_among(arguments: tuple[Any, ...]) -> Vector | None:
    """Return the one vector type that `arguments`, vectors and numbers, have in common; None if there is none."""
    vectors = {a for a in arguments if isinstance(a, Vector)}
    others_are_numbers = all(isinstance(a, (Vector, types.Number)) for a in arguments)
    return vectors.pop() if len(vectors) == 1 and others_are_numbers else None


def _define_operator(symbol: Callable[..., Any], emit: Callable[..., ir.Value], arity: int) -> None:
    """Give `symbol` a meaning for vectors: `emit(builder, *values)`."""

    @infer_global(symbol)
    class _Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: tuple[Any, ...], kws: Any) -> Any:
            vector = _vector_among(args) if len(args) == arity and not kws else None
            return None if vector is None else signature(vector, *[vector] * arity)

    @lower_builtin(symbol, *[Vector] * arity)
    def _lowering(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(builder, *args)


_define_operator(operator.add, lambda builder, a, b: builder.fadd(a, b), 2)
_define_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b), 2)
_define_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b), 2)
_define_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b), 2)
_define_operator(operator.neg, lambda builder, a: builder.fneg(a), 1)


def _elementwise(arguments: tuple[Any, ...], emit: Callable[..., ir.Value]) -> Any:
    """Return what an ``@intrinsic`` of vectors gives: the signature (numbers are widened) and the code."""
    vector = _vector_among(arguments)
    if vector is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(builder, *args)

    return vector(*[vector] * len(arguments)), codegen


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding (two on a CPU without the instruction), of vectors, or of numbers of one type."""
    if isinstance(a, types.Float) and a == b == c:
        return a(a, b, c), lambda context, builder, sig, args: llvm_fma(builder, *args)
    return _elementwise((a, b, c), llvm_fma)


@intrinsic
def magnitude(typing_context: Any, x: Any) -> Any:
    """|x|."""
    return _elementwise((x,), lambda builder, x: llvm_call(builder, "llvm.fabs", x))


@intrinsic
def square_root(typing_context: Any, x: Any) -> Any:
    """The square root, correctly rounded; NaN below zero."""
    return _elementwise((x,), lambda builder, x: llvm_call(builder, "llvm.sqrt", x))


def _as_integers(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return builder.bitcast(x, ir.VectorType(ir.IntType(32 if x.type.element == ir.FloatType() else 64), x.type.count))


@intrinsic
def with_sign_of(typing_context: Any, x: Any, sign: Any) -> Any:
    """x, whose sign bit is not set, with the sign of `sign`."""

    def emit(builder: ir.IRBuilder, x: ir.Value, sign: ir.Value) -> ir.Value:
        bits = _as_integers(builder, sign)
        mask = ir.Constant(bits.type, [1 << bits.type.element.width - 1] * bits.type.count)
        return builder.bitcast(builder.or_(_as_integers(builder, x), builder.and_(bits, mask)), x.type)

    return _elementwise((x, sign), emit)


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of a and b; b where either is NaN."""
    return _elementwise((a, b), lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def smaller(typing_context: Any, a: Any, b: Any) -> Any:
    """The smaller of a and b; b where either is NaN."""
    return _elementwise((a, b), lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))


@intrinsic
def where_at_most_zero(typing_context: Any, x: Any, a: Any, b: Any) -> Any:
    """a where x <= 0, else b: so where x is NaN."""

    def emit(builder: ir.IRBuilder, x: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<=", x, ir.Constant(x.type, [0.0] * x.type.count)), a, b)

    return _elementwise((x, a, b), emit)


@intrinsic
def normal_or_zero(typing_context: Any, x: Any) -> Any:
    """x, or 0 where it is below the normal numbers in magnitude (float32: 1.2e-38); NaN for NaN."""

    def emit(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
        tiny = 2.0**-126 if x.type.element == ir.FloatType() else 2.0**-1022
        smallest, zero = (ir.Constant(x.type, [number] * x.type.count) for number in (tiny, 0.0))
        return builder.select(builder.fcmp_ordered("<", llvm_call(builder, "llvm.fabs", x), smallest), zero, x)

    return _elementwise((x,), emit)


@intrinsic
def squares(typing_context: Any, x: Any) -> Any:
    """x * x in float64, as one vector of float64: of float32, neighbouring halves of x are added."""
    if not isinstance(x, Vector):
        return None
    single, count = x.dtype == types.float32, x.lanes // 2

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if not single:
            return builder.fmul(args[0], args[0])
        wide = llvm_vector(types.float64)
        undefined = ir.Constant(args[0].type, ir.Undefined)
        masks = (ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(n, n + count))) for n in (0, count))
        low, high = (builder.fpext(builder.shuffle_vector(args[0], undefined, mask), wide) for mask in masks)
        return llvm_fma(builder, high, high, builder.fmul(low, low))

    return Vector(types.float64)(x), codegen


@intrinsic
def where_signed(typing_context: Any, x: Any, a: Any, b: Any) -> Any:
    """a where the sign bit of x is set, as it is of -0.0, else b: one instruction, where a comparison takes two."""

    def emit(builder: ir.IRBuilder, x: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        bits = _as_integers(builder, x)
        return builder.select(builder.icmp_signed("<", bits, ir.Constant(bits.type, [0] * bits.type.count)), a, b)

    return _elementwise((x, a, b), emit)


def rounding_shift(bits: int) -> float:
    """Return the number whose sum with x, of so many bits, is rounded to a whole number, as `power_of_two` wants it.

    Among the sums, the numbers are 1 apart; the low bits of a sum hold the exponent's bias plus x, rounded.
    """
    return 1.5 * 2.0**23 + 127 if bits == 32 else 1.5 * 2.0**52 + 1023


@intrinsic
def power_of_two(typing_context: Any, shifted: Any) -> Any:
    """2**n, where `shifted` is n + `rounding_shift`: from the lowest normal exponent up; 0 for the one below it."""

    def emit(builder: ir.IRBuilder, shifted: ir.Value) -> ir.Value:
        bits = _as_integers(builder, shifted)
        mantissa = 23 if bits.type.element.width == 32 else 52
        return builder.bitcast(builder.shl(bits, ir.Constant(bits.type, [mantissa] * bits.type.count)), shifted.type)

    return _elementwise((shifted,), emit)


@intrinsic
def load(typing_context: Any, numbers: Any, index: Any) -> Any:
    """The vector at ``numbers[index : index + lanes]``; no bounds check, any alignment."""
    vector = Vector(numbers.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = element_pointer(context, builder, sig.args[0], *args)
        pointer = builder.bitcast(pointer, llvm_vector(vector.dtype).as_pointer())
        return builder.load(pointer, align=vector.dtype.bitwidth // 8)

    return vector(numbers, types.int64), codegen


@intrinsic
def store(typing_context: Any, numbers: Any, index: Any, value: Any) -> Any:
    """Write the vector `value` to ``numbers[index : index + lanes]``; no bounds check."""
    vector = Vector(numbers.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = element_pointer(context, builder, sig.args[0], *args[:2])
        pointer = builder.bitcast(pointer, llvm_vector(vector.dtype).as_pointer())
        builder.store(args[2], pointer, align=vector.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(numbers, types.int64, vector), codegen


@intrinsic
def lower_half(typing_context: Any, x: Any) -> Any:
    """The lower half of x, and zeros above."""
    return _elementwise((x,), lambda builder, x: _lowered(builder, x, 0))


@intrinsic
def upper_half(typing_context: Any, x: Any) -> Any:
    """The upper half of x below, and zeros above."""
    return _elementwise((x,), lambda builder, x: _lowered(builder, x, x.type.count // 2))


def _lowered(builder: ir.IRBuilder, x: ir.Value, first: int) -> ir.Value:
    count = x.type.count
    zeros = ir.Constant(x.type, [0.0] * count)
    return shuffle(builder, x, zeros, [*range(first, first + count // 2), *range(count, count + count // 2)])


@intrinsic
def transpose(
    typing_context: Any, source: Any, start: Any, stride: Any, target: Any, target_start: Any, target_stride: Any
) -> Any:
    """Write the transpose of a square of as many rows as a vector has lanes; the two must not overlap.

    Row r lies at ``source[start + r * stride]``, row r of its transpose at
    ``target[target_start + r * target_stride]``.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        source, start, stride, target, target_start, target_stride = args
        vector = llvm_vector(sig.args[0].dtype)
        align, count = sig.args[0].dtype.bitwidth // 8, vector.count

        def row(array_type: Any, array: Any, start: Any, stride: Any, r: int) -> ir.Value:
            place = builder.add(start, builder.mul(stride, ir.Constant(I64, r)))
            return builder.bitcast(element_pointer(context, builder, array_type, array, place), vector.as_pointer())

        rows = [builder.load(row(sig.args[0], source, start, stride, r), align=align) for r in range(count)]
        half = count // 2
        while half:  # swap the off-diagonal quarters of all squares of twice the side
            for r in (r for r in range(count) if not r & half):
                upper, lower = rows[r], rows[r + half]
                first = [lane if not lane & half else count + lane - half for lane in range(count)]
                second = [lane + half if not lane & half else count + lane for lane in range(count)]
                rows[r], rows[r + half] = (shuffle(builder, upper, lower, lanes) for lanes in (first, second))
            half //= 2
        for r, value in enumerate(rows):
            builder.store(value, row(sig.args[3], target, target_start, target_stride, r), align=align)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, i64, target, i64, i64), codegen


@intrinsic
def lanes_of(typing_context: Any, like: Any) -> Any:
    """How many numbers of the type of `like` (a float, Numbers or an array) one vector holds: a constant."""
    dtype = getattr(like, "dtype", like)
    count = lanes(dtype.bitwidth // 8)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return ir.Constant(I64, count)

    return types.int64(like), codegen


@intrinsic
def is_single(typing_context: Any, like: Any) -> Any:
    """Whether `like` is of float32: a constant, so that the branch not taken leaves no trace."""
    single = like.dtype == types.float32

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return context.get_constant(types.boolean, single)

    return types.boolean(like), codegen
