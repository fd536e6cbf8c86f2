"""Logistic sigmoid and hyperbolic tangent of vectors, accurate to about two units in the last place.

Both rest on exp(x) - 1 for x <= 0, by the classical reduction (W. J. Cody and W. Waite, Software Manual for the
Elementary Functions, 1980): with n = round(x / ln 2) and r = x - n ln 2, |r| <= ln(2) / 2,

    exp(x) = 2^n (1 + m),        m = exp(r) - 1 = r + r^2 q(r)

and q a polynomial. One multiply-add rounds: the sum of x / ln 2 and a large number has no digits after the point, and
n, as an exponent, in its low bits. Of five activations a unit and step every instruction counts (docs/performance.md).
So with AVX-512 tanh of float32 rests on a table instead (nblstm.kernels.tanh_table).

Largest errors in ulp, over every float32 and over 10 million float64, on a CPU with fused multiply-add
(tests/test_activations.py holds them on a sample):

    sigmoid  float32 1.65  float64 1.65        tanh  float32 1.95, by the table 1.00  float64 2.17

NaN gives NaN, the ends are exact (0 and 1, -1 and 1), tanh(-0.0) is -0.0. Where sigmoid is below the normal numbers, at
x < -87.3 (float64: -708.4), it falls to 0 at once and not digit by digit.
"""

from __future__ import annotations

from nblstm.kernels.policy import function
from nblstm.kernels.simd import (
    fma,
    is_single,
    larger,
    magnitude,
    power_of_two,
    rounding_shift,
    smaller,
    where_signed,
    with_sign_of,
)
from nblstm.kernels.tanh_table import CENTRE, SATURATION, START, has_table, pick

_SHIFT_SINGLE, _SHIFT_DOUBLE = rounding_shift(32), rounding_shift(64)
_LOG2_E, _LN2 = 1.4426950408889634, 0.6931471805599453
# ln 2 in two parts, the first so short that its product with n is exact.
_LN2_HIGH_SINGLE, _LN2_LOW_SINGLE = 0.693359375, -2.1219444005469058e-4
_LN2_HIGH_DOUBLE, _LN2_LOW_DOUBLE = 6.93147180369123816490e-01, 1.90821492927058770002e-10

# q for float32: least maximum relative error of m, 1.6e-8, with these coefficients rounded to float32.
_Q0, _Q1, _Q2, _Q3, _Q4 = 0.5, 0.166665435, 0.0416662805, 0.00836658385, 0.00139464508
# q for float64: the Taylor series 1/2! + r/3! + ... to r^11/13!, whose first term left out is 4e-18 of m.
_T2, _T3, _T4, _T5, _T6, _T7 = 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040
_T8, _T9, _T10, _T11, _T12 = 1 / 40320, 1 / 362880, 1 / 3628800, 1 / 39916800, 1 / 479001600
_T13 = 1 / 6227020800


# The same for (exp(2 r) - 1) / 2 = r + r^2 q(r): each coefficient times a power of two, which rounds nothing.
_D0, _D1, _D2, _D3, _D4 = 2 * _Q0, 4 * _Q1, 8 * _Q2, 16 * _Q3, 32 * _Q4
_U2, _U3, _U4, _U5, _U6, _U7 = 2 * _T2, 4 * _T3, 8 * _T4, 16 * _T5, 32 * _T6, 64 * _T7
_U8, _U9, _U10, _U11, _U12 = 2**7 * _T8, 2**8 * _T9, 2**9 * _T10, 2**10 * _T11, 2**11 * _T12
_U13 = 2**12 * _T13


@function
def exp_of_negative(x):
    """Return exp(x) for x <= 0; 0 where that is no normal number."""
    # The lowest exponent but one, that of 0. `larger` gives its second argument where either is NaN.
    if is_single(x):
        y = larger(-88.0, x)
        shifted = fma(y, _LOG2_E, _SHIFT_SINGLE)
        n = shifted - _SHIFT_SINGLE
        r = fma(n, -_LN2_LOW_SINGLE, fma(n, -_LN2_HIGH_SINGLE, y))
        q = fma(r, fma(r, fma(r, fma(r, _Q4, _Q3), _Q2), _Q1), _Q0)
    else:
        y = larger(-709.0, x)
        shifted = fma(y, _LOG2_E, _SHIFT_DOUBLE)
        n = shifted - _SHIFT_DOUBLE
        r = fma(n, -_LN2_LOW_DOUBLE, fma(n, -_LN2_HIGH_DOUBLE, y))
        q = fma(r, fma(r, fma(r, fma(r, fma(r, _T13, _T12), _T11), _T10), _T9), _T8)
        q = fma(r, fma(r, fma(r, fma(r, fma(r, fma(r, q, _T7), _T6), _T5), _T4), _T3), _T2)
    scale = power_of_two(shifted)
    return fma(scale, fma(r * r, q, r), scale)


@function
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), as exp(x) / (1 + exp(x)) where x < 0, so that small results keep all their digits."""
    e = exp_of_negative(-magnitude(x))
    # With q = e / (1 + e) the result is e - e q or 1 - q, in which the errors of q count half at most: 2.4 ulp without.
    whole = where_signed(x, e, 1.0)
    return fma(-whole, e / (1.0 + e), whole)


@function
def _tanh_by_table(y):
    """Return tanh(y) for y from 0 to `SATURATION`, and NaN for NaN."""
    z = y + START
    d = y - pick(CENTRE, z)
    p = fma(d, fma(d, pick(5, z), pick(4, z)), pick(3, z))
    return fma(d, fma(d, fma(d, p, pick(2, z)), pick(1, z)), pick(0, z))


@function
def tanh(x):
    """Return tanh(|x|) with the sign of x: by polynomials where a table can be picked from, else by a formula.

    With e = exp(-2|x|) it is u / (1 - u) = u + u u / (1 - u) for u = (1 - e) / 2, and 1 - e / (1 - u): the first keeps
    the digits of small results, the second the distance of large ones from 1, to which 1 - tanh^2 is as sensitive. In
    either form the errors of the quotient count half at most (2.5 ulp without). ln 2 in one part does: where n is
    large, e is small.
    """
    if has_table(x):
        return with_sign_of(_tanh_by_table(smaller(SATURATION, magnitude(x))), x)
    # From |x| = 22 on the result is 1 in both dtypes.
    y = larger(-22.0, -magnitude(x))
    if is_single(x):
        shifted = fma(y, 2.0 * _LOG2_E, _SHIFT_SINGLE)
        r = fma(shifted - _SHIFT_SINGLE, -0.5 * _LN2, y)
        q = fma(r, fma(r, fma(r, fma(r, _D4, _D3), _D2), _D1), _D0)
    else:
        shifted = fma(y, 2.0 * _LOG2_E, _SHIFT_DOUBLE)
        r = fma(shifted - _SHIFT_DOUBLE, -0.5 * _LN2, y)
        q = fma(r, fma(r, fma(r, fma(r, fma(r, _U13, _U12), _U11), _U10), _U9), _U8)
        q = fma(r, fma(r, fma(r, fma(r, fma(r, fma(r, q, _U7), _U6), _U5), _U4), _U3), _U2)
    scale, m = power_of_two(shifted), fma(r * r, q, r)
    u = fma(-scale, m, fma(-0.5, scale, 0.5))
    whole = where_signed(y + 1.0, 1.0, u)
    part = where_signed(y + 1.0, fma(-scale, m + m, -scale), u)
    return with_sign_of(fma(whole, part / (1.0 - u), whole), x)
