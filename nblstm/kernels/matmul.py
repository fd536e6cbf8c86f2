"""The packed matrix product: rows of a matrix times panels of weights, by register tiles.

A weight matrix W of N outputs and K terms is stored as panels of ``width = PANEL_VECTORS * lanes`` outputs, each panel
contiguous in the order in which the tile reads it, and the product has the panels outermost too:

    weights[panel, k, j] = W[panel * width + j, k]            zeros beyond output N
    product[panel, row, j] = addend[panel, row, j] + sum over k of a[row, k] * W[panel * width + j, k]

The order of that sum depends on K alone (nblstm.kernels.tile).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nblstm.kernels.atomics import caller_of
from nblstm.kernels.memory import address_at, numbers_at
from nblstm.kernels.policy import IS_ZEN, LINE, VECTOR_BYTES, function, worker
from nblstm.kernels.simd import lanes_of
from nblstm.kernels.tile import (
    HAS_HALF_PANELS,
    NEVER,
    PANEL_VECTORS,
    PANELS_AT_ONCE,
    ROWS,
    TILES_TO_SHARE,
    multiply_tile,
)

# Terms of a chain at most. 1 % of a product's time goes into the additions between chains, 3 % with 32; with 128 errors
# are half as large again, and some layers' reach the limit of tests/test_parity.py (docs/performance.md, "Accuracy").
_CHAIN = 64
# Vectors of a whole line come from L2 at nearly the rate that it can give: from so many tiles on, all do two chains of
# a panel before any does the next two, and the 32 KB of weights that these take stay in L1: 3 to 5 % on a shared core,
# and where weights come from L3, a tenth for 2 tiles. Not on Zen 4, which has 32 KB of L1, and an L2 that gives more
# than a tile can take: 3 to 17 % slower (nor on Zen 5, which was not measured).
_TILES_TO_STAY = 2 if VECTOR_BYTES == LINE and not IS_ZEN else NEVER
_CHAINS_TO_STAY = 2
# Numba would compile a second `multiply_add` for a literal False.
FORWARDS = np.bool_(False)
_ALL = np.int64(1 << 62)
_ZERO, _ONE = np.int64(0), np.int64(1)


class Rows(NamedTuple):
    """Rows in a contiguous 1-D array: row r begins at element ``start + r * stride``."""

    array: Any
    start: int
    stride: int


class Panels(NamedTuple):
    """Panels in a contiguous 1-D array: row r of panel p begins at element ``start + p * stride + r * row_stride``.

    With a row stride of 0 all rows are the same: a bias.
    """

    array: Any
    start: int
    stride: int
    row_stride: int


@function
def panels_at(address, stride, like):
    """Return the Panels whose row 0 of panel 0 is at `address`, or would be; its rows follow one another."""
    return Panels(numbers_at(address, like), _ZERO, stride, panel_width(like))


@function
def rows_at(address, stride, like):
    """Return the Rows whose row 0 is at `address`."""
    return Rows(numbers_at(address, like), _ZERO, stride)


@function
def panel_width(like):
    """Return how many outputs one panel holds for the dtype of `like`."""
    return PANEL_VECTORS * lanes_of(like)


@function
def panel_vector(panels, vector, row):
    """Return where vector number `vector` of a row begins in the array."""
    panel, place = vector // PANEL_VECTORS, vector % PANEL_VECTORS
    return panels.start + panel * panels.stride + row * panels.row_stride + place * lanes_of(panels.array)


_call_product = caller_of("product")


@function
def multiply_add(rows, terms, a, weights, first_panel, last_panel, addend, product, backwards, vectors=_ALL):
    """Set `product` to `addend` plus the first `rows` rows of `a` times panels [first_panel, last_panel).

    a          in   Rows of `terms` elements
    weights    in   (panels, terms, width) contiguous, as 1-D
    addend     in   Panels; may be `product` itself
    product    out  Panels; overlaps neither a nor weights
    backwards  from the last panel to the first: the same bits, other panels in the cache at the end
    vectors    how many the panels have from panel 0 on: what the last one has beyond them may be left out
    """
    a_at, weights_at = address_at(a.array, a.start), address_at(weights, 0)
    c_at, d_at = address_at(addend.array, addend.start), address_at(product.array, product.start)
    c_strides, d_strides = (addend.stride, addend.row_stride), (product.stride, product.row_stride)
    panels, way = (first_panel, last_panel, vectors), np.int64(backwards)
    numbers = rows, terms, a_at, a.stride, weights_at, *panels, c_at, *c_strides, d_at, *d_strides, way
    _call_product(product.array, numbers)


@function
def share_of_next(tiles, terms, next_terms, term_bytes):
    """Return for how many bytes of the weights that come next each of some tiles asks in each of its terms.

    Equal shares, one after another, the last one to the end or just beyond it; `next_terms` of `term_bytes` each come.
    """
    all_terms = tiles * max(1, terms)
    return (next_terms * term_bytes + all_terms - 1) // all_terms


@function
def _multiply(
    rows, terms, a, a_row, b, first_panel, last_panel, vectors, c, c_panel, c_row, d, d_panel, d_row, back, like
):
    """Do a product; names, addresses and strides as those of a tile, but b is where panel 0 begins."""
    if rows == 0:
        return
    ends_with_half = HAS_HALF_PANELS and last_panel * PANEL_VECTORS - vectors >= PANEL_VECTORS // 2
    whole = last_panel - 1 if ends_with_half else last_panel
    tiles = (rows + ROWS - 1) // ROWS
    at_once = PANELS_AT_ONCE[rows // tiles]
    if rows % tiles:  # tiles of two heights, of which each takes panels by its own number
        at_once *= PANELS_AT_ONCE[rows // tiles + 1]
    chains = max(1, (terms + _CHAIN - 1) // _CHAIN)
    chain = (terms + chains - 1) // chains  # of nearly equal length
    groups = (last_panel - first_panel + at_once - 1) // at_once
    width, item = panel_width(like), VECTOR_BYTES // lanes_of(like)
    terms_at_once = max(1, _CHAINS_TO_STAY * chain if tiles >= _TILES_TO_STAY else terms)
    for n in range(groups):
        first = first_panel + (groups - 1 - n if back else n) * at_once
        end = min(first + at_once, last_panel)
        for begin in range(0, max(1, terms), terms_at_once):
            stop = min(begin + terms_at_once, terms)
            # What comes next: other terms of the same panels, or the first terms of the next panels.
            next_first, next_begin = first, stop
            if stop == terms:
                next_first, next_begin = max(0, first - at_once if back else first + at_once), _ZERO
            step = _ZERO
            if tiles >= TILES_TO_SHARE:
                step = share_of_next(tiles, stop - begin, min(terms_at_once, terms - next_begin), width * item)
            row = 0
            for tile in range(tiles):
                # Tiles of nearly equal height: 32 rows as 6 6 5 5 5 5, not 6 6 6 6 6 2, whose last has too few chains.
                height = (rows - row + tiles - tile - 1) // (tiles - tile)
                panel, panels = first, PANELS_AT_ONCE[height]
                while panel < end:
                    while panel + panels > min(end, whole):
                        panels //= 2  # down to 0: a half one
                    ahead = _ZERO
                    if tiles >= TILES_TO_SHARE:
                        next_panel = next_first + panel - first
                        ahead = b + (next_panel * terms + next_begin) * width * item + tile * step * (stop - begin)
                    own_c = c + (panel * c_panel + row * c_row) * item
                    own_d = d + (panel * d_panel + row * d_row) * item
                    multiply_tile(
                        like,
                        height,
                        panels,
                        stop - begin,
                        chain,
                        a + (row * a_row + begin) * item,
                        a_row,
                        b + (panel * terms + begin) * width * item,
                        terms * width,
                        ahead,
                        step,
                        own_c if begin == 0 else own_d,
                        c_panel if begin == 0 else d_panel,
                        c_row if begin == 0 else d_row,
                        own_d,
                        d_panel,
                        d_row,
                    )
                    panel += max(_ONE, panels)
                row += height


@worker
def product_float32(
    rows, terms, a, a_row, b, first_panel, last_panel, vectors, c, c_panel, c_row, d, d_panel, d_row, back
):
    """The product in float32."""
    like = np.float32(0)
    _multiply(
        rows, terms, a, a_row, b, first_panel, last_panel, vectors, c, c_panel, c_row, d, d_panel, d_row, back, like
    )


@worker
def product_float64(
    rows, terms, a, a_row, b, first_panel, last_panel, vectors, c, c_panel, c_row, d, d_panel, d_row, back
):
    """The product in float64."""
    like = np.float64(0)
    _multiply(
        rows, terms, a, a_row, b, first_panel, last_panel, vectors, c, c_panel, c_row, d, d_panel, d_row, back, like
    )
