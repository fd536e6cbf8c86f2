"""The packed matrix product against plain NumPy, and its order of summation against itself."""

import os
import platform
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nblstm.engine.packing import pack_panels
from nblstm.kernels import policy
from nblstm.kernels.compilers import WorkerCompiler
from nblstm.kernels.matmul import (
    Panels,
    Rows,
    multiply_add,
    panel_width,
    product_float32,
    product_float64,
    share_of_next,
)
from nblstm.kernels.tile import PANEL_VECTORS, ROWS, multiply_tile

for shared in (product_float32, product_float64):
    shared.link()


@policy.open_entry
def product(rows, terms, a, a_row, weights, bias, panels, first_panel, vectors, backwards, out):
    width = panel_width(out)
    rows_of_a, addend, into = Rows(a, 0, a_row), Panels(bias, 0, width, 0), Panels(out, 0, out.size // panels, width)
    multiply_add(rows, terms, rows_of_a, weights, first_panel, panels, addend, into, backwards, vectors)


def multiply(a, w, bias, first_panel=0, vectors=1 << 62, backwards=False):
    """Return a @ w.T + bias by panels, (rows, outputs), and the panels before `first_panel` untouched (NaN)."""
    width = PANEL_VECTORS * policy.lanes(a.itemsize)
    panels = -(-w.shape[0] // width)
    out = np.full((panels, len(a), width), np.nan, a.dtype)
    padded_bias = np.zeros(panels * width, a.dtype)
    padded_bias[: bias.size] = bias
    flat = out.reshape(-1)
    operands = a.reshape(-1), a.shape[1], pack_panels(w), padded_bias
    product(len(a), a.shape[1], *operands, panels, first_panel, vectors, backwards, flat)
    return out.swapaxes(0, 1).reshape(len(a), panels * width)[:, : w.shape[0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [*range(2 * ROWS + 2), 32, 61])
def test_product(dtype, rows):
    random = np.random.default_rng(rows)
    for outputs, terms in [(1, 1), (7, 0), (64, 3), (65, 17), (150, 40), (9, 129), (30, 300)]:
        a, w = random.standard_normal((rows, terms)).astype(dtype), random.standard_normal((outputs, terms))
        bias = random.standard_normal(outputs).astype(dtype)
        exact = a.astype(np.longdouble) @ w.astype(dtype).T.astype(np.longdouble) + bias
        error = np.max(np.abs(multiply(a, w.astype(dtype), bias) - exact), initial=0)
        assert error <= (100 + terms) * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("terms", [53, 300])
def test_a_row_alone_has_the_bits_it_has_among_others(dtype, terms):
    random = np.random.default_rng(0)
    a = random.standard_normal((37, terms)).astype(dtype)
    w, bias = random.standard_normal((200, terms)).astype(dtype), random.standard_normal(200).astype(dtype)
    together = multiply(a, w, bias)
    for count in range(1, 14):
        assert np.array_equal(multiply(a[:count], w, bias), together[:count])


def test_panels_that_were_not_asked_for_are_not_touched():
    a, w = np.ones((5, 4), np.float32), np.ones((300, 4), np.float32)
    got = multiply(a, w, np.zeros(300, np.float32), first_panel=1)
    width = PANEL_VECTORS * policy.lanes(4)
    assert np.all(np.isnan(got[:, :width])) and np.all(got[:, width:] == 4)


@pytest.mark.parametrize("rows", range(1, 2 * ROWS + 1))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("terms", [70, 300])
@pytest.mark.parametrize("backwards", [False, True])
def test_vectors_beyond_the_last_may_be_left_out(dtype, terms, backwards, rows):
    random = np.random.default_rng(rows)
    lanes = policy.lanes(np.dtype(dtype).itemsize)
    for count in range(1, 5 * PANEL_VECTORS + 1):
        outputs, whole = count * lanes, -(-count // PANEL_VECTORS) * PANEL_VECTORS * lanes
        a, w = random.standard_normal((rows, terms)).astype(dtype), random.standard_normal((whole, terms)).astype(dtype)
        got, expected = multiply(a, w, w[:, 0], vectors=count, backwards=backwards), multiply(a, w, w[:, 0])
        assert np.array_equal(got[:, :outputs], expected[:, :outputs])
        left_out = whole // lanes - count >= PANEL_VECTORS // 2 > 1
        assert np.isnan(got[:, whole - PANEL_VECTORS // 2 * lanes :]).all() == left_out


def test_a_chain_begins_at_zero_not_at_what_it_is_added_to():
    # Each 1 alone is lost beside 2^25, whose neighbours are 4 apart; their sum is not.
    a, w = np.ones((1, 8), np.float32), np.ones((1, 8), np.float32)
    assert multiply(a, w, np.array([2.0**25], np.float32))[0, 0] == np.float32(2.0**25 + 8)


def test_a_long_sum_is_made_of_chains_that_begin_at_zero():
    # The ones of the first chain are lost beside 2^25, those of the others are not.
    a, w = np.ones((1, 256), np.float32), np.ones((1, 256), np.float32)
    a[0, 0] = 2.0**25
    assert multiply(a, w, np.zeros(1, np.float32))[0, 0] == np.float32(2.0**25 + 3 * 64)


@given(st.integers(2, 300), st.integers(0, 500), st.integers(0, 500), st.sampled_from([32, 64, 256]))
def test_all_tiles_together_ask_for_what_comes_next(tiles, terms, next_terms, term_bytes):
    step = share_of_next.py_func(tiles, terms, next_terms, term_bytes)
    if terms > 0:
        wanted = next_terms * term_bytes
        assert wanted <= tiles * terms * step < wanted + tiles * terms


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="of x86-64")
@pytest.mark.parametrize(
    ("cpu", "features", "expected"),
    [
        ("znver4", "+avx512f,+fma,+avx2", "NEVER NEVER"),
        ("sapphirerapids", "+avx512f,+fma,+avx2", "2 2"),
        ("znver3", "+fma,+avx2", "3 NEVER"),
        ("haswell", "+fma,+avx2", "3 NEVER"),
    ],
)
def test_tiles_ask_for_lines_as_their_cpu_fetches(cpu, features, expected):
    script = """
from nblstm.kernels import matmul, tile
print(*("NEVER" if number == tile.NEVER else number for number in (tile.TILES_TO_SHARE, matmul._TILES_TO_STAY)))
"""
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected.split()


@pytest.mark.skipif(not policy.HAS_FMA, reason="this CPU has no fused multiply-add")
def test_every_term_is_fused():
    # (1 + e)^2 - 1 keeps its e^2 only if product and sum are rounded together.
    e = np.float32(2.0**-12)
    a, w = np.array([[1, 1 + e]], np.float32), np.array([[-1, 1 + e]], np.float32)
    assert multiply(a, w, np.zeros(1, np.float32))[0, 0] == np.float32(2 * e + e * e)


@pytest.mark.skipif(not policy.HAS_FMA or policy.VECTOR_BYTES == 16, reason="of AVX2 and AVX-512")
@pytest.mark.parametrize("dtype", [numba.float32, numba.float64])
def test_no_loop_of_a_tile_keeps_a_sum_in_memory(dtype):
    # LLVM spills where the order of loads leaves it no way through the registers: a seventh of the speed of 4 rows.
    @numba.njit((dtype, *[numba.int64] * 7), error_model="numpy", pipeline_class=WorkerCompiler)
    def tiles(like, rows, panels, terms, a, b, ahead, d):
        multiply_tile(like, rows, panels, terms, 128, a, terms, b, 1000, ahead, 64, d, 1000, 100, d, 1000, 100)

    (assembly,) = tiles.inspect_asm().values()
    blocks = re.split(r"^(?=\.LBB)", assembly, flags=re.MULTILINE)
    loops = [block for block in blocks if "vfmadd" in block and f"jl\t{block.partition(':')[0]}" in block]
    assert len(loops) >= ROWS
    for loop in loops:
        assert not re.search(r"mm\d+, -?\d*\(%rsp", loop), loop
