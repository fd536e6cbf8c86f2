"""The error of sigmoid and tanh in units in the last place, against wider arithmetic."""

import decimal

import numpy as np
import pytest
from cases import assert_same_bits

from nblstm.kernels import activations, policy, tanh_table
from nblstm.kernels.simd import lanes_of, load, store

# The docstring of nblstm.kernels.activations states these. Without FMA each fused step rounds twice.
ULP = {"sigmoid": 1.7, "tanh": 2.2} if policy.HAS_FMA else {"sigmoid": 2.5, "tanh": 3.0}
# By the table, which AVX-512 can pick from.
ULP_OF_TABLE = 1.0
# Below, sigmoid is no normal number.
LOWEST = -87.33
# How many float32 bit patterns are left out between two that are tried; 1 tries all of them, in minutes.
STRIDE = 509


@policy.open_entry
def sigmoid_of(x, y):
    for i in range(0, x.size, lanes_of(x)):
        store(y, i, activations.sigmoid(load(x, i)))


@policy.open_entry
def tanh_of(x, y):
    for i in range(0, x.size, lanes_of(x)):
        store(y, i, activations.tanh(load(x, i)))


def exact_sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


FUNCTIONS = {"sigmoid": (sigmoid_of, exact_sigmoid), "tanh": (tanh_of, np.tanh)}


def evaluate(name, x):
    """Apply the compiled function to an array of any length."""
    padded = np.zeros(-(-x.size // 64) * 64, x.dtype)
    padded[: x.size] = x
    y = np.empty_like(padded)
    FUNCTIONS[name][0](padded, y)
    return y[: x.size]


def most_ulp(name, dtype):
    by_table = name == "tanh" and dtype == np.float32 and policy.lanes(4) == 16
    return ULP_OF_TABLE if by_table else ULP[name]


def error_in_ulp(name, x, wide):
    exact = FUNCTIONS[name][1](x.astype(wide))
    ulp = np.spacing(np.abs(exact).astype(x.dtype)).astype(wide)
    return np.max(np.abs(evaluate(name, x).astype(wide) - exact) / ulp)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_over_the_whole_range(name):
    bits = np.arange(0, 2**32, STRIDE, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x = x[~np.isnan(x)]
    if name == "sigmoid":
        x = x[(x > LOWEST) | (x < -110)]
    assert error_in_ulp(name, x, np.float64) <= most_ulp(name, np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_where_it_matters(name):
    x = np.linspace(-20, 20, 4_000_001, dtype=np.float32)
    assert error_in_ulp(name, x, np.float64) <= most_ulp(name, np.float32)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="no wider type than float64 here")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name):
    random = np.random.default_rng(0)
    x = random.uniform(-40, 40, 1_000_000) * 10.0 ** random.uniform(-9, 1.2, 1_000_000)
    assert error_in_ulp(name, x, np.longdouble) <= most_ulp(name, np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends(dtype):
    inf, nan, most = np.inf, np.nan, np.finfo(dtype).max
    x = np.array([-inf, -most, -1000, -0.0, 0.0, 1000, most, inf, nan], dtype)
    assert np.array_equal(evaluate("sigmoid", x), np.array([0, 0, 0, 0.5, 0.5, 1, 1, 1, nan], dtype), equal_nan=True)
    tanh = evaluate("tanh", x)
    assert np.array_equal(tanh, np.array([-1, -1, -1, -0.0, 0.0, 1, 1, 1, nan], dtype), equal_nan=True)
    assert np.signbit(tanh[3]) and not np.signbit(tanh[4])


def test_smallest_numbers():
    tiny = np.array([1e-45, -1e-45, 1e-40, -1e-40, 1e-30], np.float32)
    assert np.array_equal(evaluate("tanh", tiny), tiny)
    underflowing = evaluate("sigmoid", np.linspace(-87, -110, 10_001, dtype=np.float32))
    assert np.all(np.diff(underflowing) <= 0) and underflowing[0] > 0
    assert np.all(underflowing[underflowing < 5e-39] == 0) and underflowing[-1] == 0
    underflowing = evaluate("sigmoid", np.linspace(-708, -750, 10_001))
    assert np.all(np.diff(underflowing) <= 0) and underflowing[0] > 0
    assert np.all(underflowing[underflowing < 1e-308] == 0) and underflowing[-1] == 0


@pytest.mark.parametrize("low, high, most", [(1, 2, 1e-6), (3, 5, 1e-5), (5, 6, 1e-4), (6, 8, 1e-3)])
def test_tanh_is_not_biased_near_its_ends(low, high, most):
    """The gradient 1 - tanh^2 has the difference from 1 for all its digits."""
    x = np.linspace(low, high, 1_000_001, dtype=np.float32)
    exact = 1 - np.tanh(x.astype(np.float64)) ** 2
    found = 1 - evaluate("tanh", x).astype(np.float64) ** 2
    assert abs(np.mean(found / exact - 1)) < most


def place_of(x):
    """The number of the interval that the table has for x, as `pick` finds it."""
    return ((x + np.float32(tanh_table.START)).view(np.int32) >> tanh_table.BITS_LEFT_OUT) % tanh_table.INTERVALS


def test_table_of_tanh():
    """The polynomials alone, without the rounding of float32 arithmetic: also where the CPU cannot pick from them."""
    x = np.linspace(0, tanh_table.SATURATION, 1_000_001, dtype=np.float32)
    place = place_of(x)
    assert np.unique(place).size == tanh_table.INTERVALS
    picked = tanh_table.table().astype(np.float64)[:, place]
    d = x - picked[tanh_table.CENTRE]
    found = sum(picked[power] * d**power for power in range(tanh_table.CENTRE))
    exact = np.tanh(x.astype(np.float64))
    assert np.max(np.abs(found - exact) / np.spacing(exact.astype(np.float32))) < 0.15
    assert np.float32(found[-1]) == 1


def test_table_of_tanh_has_nothing_of_the_caller(monkeypatch):
    """Equal bits need equal tables, whatever decimals a program works with otherwise."""
    for signal in (decimal.FloatOperation, decimal.Inexact):
        monkeypatch.setitem(decimal.DefaultContext.traps, signal, True)
    monkeypatch.setattr(decimal.DefaultContext, "Emax", 3)
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert_same_bits(tanh_table.table.__wrapped__(), tanh_table.table())


def test_tanh_never_falls():
    """From each float32 to the next, at the borders of the table's intervals and at random places."""
    x = np.arange(0, tanh_table.SATURATION, 2.0**-16, dtype=np.float32)
    borders = x[1:][np.diff(place_of(x)) != 0]
    assert borders.size == tanh_table.INTERVALS - 1
    places = np.concatenate([borders, np.random.default_rng(0).uniform(2**-14, 20, 1000).astype(np.float32)])
    run = (places.view(np.int32)[:, None] + np.arange(-3000, 3000, dtype=np.int32)).view(np.float32)
    found = evaluate("tanh", run.ravel()).reshape(run.shape)
    assert np.all(np.diff(found, axis=1) >= 0)
    assert_same_bits(evaluate("tanh", -run.ravel()), -found.ravel())
