"""tanh of x >= 0 by 32 polynomials, of which each lane of a vector takes the one for its interval.

One instruction of AVX-512 picks 16 numbers out of 32, each lane its own. So a polynomial can be short:

    tanh(x) = c_0 + d c_1 + d^2 c_2 + ... + d^5 c_5,        d = x - centre

with these six coefficients and the centre picked by the exponent and the first three binary digits of x + `START`:
intervals are narrow where tanh bends, 1/16 up to 0.375, and wide where it does not, 1 from 7.4 on. No division is
left, and an error of 1.00 ulp at most, where the formula of `nblstm.kernels.activations` has 1.95.

Each centre is a number near the middle whose tanh is all but a float32, so that c_0 is not rounded (S. Gal and
B. Bachelis, An accurate elementary mathematical library for the IEEE floating point standard, ACM TOMS 17(1), 1991).
The first one is 0: there c_0 is 0 and c_1 is 1, and tanh(x) is x where x is small.
"""

from __future__ import annotations

import functools
import itertools
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from nblstm.kernels.simd import holds_16_singles, llvm_vector

START = 0.625
SATURATION = 9.02  # from here on, tanh is 1 in float32
CENTRE = 6  # the row of the table after those of the powers 0 to 5
INTERVALS = 32
# Without so many bits of its end, a float32 ends with those that number its interval.
BITS_LEFT_OUT = 20

_CANDIDATES = 25  # for a centre
# Chebyshev's six points, the cosines of 15, 45, 75, ... degrees, by square roots, which every system rounds alike.
_POINTS = [sign * x for sign in (1, -1) for x in ((sqrt(6) + sqrt(2)) / 4, sqrt(0.5), (sqrt(6) - sqrt(2)) / 4)]


def _tanh(x: float) -> Decimal:
    e = (2 * Decimal(x)).exp()
    return (e - 1) / (e + 1)


def _missed(x: float) -> Decimal:
    """Return how far tanh(x) is from a float32."""
    exact = _tanh(x)
    return abs(exact - Decimal(float(np.float32(float(exact)))))


def _through(points: list[Decimal], values: list[Decimal], centre: Decimal) -> list[Decimal]:
    """Return the coefficients of the polynomial through some points, in powers of x - centre (Newton's form)."""
    slopes = list(values)
    for order in range(1, len(points)):
        for k in range(len(points) - 1, order - 1, -1):
            slopes[k] = (slopes[k] - slopes[k - 1]) / (points[k] - points[k - order])
    polynomial = [Decimal(0)] * len(points)
    for point, slope in zip(reversed(points), reversed(slopes), strict=True):
        # Times x - point, plus the slope.
        shifted = [Decimal(0), *polynomial[:-1]]
        polynomial = [up - (point - centre) * same for up, same in zip(shifted, polynomial, strict=True)]
        polynomial[0] += slope
    return polynomial


def _numbers_of(low: float, high: float) -> list[float]:
    """Return the six coefficients for an interval, and its centre."""
    middle, half = (low + high) / 2, (high - low) / 2
    near = [float(np.float32(middle + half * (n / (_CANDIDATES - 1) - 0.5))) for n in range(_CANDIDATES)]
    centre = 0.0 if low == 0 else min(near, key=_missed)
    points = [middle + half * x for x in _POINTS]  # at most twice the least error, which is 1e-9
    found = _through([Decimal(x) for x in points], [_tanh(x) for x in points], Decimal(centre))
    return [float(_tanh(centre)), *map(float, found[1:]), centre]


@functools.cache
def table() -> npt.NDArray[np.float32]:
    """Return the coefficients of each power and the centres, (7, 32), for intervals by their number modulo 32.

    Worked out in decimals of 28 digits, so that it is the same whatever NumPy's and the system's functions are.
    """
    first = int(np.float32(START).view(np.int32)) >> BITS_LEFT_OUT
    bits = np.arange(first, first + INTERVALS + 1, dtype=np.int32) << BITS_LEFT_OUT
    ends = [end - START for end in bits.view(np.float32).tolist()]
    # All of a context's fields: the others would be those of `decimal.DefaultContext`, which a program may set.
    own = Context(prec=28, rounding=ROUND_HALF_EVEN, Emin=-999, Emax=999, capitals=1, clamp=0, flags=[], traps=[])
    with localcontext(own):
        rows = [_numbers_of(low, high) for low, high in itertools.pairwise(ends)]
    return np.roll(np.array(rows, np.float32).T, first, axis=1)


@intrinsic
def has_table(typing_context: Any, x: Any) -> Any:
    """Whether `pick` is one instruction for vectors as x: a constant."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return context.get_constant(types.boolean, holds_16_singles(llvm_vector(x.dtype)))

    return types.boolean(x), codegen


@intrinsic(prefer_literal=True)
def pick(typing_context: Any, row: Any, z: Any) -> Any:
    """The numbers of this row for the intervals of z = x + `START`.

    Where `has_table` is false it is compiled all the same, for a branch that LLVM then drops.
    """

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        vector = llvm_vector(z.dtype)
        if not holds_16_singles(vector):
            return ir.Constant(vector, ir.Undefined)
        integers = ir.VectorType(ir.IntType(32), vector.count)
        place = builder.lshr(builder.bitcast(args[1], integers), ir.Constant(integers, [BITS_LEFT_OUT] * vector.count))
        numbers = table()[row.literal_value].tolist()
        low, high = ir.Constant(vector, numbers[: vector.count]), ir.Constant(vector, numbers[vector.count :])
        kind = ir.FunctionType(vector, [vector, integers, vector])
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.ps.512")
        return builder.call(permute, [low, place, high])

    return z(row, z), codegen
