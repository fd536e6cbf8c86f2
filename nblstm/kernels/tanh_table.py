"""tanh of x >= 0 by 32 polynomials, of which each lane of a vector takes the one for its interval.

One instruction of AVX-512 picks 16 numbers out of 32, each lane its own. So a polynomial can be short:

    tanh(x) = c_0 + d c_1 + d^2 c_2 + ... + d^5 c_5,        d = x - centre

with these six coefficients and the centre picked by the exponent and the first three binary digits of x + `START`:
intervals are narrow where tanh bends, 1/16 up to 0.375, and wide where it does not, 1 from 7.4 on. No division is
left, and 0.98 ulp of error at most, 0.3 in the mean, where the formula of `nblstm.kernels.activations` has 1.9 and 0.5.

Each centre is a number near the middle whose tanh is all but a float32, so that c_0 is not rounded (S. Gal and
B. Bachelis, An accurate elementary mathematical library for the IEEE floating point standard, ACM TOMS 17(1), 1991).
"""

from __future__ import annotations

import functools
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

_INTERVALS = 32
_POWERS = np.arange(CENTRE)
# Shifted by so many bits, a float32 ends with the digits that number its interval.
_SHIFT = 20


@functools.cache
def table() -> npt.NDArray[np.float32]:
    """Return the coefficients of each power and the centres, (7, 32), for intervals by their number modulo 32."""
    first = int(np.float32(START).view(np.int32)) >> _SHIFT
    ends = (np.arange(first, first + _INTERVALS + 1, dtype=np.int32) << _SHIFT).view(np.float32) - np.float64(START)
    low, high = ends[:-1, None], ends[1:, None]
    # The first interval is the half of one whose middle is 0, its centre, so that tanh(x) is x where x is small.
    low[0] = -high[0]
    middle, half = (low + high) / 2, (high - low) / 2
    near = (middle + half * np.linspace(-0.5, 0.5, 4001)).astype(np.float32).astype(np.float64)
    missed = np.abs(np.tanh(near) - np.tanh(near).astype(np.float32))
    centre = np.take_along_axis(near, missed.argmin(axis=1)[:, None], axis=1)
    centre[0] = 0
    # Through the points of Chebyshev: within a few parts of the polynomial of least error, which is 2e-8 at most.
    points = middle + half * np.cos(np.pi * (_POWERS + 0.5) / _POWERS.size)
    matrices = ((points - centre) / half)[:, :, None] ** _POWERS
    coefficients = np.linalg.solve(matrices, np.tanh(points)[:, :, None])[:, :, 0] / half**_POWERS
    coefficients[:, :1] = np.tanh(centre)
    return np.roll(np.hstack([coefficients, centre]).T.astype(np.float32), first, axis=1)


@intrinsic
def has_table(typing_context: Any, x: Any) -> Any:
    """Whether `pick` is one instruction for vectors as x: a constant."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return context.get_constant(types.boolean, holds_16_singles(llvm_vector(x.dtype)))

    return types.boolean(x), codegen


@intrinsic(prefer_literal=True)
def pick(typing_context: Any, row: Any, z: Any) -> Any:
    """The numbers of this row for the intervals of z = x + `START`; zeros where `has_table` is false."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        vector = llvm_vector(z.dtype)
        if not holds_16_singles(vector):
            return ir.Constant(vector, None)
        integers = ir.VectorType(ir.IntType(32), vector.count)
        place = builder.lshr(builder.bitcast(args[1], integers), ir.Constant(integers, [_SHIFT] * vector.count))
        numbers = table()[row.literal_value].tolist()
        low, high = ir.Constant(vector, numbers[: vector.count]), ir.Constant(vector, numbers[vector.count :])
        kind = ir.FunctionType(vector, [vector, integers, vector])
        permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.ps.512")
        return builder.call(permute, [low, place, high])

    return z(row, z), codegen
