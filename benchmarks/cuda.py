"""Layers on a GPU: asv's benchmarks, which are passed over where there is none, and the script that fills docs/cuda.md.

``python -m benchmarks.cuda`` measures the card's limits, nblstm and, in a process of its own, torch, whose LSTM is
cuDNN's, without TF32. It prints the tables; with ``--publish`` it also puts them into the document.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

import nblstm
from nblstm.cuda import device
from nblstm.cuda.device import Kernel, cuda

from .common import unit
from .documents import replace_part

DOCUMENT = Path(__file__).parent.parent / "docs" / "cuda.md"
_ROUNDS, _CALLS = 9, 10
_REPEATS = 4  # of eight multiply-adds in a round, unrolled: the count of rounds takes instructions too


class Case(NamedTuple):
    """One call: T steps, B rows, I = H = `units` unless said otherwise."""

    kind: str
    steps: int
    batch: int
    units: int
    layers: int = 1

    @property
    def name(self) -> str:
        """What asv and the tables show."""
        layers = f" L{self.layers}" if self.layers > 1 else ""
        return f"{self.kind} T{self.steps} B{self.batch} H{self.units}{layers}"

    @property
    def multiply_adds(self) -> int:
        """Of the whole call."""
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.kind]
        return self.layers * self.steps * self.batch * gates * self.units * 2 * self.units


CASES = [
    *(Case("LSTM", 100, batch, units) for units in (64, 128, 256, 512, 1024) for batch in (1, 8, 64)),
    Case("LSTM", 100, 256, 512),
    Case("LSTM", 100, 16, 2048),
    Case("LSTM", 100, 32, 512, 2),
    Case("GRU", 100, 32, 512),
    Case("RNN", 100, 32, 512),
]
WITHOUT_GPU = "there is no GPU, or numba-cuda is not installed"


def available() -> bool:
    """Say whether there is a GPU: the simulator is none."""
    try:
        device.check_device("benchmarks", "cuda")
    except RuntimeError:
        return False
    return not device.SIMULATED


def microseconds(call: Callable[[], Any], event: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Return the median time of a call, by the device's own events; `event` makes one that has been recorded."""
    call()
    times = []
    for _ in range(_ROUNDS):
        begin = event()
        for _ in range(_CALLS):
            call()
        end = event()
        wait()
        times.append(begin.elapsed_time(end) * 1000 / _CALLS)
    return float(statistics.median(times))


def _event() -> Any:
    event = cuda.event()
    event.record()
    return event


def ours(case: Case, training: bool = False) -> float:
    """Return the microseconds of a call of nblstm, with its way back if `training`."""
    layer = getattr(nblstm, case.kind)(case.units, case.units, case.layers, seed=0).to("cuda")
    values = np.random.default_rng(0).standard_normal((case.steps, case.batch, case.units), dtype=np.float32)
    x = device.upload(values, 0)

    def train() -> None:
        (output, _), backward = layer.vjp(x)
        backward(output)

    return microseconds(train if training else lambda: layer(x), _event, cuda.synchronize)


def torchs(case: Case, training: bool = False) -> float:
    """Return the microseconds of the same call of torch: cuDNN, float32, without TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    module = getattr(torch.nn, case.kind)(case.units, case.units, case.layers, device="cuda")
    x = torch.randn(case.steps, case.batch, case.units, device="cuda", requires_grad=training)

    def train() -> None:
        output, _ = module(x)
        output.backward(output.detach())

    def forward() -> None:
        with torch.inference_mode():
            module(x)

    def event() -> Any:
        make: Any = torch.cuda.Event  # has no types
        recorded = make(enable_timing=True)
        recorded.record()
        return recorded

    return microseconds(train if training else forward, event, torch.cuda.synchronize)


class Limits(NamedTuple):
    """What the card does at best."""

    gigabytes: float  # read and written in a second
    tera_fmas: float  # multiply-adds of float32 in a second
    meeting: float  # microseconds until all blocks of a launch have met


def _copy(target: Any, source: Any) -> None:
    for at in range(cuda.grid(1), target.size, cuda.gridsize(1)):
        target[at] = source[at]


def _multiply_add(result: Any, rounds: int, factor: float) -> None:
    at = cuda.grid(1)
    a = b = c = d = e = f = g = h = result[at]
    for _ in range(rounds):
        for _ in range(_REPEATS):
            a, b, c, d = cuda.fma(a, factor, a), cuda.fma(b, factor, b), cuda.fma(c, factor, c), cuda.fma(d, factor, d)
            e, f, g, h = cuda.fma(e, factor, e), cuda.fma(f, factor, f), cuda.fma(g, factor, g), cuda.fma(h, factor, h)
    result[at] = a + b + c + d + e + f + g + h


def _meet(rounds: int) -> None:
    grid = cuda.cg.this_grid()
    for _ in range(rounds):
        grid.sync()


def limits(elements: int = 1 << 28, rounds: int = 1 << 14, blocks: int = 0, threads: int = 1024) -> Limits:
    """Measure the card."""
    number, index = numba.float32, numba.int64
    blocks = blocks or device.limits(0).processors
    source, target = (device.empty((elements,), np.dtype(np.float32), 0) for _ in range(2))
    copy = Kernel(_copy, numba.void(number[::1], number[::1]))
    took = microseconds(lambda: copy.launch(0, 8 * blocks, threads, 0, 0, target, source), _event, cuda.synchronize)
    gigabytes = 2 * 4 * elements / took / 1e3
    fma, zero = Kernel(_multiply_add, numba.void(number[::1], numba.int32, number)), np.float32(0)
    result = device.upload(np.ones(2 * blocks * threads, np.float32), 0)
    took = microseconds(
        lambda: fma.launch(0, 2 * blocks, threads, 0, 0, result, rounds, zero), _event, cuda.synchronize
    )
    tera_fmas = 8 * _REPEATS * rounds * result.size / took / 1e6
    meet = Kernel(_meet, numba.void(index))
    took = microseconds(
        lambda: meet.launch(0, blocks if rounds > 1 else 1, 256, 0, 0, rounds), _event, cuda.synchronize
    )
    return Limits(gigabytes, tera_fmas, took / rounds)


def table(rows: dict[str, dict[str, float | None]], card: Limits) -> str:
    """Return the table of the document: microseconds, times of torch's, and the share of what the card allows.

    A call cannot take less than its multiply-adds, nor than a meeting of all blocks for each step and layer.
    """
    lines = [
        "| | forward, us | torch / nblstm | of limit | with gradients, us | torch / nblstm |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        row = rows[case.name]
        least = case.multiply_adds / card.tera_fmas / 1e6 + case.layers * case.steps * card.meeting
        cells = []
        for kind in ("forward", "training"):
            found, peer = row[f"nblstm {kind}"], row[f"torch {kind}"]
            cells.append("–" if found is None else f"{found:.0f}")
            cells.append("–" if found is None or peer is None else f"{peer / found:.2f}")
            if kind == "forward":
                cells.append("–" if found is None else f"{least / found:.0%}")
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def all_times(engine: str) -> dict[str, dict[str, float | None]]:
    """Return the times of all cases of one engine, "nblstm" or "torch"; None where it has none."""
    measure = ours if engine == "nblstm" else torchs
    return {
        case.name: {f"{engine} forward": measure(case), f"{engine} training": measure(case, training=True)}
        for case in CASES
    }


def _peer_times() -> dict[str, dict[str, float | None]]:
    """Return torch's times, from a process of its own; None for all where it does not run."""
    command = [sys.executable, "-m", "benchmarks.cuda", "--torch"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        print(f"torch: {result.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {case.name: {"torch forward": None, "torch training": None} for case in CASES}
    found: dict[str, dict[str, float | None]] = json.loads(result.stdout)
    return found


def main(arguments: list[str]) -> None:
    """Measure and print; see the module."""
    if arguments == ["--torch"]:
        print(json.dumps(all_times("torch")))
        return
    if not available():
        raise SystemExit(WITHOUT_GPU)
    card, found, peer = limits(), all_times("nblstm"), _peer_times()
    text = (
        f"Limits, measured: {card.gigabytes:.0f} GB/s of memory, {card.tera_fmas:.1f} T multiply-adds of float32 a "
        f"second, {card.meeting:.2f} us for all blocks to meet.\n\n"
        + table({name: {**found[name], **peer[name]} for name in found}, card)
    )
    print(text)
    if "--publish" in arguments:
        replace_part(DOCUMENT, "cuda", text)


class _OnTheGpu:
    params = ([case.name for case in CASES],)
    param_names = ("case",)
    timeout = 300.0

    def setup(self, name: str) -> None:
        """Pass over the benchmark where there is no GPU."""
        if not available():
            raise NotImplementedError(WITHOUT_GPU)


class Cuda(_OnTheGpu):
    """Calls on the GPU, by its own events."""

    @unit("us")
    def track_forward(self, name: str) -> float:
        """Return the time of a call."""
        return ours(next(case for case in CASES if case.name == name))

    @unit("us")
    def track_training(self, name: str) -> float:
        """Return the time of a call and its way back."""
        return ours(next(case for case in CASES if case.name == name), training=True)


if __name__ == "__main__":
    main(sys.argv[1:])
