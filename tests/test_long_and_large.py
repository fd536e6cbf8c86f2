"""Long, wide and deep calls: right, and in no more memory than the input, the output and a little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import nblstm

SECONDS = 300


def test_a_million_steps() -> None:
    """The last steps are those of a call that begins shortly before them; nothing but the output grows with T."""
    lstm = nblstm.LSTM(4, 8, seed=0)
    x = np.random.default_rng(0).standard_normal((1_000_000, 1, 4), dtype=np.float32)
    lstm(x[:100])
    tracemalloc.start()
    output, states = lstm(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * output.nbytes
    _, middle = lstm(x[:999_000])
    end, end_states = lstm(x[999_000:], middle)
    assert np.array_equal(output[999_000:], end)
    assert all(np.array_equal(a, b) for a, b in zip(states, end_states, strict=True))


def test_stacked_layers_hand_over_a_part_at_a_time() -> None:
    lstm = nblstm.LSTM(4, 16, 3, seed=0)
    x = np.ones((100_000, 1, 4), np.float32)
    lstm(x[:100])
    tracemalloc.start()
    output, _ = lstm(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * (output.nbytes + min(output.nbytes, 2 << 21))


def test_ten_thousand_rows() -> None:
    lstm = nblstm.LSTM(5, 12, seed=0)
    x = np.random.default_rng(0).standard_normal((3, 10_000, 5), dtype=np.float32)
    output, _ = lstm(x)
    for row in (0, 4_999, 5_000, 9_999):
        assert np.array_equal(output[:, [row]], lstm(x[:, [row]])[0])


def test_thousands_of_units() -> None:
    lstm = nblstm.LSTM(3, 4096, seed=0)
    x = np.ones((2, 2, 3), np.float32)
    output, _ = lstm(x)
    weights = [value.astype(np.float64) for _, value in lstm.named_parameters()]
    state = (np.zeros((2, 4096)), np.zeros((2, 4096)))
    for step, y in zip(x, output, strict=True):
        state = nblstm.reference.lstm_step(step.astype(np.float64), *state, *weights)
        np.testing.assert_allclose(y, state[0], rtol=0, atol=2e-6)


def test_what_does_not_fit_is_refused_before_work_starts() -> None:
    lstm = nblstm.LSTM(1, 1024, seed=0)
    x = np.broadcast_to(np.float32(0), (1 << 34, 64, 1))
    with pytest.raises(MemoryError):
        lstm(x)


@pytest.mark.slow
def test_more_elements_than_an_int32_counts() -> None:
    """Output of 2^31 and some elements; its end beside that of a call of its own."""
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 12 << 30:
        pytest.skip("takes 9 GB")
    body = """
import json, resource, numpy as np, nblstm
steps, rows, units = 8_300, 4_096, 64
rnn = nblstm.RNN(1, units, seed=0)
x = np.random.default_rng(0).standard_normal((steps, rows, 1), dtype=np.float32)
output, h = rnn(x)
same = all(np.array_equal(output[:, [r]], rnn(x[:, [r]])[0]) for r in (0, rows // 2 - 1, rows - 1))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([output.size, same, peak / (x.nbytes + output.nbytes)]))
"""
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    size, same, share = json.loads(done.stdout)
    assert size > 2**31
    assert same
    assert share < 1.1
