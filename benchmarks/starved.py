"""How much two threads cost where the machine does not give them two cores: ``python -m benchmarks.starved``.

Each case runs in a process of its own; in it, calls on two threads and calls on one take turns. The table says how many
times as long as one thread two of them take, in the median of the calls and in the mean, which the rare long waits are
in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

# T, B, H: one whose units are split, which meets at every step, and one whose rows are; small and large.
SHAPES = ((100, 1, 128), (100, 1, 256), (50, 16, 128), (50, 32, 256))
CGROUP = Path("/sys/fs/cgroup/cpu")
BUSY = "while True: pass"

CASES: dict[str, dict[str, str]] = {
    "two cores": {},
    "OMP_THREAD_LIMIT=1": {"OMP_THREAD_LIMIT": "1"},
    "NUMBA_NUM_THREADS=1": {"NUMBA_NUM_THREADS": "1"},
    "eight threads on two cores": {"NUMBA_NUM_THREADS": "8"},
    "one core": {},
    "quota of half a core": {},
    "one busy neighbour": {},
    "two busy neighbours": {},
    "workqueue": {"NUMBA_THREADING_LAYER": "workqueue"},
}


def measure(threads: int, seconds: float) -> dict[str, list[float]]:
    """Return the seconds of calls on `threads` threads and on one, in turns: name of the shape -> [...] in turns."""
    import numpy as np

    import nblstm

    result: dict[str, list[float]] = {}
    for steps, rows, units in SHAPES:
        lstm = nblstm.LSTM(units, units, seed=0)
        x = np.zeros((steps, rows, units), np.float32)
        turns: list[list[float]] = [[], []]
        ends = time.perf_counter() + seconds / len(SHAPES)
        while time.perf_counter() < ends:
            for number, taken in zip((1, threads), turns, strict=True):
                with nblstm.num_threads(number):
                    lstm(x)  # what the switch itself costs is not the question
                    for _ in range(10):
                        begin = time.perf_counter()
                        lstm(x)
                        taken.append(time.perf_counter() - begin)
        alone, together = turns
        result[f"T{steps} B{rows} H{units}"] = [
            median(together) / median(alone),
            mean(together) / mean(alone),
        ]
    return result


@contextlib.contextmanager
def condition(case: str) -> Iterator[list[str]]:
    """Give what to put before the command, while the condition of the case holds."""
    neighbours = {"one busy neighbour": 1, "two busy neighbours": 2}.get(case, 0)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbours)]
    group = CGROUP / f"nblstm_{os.getpid()}"
    try:
        if case == "quota of half a core":
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("50000")
            yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        else:
            yield ["taskset", "-c", "0"] if case == "one core" else []
    finally:
        for process in busy:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            group.rmdir()


def run(case: str, seconds: float) -> dict[str, list[float]]:
    """Return what `measure` gives in a new process under the condition of the case."""
    threads = 8 if case.startswith("eight") else 2
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", **CASES[case]}
    with condition(case) as prefix:
        command = [*prefix, sys.executable, "-m", "benchmarks.starved", "--child", str(threads)]
        command += ["--seconds", str(seconds)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each case")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure(options.child, options.seconds)))
        return
    print("| | " + " | ".join(f"T{t} B{b} H{h}" for t, b, h in SHAPES) + " |")
    print("|---|" + "---|" * len(SHAPES))
    for case in options.cases:
        try:
            found = run(case, options.seconds)
        except OSError as error:
            print(f"| {case} | not measured: {error} |")
            continue
        print(
            f"| {case} | " + " | ".join("{:.2f}, {:.2f}".format(*ratios) for ratios in found.values()) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
