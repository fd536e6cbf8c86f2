"""The packed matrix product: rows of a matrix times panels of weights, by register tiles.

A weight matrix W of N outputs and K terms is stored as panels of ``width = PANEL_VECTORS * lanes`` outputs, each panel
contiguous in the order in which the tile reads it, and the product has the panels outermost too:

    weights[panel, k, j] = W[panel * width + j, k]            zeros beyond output N
    product[panel, row, j] += sum over k of a[row, k] * W[panel * width + j, k]
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nblstm.kernels.policy import function
from nblstm.kernels.simd import lanes_of, load, store
from nblstm.kernels.tile import PANEL_VECTORS, PANELS_AT_ONCE, ROWS, multiply_tile


class Rows(NamedTuple):
    """Rows in a contiguous 1-D array: row r begins at element ``start + r * stride``."""

    array: Any
    start: int
    stride: int


class Panels(NamedTuple):
    """Panels in a contiguous 1-D array: row r of panel p begins at element ``start + p * stride + r * width``."""

    array: Any
    start: int
    stride: int


@function
def panel_width(like):
    """Return how many outputs one panel holds for the dtype of `like`."""
    return PANEL_VECTORS * lanes_of(like)


@function
def broadcast_bias(bias, first_panel, last_panel, rows, product):
    """Set the first `rows` rows of panels [first_panel, last_panel) of `product` to `bias`.

    bias     in   (panels * width,)
    product  out  Panels
    """
    lanes = lanes_of(bias)
    width = panel_width(bias)
    for panel in range(first_panel, last_panel):
        for column in range(0, width, lanes):
            value = load(bias, panel * width + column)
            out = product.start + panel * product.stride + column
            for row in range(rows):
                store(product.array, out + row * width, value)


@function
def multiply_add(rows, terms, a, weights, first_panel, last_panel, product, backwards):
    """Add the products of the first `rows` rows of `a` with panels [first_panel, last_panel) to `product`.

    a          in           Rows of `terms` elements
    weights    in           (panels, terms, width) contiguous, as 1-D
    product    accumulates  Panels; overlaps neither a nor weights
    backwards  from the last panel to the first: the same bits, other panels in the cache at the end
    """
    tiles = (rows + ROWS - 1) // ROWS
    at_once = PANELS_AT_ONCE[rows] if tiles == 1 else 1
    groups = (last_panel - first_panel + at_once - 1) // at_once
    for n in range(groups):
        panel = first_panel + (groups - 1 - n if backwards else n) * at_once
        end = min(panel + at_once, last_panel)
        while panel < end:
            panels = at_once
            while panel + panels > end:
                panels //= 2
            row = 0
            for tile in range(tiles):
                # Tiles of nearly equal height: 32 rows as 6 6 5 5 5 5, not 6 6 6 6 6 2, whose last has too few chains.
                height = (rows - row + tiles - tile - 1) // (tiles - tile)
                _multiply_tile(height, panels, row, panel, terms, a, weights, product)
                row += height
            panel += panels


@function
def _multiply_tile(rows, panels, row, panel, terms, a, weights, product):
    """Do one tile: rows [row, row + rows) and panels [panel, panel + panels)."""
    width = panel_width(product.array)
    multiply_tile(
        rows,
        panels,
        terms,
        a.array,
        a.start + row * a.stride,
        a.stride,
        weights,
        panel * terms * width,
        terms * width,
        product.array,
        product.start + panel * product.stride + row * width,
        product.stride,
    )
