"""How to split a call: a small model of what each way would cost, and the cheapest one.

Five ways, all with the same bits:

* serial: one slice of all rows and directions;
* directions: each direction on a thread, which never wait for each other;
* rows of the batch over threads: no waiting either, but every thread reads all weights;
* hidden units over threads: each reads its share of the weights at every step, and all meet after each step;
* layers over threads: each is a block of steps behind the one before it, and all meet after a block.

The model counts, for one step of one slice, the time of the multiply-adds, the time to read the weights, the time of
the units and the time to meet. Its constants were measured on one kind of machine (docs/performance.md), and only
their ratios matter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nblstm.engine.packing import DirectionWeights
from nblstm.kernels.job import LAYERS, ROWS, UNITS
from nblstm.kernels.policy import lanes
from nblstm.kernels.tile import PANEL_VECTORS
from nblstm.kernels.tile import ROWS as TILE_ROWS
from nblstm.threads import usable

# Nanoseconds, and per nanosecond.
_LAUNCH = 5000.0  # for helpers that are awake: 1000, and what goes from the caller's cache to theirs
_WAKE = 150000.0  # more, for helpers that have gone to sleep: what they read is no longer in their cache either
_LAUNCH_OF_WORK = 25000.0  # of products, updates and losses, for which they may be either
_MEET_OF_LAYERS = 4000.0  # and what a block begins with: inputs from another core, a product of few rows
_STEP = 200.0
_MEET = 1000.0
_MEET_PER_ROW = 40.0  # what the others wrote of a row of h has to come from their caches
_MEET_PER_PART = 50.0  # each one more to wait for: a cache line's way from another core; not measured beyond two
_FLOPS_PER_LANE = 12.0
_WEIGHT_BYTES = 66.0
_NOT_HIDDEN = 0.07  # of the time to read the weights, while multiplying takes longer
# A vector of a gate of a row: for an LSTM 21 / 4 for the cell, the rest for the ends of tiles, and for copies.
_VECTOR_OF_GATE = 35.0 / 4
# Share of its peak that a tile of 1, 2, ... rows reaches.
_TILE_SHARE = (1.0, 0.7, 0.88, 0.95, 0.96, 0.97, 1.0)
# From this many rows on, a step's input is projected within the step, if its weights stay in the cache from step to
# step: they are read once for enough rows, and the sums meet the cell in the first-level cache.
_ROWS_TO_FUSE = 24
_BYTES_TO_FUSE = 4 << 20
# Rows of inputs that are projected at once otherwise.
_ROWS_OF_A_BLOCK = 96
_ROWS_OF_A_BLOCK_FROM_MEMORY = 192


# A call is soon after another if helpers may be awake since then (nblstm.kernels.board); so many brief calls, one soon
# after another, are a row, and worth to wake them for.
_SOON, _A_ROW = 4e-4, 8
_last, _in_a_row = 0.0, 0  # when a call with helpers, or a brief one, ended
# Seconds. A helper that another process takes off its core within its slice is gone for some milliseconds: that is much
# for a short call, and so one that takes so much more than twice its time alone keeps the next short ones to their
# callers for a while. Waiting for the GIL afterwards counts too: beside a thread that computes, cores are short.
_SHORT, _HELD_UP, _WHILE = 2e-3, 2e-3, 1e-2
_alone_until = -math.inf


class Plan(NamedTuple):
    """How one layer of a call is split."""

    split: int  # ROWS, UNITS or LAYERS
    parts: int  # slices of each direction
    threads: int
    brief: bool = False  # faster than on one thread only where the helpers need not be woken first
    patience: float = math.inf  # seconds, beyond which a short call was held up by its helpers
    block: int = 0  # of LAYERS: steps of each between two meetings


def block_of(rows: int, steps: int, weight_bytes: int) -> int:
    """Return how many steps' inputs to project at once for a slice of `rows` rows whose W_ih has `weight_bytes`."""
    fits = weight_bytes <= _BYTES_TO_FUSE
    if rows >= _ROWS_TO_FUSE and fits:
        return 1
    rows_at_once = _ROWS_OF_A_BLOCK if fits else _ROWS_OF_A_BLOCK_FROM_MEMORY
    # Blocks of nearly the same length: a last one of a few steps would read all of W_ih for these.
    blocks = max(1, round(steps * rows / rows_at_once))
    return -(-steps // blocks)


_SERIAL = Plan(ROWS, 1, 1)
# Estimated as equal, as for one row of 256 units, they were slower: a core's cache has all weights of a layer to hold.
_WORTH_LAYERS = 0.97
_BLOCKS_OF_LAYERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


def choose(weights: DirectionWeights, directions: int, steps: int, rows: int, mean_rows: int, threads: int) -> Plan:
    """Return the plan of least estimated time for one layer on up to `threads` threads.

    Of the `rows` of the batch `mean_rows` run at a step in the mean.
    """
    if threads == 1:
        return _SERIAL
    candidates = [_SERIAL, *_parallel_plans(weights, directions, rows, threads)]
    return _best(candidates, [estimate(plan, weights, directions, steps, mean_rows) for plan in candidates])


def _best(candidates: Sequence[Plan], times: Sequence[float]) -> Plan:
    """Return the candidate of least time; the first one is for one thread."""
    alone, least = times[0], min(times)
    plan = candidates[times.index(least)]
    if plan.threads == 1:
        return plan
    patience = _HELD_UP + 2e-9 * alone if alone < 1e9 * _SHORT else math.inf
    return plan._replace(brief=least + _WAKE > alone, patience=patience)


def choose_for_layers(
    layers: Sequence[DirectionWeights], steps: int, rows: int, mean_rows: int, threads: int
) -> Plan | None:
    """Return the plan for several layers of one direction at once, or None where one after another is faster."""
    blocks = [block for block in _BLOCKS_OF_LAYERS if block < steps and block * mean_rows <= _ROWS_OF_A_BLOCK]
    if threads == 1 or not blocks:
        return None
    one_by_one = alone = 0.0
    for weights, count in _layers_of_a_kind(layers):
        apart = choose(weights, 1, steps, rows, mean_rows, threads)
        one_by_one += count * estimate(apart, weights, 1, steps, mean_rows)
        alone += count * estimate(_SERIAL, weights, 1, steps, mean_rows)
    plans = [Plan(LAYERS, 1, min(threads, len(layers)), block=block) for block in blocks]
    times = estimate_layers(plans, layers, steps, mean_rows)
    return _best([_SERIAL, *plans], [alone, *times]) if min(times) < min(alone, _WORTH_LAYERS * one_by_one) else None


def _layers_of_a_kind(layers: Sequence[DirectionWeights]) -> list[tuple[DirectionWeights, int]]:
    """Return the first layer, and the second for all others, which have its sizes; how many there are of each."""
    return [(layers[0], 1), (layers[1], len(layers) - 1)]


def is_for_one_thread_now(plan: Plan) -> bool:
    """Say whether a call does without helpers: where they keep short ones up, or sleep and would be woken for little.

    They sleep if brief calls do not come in a row.
    """
    global _last, _in_a_row
    short = plan.patience < math.inf
    if not (short or plan.brief):
        return False
    now = time.perf_counter()
    if short and now < _alone_until:
        return True
    if not plan.brief:
        return False
    _in_a_row = _in_a_row + 1 if now - _last < _SOON else 0
    _last = now
    return _in_a_row < _A_ROW


def heed(plan: Plan, begin: float, end: float) -> None:
    """Take note of when a call for which this plan was meant began and ended, in seconds of `time.perf_counter`."""
    global _alone_until, _last
    if plan.threads > 1:
        _last = end
        if end - begin > plan.patience:
            _alone_until = end + _WHILE


def _parallel_plans(weights: DirectionWeights, directions: int, rows: int, threads: int) -> Iterator[Plan]:
    if directions > 1:
        yield Plan(ROWS, 1, min(directions, threads))
    while threads > 1:
        for count in sorted({threads, threads // directions} - {0}):
            for split, whole in ((ROWS, rows), (UNITS, weights.unit_groups)):
                largest = -(-whole // count)
                parts = -(-whole // largest)  # no more than it takes for none to be larger
                if parts > 1:
                    yield Plan(split, parts, min(threads, parts * directions))
        threads //= 2  # many threads may be too many: they have to meet


def estimate(plan: Plan, weights: DirectionWeights, directions: int, steps: int, rows: int) -> float:
    """Return the estimated time of a layer in nanoseconds."""
    waves = -(-directions * plan.parts // plan.threads)
    if plan.split == ROWS:
        step = _step_estimate(weights, -(-rows // plan.parts), weights.unit_blocks)
    else:
        step = _step_estimate(weights, rows, -(-weights.unit_groups // plan.parts) * weights.unit_group)
    meetings = 0 if plan.split == ROWS else 1 if weights.projection_panels is None else 2
    meet = _MEET + rows * _MEET_PER_ROW + max(0, plan.parts - 2) * _MEET_PER_PART
    launch = _LAUNCH if plan.threads > 1 else 0.0
    return launch + steps * (waves * step + meetings * meet)


def estimate_layers(plans: Sequence[Plan], layers: Sequence[DirectionWeights], steps: int, rows: int) -> list[float]:
    """Return the estimated time of several layers at once in nanoseconds, by each of some plans."""
    kinds = [(weights, _step_estimate(weights, rows, weights.unit_blocks)) for weights, _ in _layers_of_a_kind(layers)]
    times = []
    for plan in plans:
        rows_of_block = plan.block * rows
        longest = 0.0
        for weights, step in kinds:
            width = lanes(weights.dtype.itemsize)
            outputs = weights.cell.gates * weights.unit_blocks * width
            inputs = product_estimate(rows_of_block, outputs, weights.inputs, weights.dtype.itemsize)
            at_peak = 2 * rows_of_block * outputs * weights.inputs / (_FLOPS_PER_LANE * width)
            longest = max(longest, plan.block * step + max(0.0, inputs - at_peak))
        turns = -(-steps // plan.block) + len(layers) - 1
        meeting = _MEET_OF_LAYERS + rows_of_block * _MEET_PER_ROW
        times.append(_LAUNCH + turns * (-(-len(layers) // plan.threads) * longest + meeting))
    return times


def _step_estimate(weights: DirectionWeights, rows: int, blocks: int) -> float:
    """Return the estimated time of one step of a slice of `rows` rows and `blocks` unit blocks, in nanoseconds."""
    width, gates = lanes(weights.dtype.itemsize), weights.cell.gates
    units = blocks * width
    terms = weights.outputs + (weights.outputs / gates if weights.projection_panels is not None else 0.0)
    recurrent = gates * units * terms
    projected = gates * units * weights.inputs
    rate = _FLOPS_PER_LANE * width
    multiply = 2 * _rows_at_peak(rows) * recurrent / rate
    read = recurrent * weights.dtype.itemsize / _WEIGHT_BYTES
    recur = max(multiply + _NOT_HIDDEN * read, read)
    return _STEP + recur + 2 * rows * projected / rate + rows * blocks * gates * _VECTOR_OF_GATE


def choose_product(rows: int, outputs: int, terms: int, itemsize: int, threads: int) -> tuple[int, int]:
    """Return into how many parts to split the rows and the panels of a product: (1, 1) where a launch does not pay.

    Every part of the rows reads all weights, every part of the panels all rows, but those are the fewer in most layers.
    """
    panels = -(-outputs // (PANEL_VECTORS * lanes(itemsize)))
    threads = threads_for(product_estimate(rows, outputs, terms, itemsize), threads)
    if threads == 1:
        return 1, 1
    by_rows, by_panels = min(threads, rows), min(threads, panels)
    split_rows = _rows_at_peak(-(-rows // by_rows)) * panels
    split_panels = _rows_at_peak(rows) * -(-panels // by_panels)
    return (by_rows, 1) if split_rows < split_panels else (1, by_panels)


def threads_for(alone: float, threads: int) -> int:
    """Return how many threads of up to `threads` to give to work that takes one so many nanoseconds: all or one."""
    return threads if _LAUNCH_OF_WORK + alone / threads < alone else 1


def workers_for(alone: float, parts: int) -> int:
    """Return how many threads to give to work of up to so many parts that takes one thread so many nanoseconds."""
    return threads_for(alone, min(usable(), parts))


def product_estimate(rows: int, outputs: int, terms: int, itemsize: int) -> float:
    """Return the estimated time of a product of so many rows and panels of weights on one thread, in nanoseconds."""
    multiply = 2 * _rows_at_peak(rows) * outputs * terms / (_FLOPS_PER_LANE * lanes(itemsize))
    return max(multiply, outputs * terms * itemsize / _WEIGHT_BYTES)


def _rows_at_peak(rows: int) -> float:
    """Return how many rows tiles at their peak would do in the time that the tiles of `rows` rows take."""
    tiles = -(-rows // TILE_ROWS)
    low, higher = divmod(rows, tiles)
    return (tiles - higher) * low / _TILE_SHARE[low] + (higher and higher * (low + 1) / _TILE_SHARE[low + 1])
