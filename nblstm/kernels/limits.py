"""What this machine can do at most: products of the recurrence's shapes, repeated, with nothing around them.

The register tile, alone. At its full height, with operands that stay in the first-level cache, it shows the peak of the
multiply-adds; with one row and as many weights as a network has, the rate at which weights stream from wherever they
fit. No call can be faster than the slower of the two (nblstm.commands.benchmark.limits).
"""

from __future__ import annotations

import numpy as np

from nblstm.kernels.matmul import Panels, Rows, multiply_add, panel_width, product_float32, product_float64
from nblstm.kernels.memory import numbers_at
from nblstm.kernels.policy import function, worker_calling

# What a slice is to do: int64 numbers, in this order. The last three are addresses.
FIELDS = ("repeats", "rows", "terms", "panels", "a", "weights", "product")
_RECORD = len(FIELDS)


@function
def _multiply(job, piece, like):
    """Do the products of slice `piece`, whose FIELDS are row `piece` of the int64 array at address `job`.

    a        in           (rows, terms)
    weights  in           (panels, terms, width); forwards and backwards by turns, as the recurrence reads them
    product  accumulates  (panels, rows, width), `repeats` times; overlaps neither a nor weights
    """
    zero = np.int64(0)
    width = panel_width(like)
    fields = numbers_at(job, zero)
    first = piece * _RECORD
    repeats, rows, terms, panels = fields[first], fields[first + 1], fields[first + 2], fields[first + 3]
    a_address, weights_address, product_address = fields[first + 4], fields[first + 5], fields[first + 6]
    a = Rows(numbers_at(a_address, like), zero, terms)
    weights = numbers_at(weights_address, like)
    product = Panels(numbers_at(product_address, like), zero, rows * width, width)
    for repeat in range(repeats):
        multiply_add(rows, terms, a, weights, zero, panels, product, product, repeat % 2 == 1)


@worker_calling(product_float32)
def multiply_float32(job, piece, step):
    """The worker for float32."""
    _multiply(job, piece, np.float32(0))


@worker_calling(product_float64)
def multiply_float64(job, piece, step):
    """The worker for float64."""
    _multiply(job, piece, np.float64(0))
