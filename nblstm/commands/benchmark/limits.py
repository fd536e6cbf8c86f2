"""What this machine can do at most, measured like an engine: in a process of its own, in turn with the others.

Two things bound a call. The multiply-adds: their peak is that of the register tile on all threads at once. And the
recurrent weights, which each step needs anew: the rate at which they stream is that of one row times as many weights
as the network has, shared out among the threads, from whichever cache holds them. The products with the input wait for
nothing and take ``their flops / fma``; those with the state then take, at every step, the longer of ``its flops / fma``
and ``its bytes / stream``: the rows of a packed batch grow fewer, the weights do not. The sum is the case's own limit
(nblstm.commands.benchmark.results). Where every step is a call, of a cell or a stream, all products wait, those with
the input too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nblstm import threads
from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case
from nblstm.engine.packing import aligned_empty
from nblstm.kernels import team
from nblstm.kernels.limits import FIELDS, multiply_float32, multiply_float64
from nblstm.kernels.policy import lanes
from nblstm.kernels.tile import PANEL_VECTORS, PANELS_AT_ONCE, ROWS

NAME = "limits"
_SECONDS_OF_A_RUN = 0.004  # so long that starting the threads does not count
_PEAK_TERMS = 256  # a panel of them is half of a first-level cache
# Tiles of the full height that each panel is for: one alone asks for its own lines, which takes more instructions, and
# was a tenth slower where another guest of the machine has the core's second thread.
_PEAK_TILES = 16


class Product(NamedTuple):
    """Rows times panels of weights on each of some threads, all with operands of their own."""

    worker: int
    fields: Array
    memory: tuple[Array, ...]  # keeps alive what the fields are addresses of
    flops: int  # of one repeat on all threads
    weight_bytes: int  # of all threads

    def seconds(self, repeats: int, slices: int) -> float:
        """Return the time of `repeats` repeats of the first `slices` slices, at once."""
        self.fields[:, 0] = repeats
        start = time.perf_counter()
        team.run(self.worker, self.fields.ctypes.data, slices, 1, slices)
        return time.perf_counter() - start

    def median_seconds(self, budget: float) -> float:
        """Return the median time of a repeat, over as many runs as fit into `budget` seconds, at least 5."""
        repeats = 1
        while min(self.seconds(repeats, 1) for _ in range(2)) < _SECONDS_OF_A_RUN:
            repeats *= 2
        times: list[float] = []
        end = time.perf_counter() + budget
        while len(times) < 5 or time.perf_counter() < end:
            times.append(self.seconds(repeats, len(self.fields)) / repeats)
        return statistics.median(times)


def product_of(rows: int, terms: int, outputs: int, dtype: npt.DTypeLike, slices: int) -> Product:
    """Return `rows` rows of `terms` terms times weights for about `outputs` outputs, these in `slices` slices."""
    dtype = np.dtype(dtype)
    width = PANEL_VECTORS * lanes(dtype.itemsize)
    panels = max(1, round(outputs / (width * slices)))
    # Ones, written: memory that was never written to may be one page of zeros, over and over.
    sizes = (rows * terms, panels * terms * width, panels * rows * width)
    memory = tuple(aligned_empty(slices * size, dtype) for size in sizes)
    for array in memory:
        array.fill(1)
    fields = np.zeros((slices, len(FIELDS)), np.int64)
    for piece in range(slices):
        addresses = [a.ctypes.data + piece * size * dtype.itemsize for a, size in zip(memory, sizes, strict=True)]
        fields[piece] = [0, rows, terms, panels, *addresses]
    worker = multiply_float32 if dtype == np.float32 else multiply_float64
    numbers = slices * panels * terms * width
    return Product(worker.address, fields, memory, 2 * rows * numbers, numbers * dtype.itemsize)


def _slices(threads_wanted: int) -> int:
    threads.set_num_threads(threads_wanted)
    return threads.usable()


class Limits:
    """The limits, in the place of an engine."""

    def __init__(self, threads_wanted: int) -> None:
        self.slices = _slices(threads_wanted)

    def prepare(self, case: Case) -> Callable[[float], dict[str, float]]:
        """Return what measures the case's two limits for a number of seconds: operations and bytes a second."""
        width = PANEL_VECTORS * lanes(np.dtype(case.dtype).itemsize)
        peak = product_of(_PEAK_TILES * ROWS, _PEAK_TERMS, width * self.slices, case.dtype, self.slices)
        stream = product_of(1, *case.streamed_shape, case.dtype, self.slices)

        def measure(budget: float) -> dict[str, float]:
            return {
                "fma": peak.flops / peak.median_seconds(budget / 2),
                "stream": stream.weight_bytes / stream.median_seconds(budget / 2),
            }

        return measure

    def ladder(self, footprints: list[int], budget: float) -> list[dict[str, Any]]:
        """Return the rate at which float32 weights of each size (bytes of one thread) stream on all threads."""
        width = PANEL_VECTORS * lanes(4)
        rungs = []
        for footprint in footprints:
            # The tile with one row takes some panels at a time; a footprint has at least that many.
            terms = max(1, min(_PEAK_TERMS, footprint // (4 * width * PANELS_AT_ONCE[1])))
            product = product_of(1, terms, self.slices * footprint // (4 * terms), np.float32, self.slices)
            rate = product.weight_bytes / product.median_seconds(budget)
            rungs.append({"bytes": product.weight_bytes // self.slices, "rate": rate})
        return rungs
