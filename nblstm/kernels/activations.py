"""Logistic sigmoid, hyperbolic tangent and exp of vectors, accurate to about two units in the last place everywhere.

Both rest on exp(x) - 1 for x <= 0, by the classical reduction (W. J. Cody and W. Waite, Software Manual for the
Elementary Functions, 1980): with n = round(x / ln 2) and r = x - n ln 2, |r| <= ln(2) / 2,

    exp(x) = 2^n (1 + m),        m = exp(r) - 1 = r + r^2 q(r)

and q a polynomial. ln 2 is subtracted in two parts, the first so short that its product with n is exact.

Largest errors in ulp, over every float32 and over 10 million float64, on a CPU with fused multiply-add
(tests/test_activations.py holds them on a sample):

    sigmoid  float32 1.66  float64 1.63        tanh  float32 2.00  float64 2.13

NaN gives NaN, the ends are exact (0 and 1, -1 and 1), tanh(-0.0) is -0.0, and sigmoid underflows gradually.
"""

from __future__ import annotations

from nblstm.kernels.policy import function
from nblstm.kernels.simd import (
    fma,
    is_single,
    larger,
    magnitude,
    power_of_two,
    round_to_even,
    where_negative,
    with_sign_of,
)

_LOG2_E = 1.4426950408889634
_LN2_HIGH_SINGLE, _LN2_LOW_SINGLE = 0.693359375, -2.1219444005469058e-4
_LN2_HIGH_DOUBLE, _LN2_LOW_DOUBLE = 6.93147180369123816490e-01, 1.90821492927058770002e-10

# q for float32: least maximum relative error of m, 1.6e-8, with these coefficients rounded to float32.
_Q0, _Q1, _Q2, _Q3, _Q4 = 0.5, 0.166665435, 0.0416662805, 0.00836658385, 0.00139464508
# q for float64: the Taylor series 1/2! + r/3! + ... to r^11/13!, whose first term left out is 4e-18 of m.
_T2, _T3, _T4, _T5, _T6, _T7 = 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040
_T8, _T9, _T10, _T11, _T12 = 1 / 40320, 1 / 362880, 1 / 3628800, 1 / 39916800, 1 / 479001600
_T13 = 1 / 6227020800


@function
def _reduce(x):
    """Return (n, m) with exp(x) = 2^n (1 + m)."""
    n = round_to_even(x * _LOG2_E)
    if is_single(x):
        r = fma(n, -_LN2_LOW_SINGLE, fma(n, -_LN2_HIGH_SINGLE, x))
        q = fma(r, fma(r, fma(r, fma(r, _Q4, _Q3), _Q2), _Q1), _Q0)
    else:
        r = fma(n, -_LN2_LOW_DOUBLE, fma(n, -_LN2_HIGH_DOUBLE, x))
        q = fma(r, fma(r, fma(r, fma(r, _T13, _T12), _T11), _T10), _T9)
        q = fma(r, fma(r, fma(r, fma(r, fma(r, q, _T8), _T7), _T6), _T5), _T4)
        q = fma(r, fma(r, q, _T3), _T2)
    return n, fma(r * r, q, r)


@function
def exp_of_negative(x):
    """Return exp(x) for x <= 0, which underflows gradually; NaN for NaN."""
    if is_single(x):
        smallest = -104.0
    else:
        smallest = -746.0
    # `larger` gives its second argument where either is NaN.
    n, m = _reduce(larger(smallest, x))
    # 2^n itself may lie below the normal numbers: scale in two steps, of which the second rounds.
    scale = power_of_two(n + 64.0)
    return fma(scale, m, scale) * 2.0**-64


@function
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), as exp(x) / (1 + exp(x)) where x < 0, so that small results keep all their digits."""
    e = exp_of_negative(-magnitude(x))
    # With q = e / (1 + e) the result is e - e q or 1 - q, in which the errors of q count half at most: 2.4 ulp without.
    whole = where_negative(x, e, 1.0)
    return fma(-whole, e / (1.0 + e), whole)


@function
def tanh(x):
    """Return tanh(|x|) with the sign of x.

    u = (1 - exp(-2|x|)) / 2 gives tanh(|x|) = u / (1 - u) = u + u u / (1 - u): the second form halves the errors of the
    quotient (2.5 ulp without).
    """
    # From |x| = 22 on the result is 1 in both dtypes.
    n, m = _reduce(larger(-44.0, -2.0 * magnitude(x)))
    half_scale = power_of_two(n - 1.0)
    u = fma(-half_scale, m, 0.5 - half_scale)
    return with_sign_of(fma(u, u / (1.0 - u), u), x)
