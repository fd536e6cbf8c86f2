"""What the cost model picks, and how much scratch memory a call takes."""

import tracemalloc

import numpy as np
import pytest

import nblstm
from nblstm.engine.packing import DirectionWeights, pack_lstm_direction
from nblstm.engine.plan import Plan, choose
from nblstm.engine.workspace import workspace_of
from nblstm.kernels.job import ROWS, UNITS


def weights(size: int) -> DirectionWeights:
    w = np.zeros((4 * size, size), np.float32)
    return pack_lstm_direction(w, w, None, None, None)


@pytest.mark.parametrize(
    ("size", "directions", "steps", "rows", "threads", "expected"),
    [
        (256, 1, 100, 64, 1, Plan(ROWS, 1, 1)),
        (16, 1, 10, 1, 2, Plan(ROWS, 1, 1)),  # over before a thread has started
        (256, 1, 100, 64, 2, Plan(ROWS, 2, 2)),  # rows never wait for each other
        (512, 1, 100, 1, 2, Plan(UNITS, 2, 2)),  # one row: halves of the weights
        (64, 2, 100, 1, 2, Plan(ROWS, 1, 2)),  # directions never wait for each other
    ],
)
def test_choice(size, directions, steps, rows, threads, expected):
    assert choose(weights(size), directions, steps, rows, threads) == expected


@pytest.mark.parametrize("plan", [Plan(ROWS, 1, 1), Plan(ROWS, 2, 2), Plan(UNITS, 2, 2)])
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_workspace_does_not_grow_with_steps(plan, rows):
    packed = weights(40)
    assert workspace_of(packed, plan, 1000, rows) == workspace_of(packed, plan, 1_000_000, rows)


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
