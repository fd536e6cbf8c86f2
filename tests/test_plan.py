"""What the cost model picks, and how much scratch memory a call takes."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

import nblstm
from nblstm.engine.jobs import fill_jobs, job_template
from nblstm.engine.packing import DirectionWeights, pack_direction
from nblstm.engine.plan import Plan, _rows_at_peak, block_of, choose, estimate
from nblstm.engine.workspace import workspace_of
from nblstm.kernels import cells
from nblstm.kernels.job import JOB, ROWS, UNITS


def weights(size: int) -> DirectionWeights:
    w = np.zeros((4 * size, size), np.float32)
    return pack_direction(cells.LSTM, w, w, None, None, None)


@pytest.mark.parametrize(
    ("size", "directions", "steps", "rows", "threads", "expected"),
    [
        (256, 1, 100, 48, 1, Plan(ROWS, 1, 1)),
        (16, 1, 10, 1, 2, Plan(ROWS, 1, 1)),  # over before a thread has started
        (256, 1, 100, 48, 2, Plan(ROWS, 2, 2)),  # rows never wait for each other
        (512, 1, 100, 1, 2, Plan(UNITS, 2, 2)),  # one row: halves of the weights
        (64, 2, 400, 1, 2, Plan(ROWS, 1, 2)),  # directions never wait for each other
    ],
)
def test_choice(size, directions, steps, rows, threads, expected):
    chosen = choose(weights(size), directions, steps, rows, rows, threads)
    assert chosen._replace(patience=math.inf) == expected


@pytest.mark.parametrize(("size", "directions", "rows"), [(48, 1, 6), (256, 1, 1), (256, 2, 3), (512, 1, 64)])
def test_more_threads_are_never_worse(size, directions, rows):
    """Also where there are more of them than rows or vectors of units."""
    packed = weights(size)
    times = []
    for threads in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        plan = choose(packed, directions, 100, rows, rows, threads)
        assert plan.threads <= min(threads, plan.parts * directions)
        times.append(estimate(plan, packed, directions, 100, rows))
    assert all(more <= 1.02 * fewer for fewer, more in pairwise(times))
    assert times[-1] < 0.6 * times[0]


def test_low_tiles_take_longer_for_a_row():
    at_peak = [_rows_at_peak(rows) for rows in range(1, 40)]
    assert at_peak == sorted(at_peak)
    assert all(time >= rows for rows, time in enumerate(at_peak, 1))
    assert at_peak[5] == 6 and at_peak[11] == 12 and at_peak[0] > 1.2 and 7 < at_peak[6] < 7.5


def test_the_fields_of_a_job_get_what_they_are_named_for():
    layer = [weights(8), weights(8)]
    x, y = np.zeros((5, 3, 8), np.float32)[::2, ::-1, ::2][:, :, :4], np.zeros((3, 3, 16), np.float32)
    h, c = np.zeros((2, 3, 8), np.float32), np.zeros((2, 3, 8), np.float32)
    tables = [np.zeros(3, np.int64) for _ in range(4)]
    template = job_template(layer, 3, 3, 3, 1)
    kept = np.zeros((3, 3, 2, 5, 8), np.float32)
    records = fill_jobs(template, x, y, (h, c), kept, tables, False, 1 << 20).view(JOB)[:, 0]
    first, second = ({name: int(record[name]) for name in JOB.names} for record in records)
    places = {"x": x, "y": y, "kept": kept, "h_n": h, "c_n": c}
    places |= dict(zip(("starts", "batch_sizes", "x_rows", "state_rows"), tables, strict=True))
    assert {name: first[name] for name in places} == {name: array.ctypes.data for name, array in places.items()}
    strides = {"x_step": 48, "x_row": -8, "x_item": 2, "y_step": 48, "y_row": 16, "kept_step": 240, "kept_row": 80}
    assert {name: first[name] for name in strides} == strides
    assert (first["reverse"], first["workspace"], first["steps"], first["rows"]) == (0, 1 << 20, 3, 3)
    moved = {
        "reverse": 1,
        "workspace": 4 * template.workspace,
        "y": 8 * 4,
        "kept": 40 * 4,
        "h_n": 3 * 8 * 4,
        "c_n": 3 * 8 * 4,
    }
    assert {name: second[name] - first[name] for name in JOB.names if second[name] != first[name]} == {
        **moved,
        **{name: second[name] - first[name] for name in ("input_weights", "bias", "recurrent_weights")},
    }


@pytest.mark.parametrize("plan", [Plan(ROWS, 1, 1), Plan(ROWS, 2, 2), Plan(UNITS, 2, 2)])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_workspace_does_not_grow_with_steps(plan, rows):
    packed = weights(40)
    _, few = workspace_of(packed, plan, 1000, rows)
    _, many = workspace_of(packed, plan, 1_000_000, rows)
    assert many <= 1.1 * few


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_blocks_of_steps_have_nearly_the_same_length(rows):
    """A last one of a few steps would read all of W_ih for these."""
    for steps in range(1, 400):
        block = block_of(rows, steps, 1 << 20)
        count = -(-steps // block)
        last = steps - (count - 1) * block
        assert 1 <= last <= block < last + count
        assert block * rows <= 1.5 * 96 + rows


def test_memory_of_a_stack_does_not_grow_with_steps():
    lstm = nblstm.LSTM(4, 32, num_layers=3, seed=0).eval()

    def scratch(steps: int) -> int:
        x, out = np.zeros((steps, 2, 4), np.float32), np.empty((steps, 2, 32), np.float32)
        lstm(x, out=out)
        tracemalloc.start()
        lstm(x, out=out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert scratch(60_000) <= 1.1 * scratch(20_000)
