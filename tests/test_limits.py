"""The machine's limits: the products that are repeated are right, and every thread does its share of them."""

from __future__ import annotations

import numpy as np
import pytest

from nblstm.commands.benchmark.cases import Case
from nblstm.commands.benchmark.limits import Limits, product_of
from nblstm.engine.packing import pack_panels
from nblstm.kernels.policy import lanes
from nblstm.kernels.tile import PANEL_VECTORS, ROWS


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_products(dtype, rows, slices):
    random = np.random.default_rng(rows)
    width, terms = PANEL_VECTORS * lanes(np.dtype(dtype).itemsize), 5
    product = product_of(rows, terms, 3 * width * slices, dtype, slices)
    a, weights, sums = product.memory
    rows_of = random.standard_normal((slices, rows, terms)).astype(dtype)
    outputs_of = random.standard_normal((slices, 3 * width, terms)).astype(dtype)
    a[:] = rows_of.reshape(-1)
    weights[:] = np.concatenate([pack_panels(outputs) for outputs in outputs_of])
    sums.fill(0)
    product.seconds(7, slices)
    expected = 7 * rows_of @ outputs_of.swapaxes(1, 2)
    got = sums.reshape(slices, 3, rows, width).swapaxes(1, 2).reshape(slices, rows, -1)
    assert np.allclose(got, expected, rtol=0, atol=1e3 * np.finfo(dtype).eps)


def test_what_is_counted():
    width = PANEL_VECTORS * lanes(4)
    product = product_of(ROWS, 10, 4 * width, np.float32, 2)
    assert product.flops == 2 * ROWS * 10 * 4 * width
    assert product.weight_bytes == 4 * 10 * 4 * width


def test_a_slice_has_at_least_a_panel():
    assert product_of(1, 4, 1, np.float32, 2).weight_bytes == 2 * 4 * 4 * PANEL_VECTORS * lanes(4)


@pytest.mark.parametrize("case", [Case(9, 1, 8, 40), Case(9, 3, 8, 40, projection=9, dtype="float64")])
def test_limits_of_a_case(case):
    figures = Limits(1).prepare(case)(0.0)
    assert set(figures) == {"fma", "stream"} and min(figures.values()) > 0


def test_ladder():
    rungs = Limits(1).ladder([1 << 14, 1 << 18], budget=0.0)
    assert [rung["bytes"] for rung in rungs] == [1 << 14, 1 << 18]
    assert all(rung["rate"] > 0 for rung in rungs)
