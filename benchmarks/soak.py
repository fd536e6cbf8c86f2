"""Mixed shapes from four threads for minutes, and what memory the process takes: ``python -m benchmarks.soak``.

Every call has sizes of its own, of layers that are built anew now and then, so that whatever is kept for each size or
layer would show as memory that grows. It fails where the last fifth of the time needs 2 % more than the second fifth.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np

import nblstm

KINDS = nblstm.LSTM, nblstm.GRU, nblstm.RNN
CALLS_OF_A_LAYER = 50
MOST = 1.02


def resident() -> float:
    """Return the memory of this process that is resident, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve(seed: int, ends: float, calls: list[int]) -> None:
    """Call layers of random sizes, forward, step by step and back, until `ends`."""
    rng = np.random.default_rng(seed)
    while time.monotonic() < ends:
        inputs, units, layers = (int(rng.integers(1, most)) for most in (96, 160, 3))
        layer = KINDS[rng.integers(3)](inputs, units, layers, bidirectional=bool(rng.integers(2)), seed=seed)
        for _ in range(CALLS_OF_A_LAYER):
            steps, rows = int(rng.integers(1, 60)), int(rng.integers(1, 24))
            x = rng.standard_normal((steps, rows, inputs), dtype=np.float32)
            (output, _), backward = layer.vjp(x, lengths=rng.integers(1, steps + 1, rows))
            if rng.integers(4) == 0:
                backward(output)
            if not layer.bidirectional:
                stream = layer.stream(rows)
                for step in x[:5]:
                    stream(step)
            layer(x)
            calls[0] += 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the memory twenty times; exit with 1 if it grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args(arguments)
    begins = time.monotonic()
    ends = begins + 60 * options.minutes
    calls = [0]
    threads = [threading.Thread(target=serve, args=(seed, ends, calls)) for seed in range(4)]
    for thread in threads:
        thread.start()
    means = []
    for _ in range(20):  # in the mean of each twentieth: at any one moment it depends on who is in which call
        samples = []
        until = time.monotonic() + 3 * options.minutes
        while time.monotonic() < until:
            samples.append(resident())
            time.sleep(0.05)
        means.append(mean(samples))
        print(f"{time.monotonic() - begins:6.0f} s  {means[-1]:7.1f} MiB  {calls[0]} calls", flush=True)
    for thread in threads:
        thread.join()
    growth = mean(means[16:]) / mean(means[4:8])
    print(f"the last fifth beside the second: {growth:.3f}")
    sys.exit(growth > MOST)


if __name__ == "__main__":
    main()
