"""Cells and streams, a step a call on one thread: time, the tail of single calls, speed against torch.

Beside the files of the layers, not in them: those also run on commits that have no streams.
"""

from __future__ import annotations

from typing import ClassVar

from nblstm.commands.benchmark.cases import STEP_CASES
from nblstm.commands.benchmark.engines import ENGINES, OURS

from . import inference
from .common import CaseBenchmark, measured, unit


class Latency(CaseBenchmark):
    """nblstm: whole sequences, a step a call, and the tail of single calls."""

    cases = STEP_CASES

    def setup(self, shape: str) -> None:
        """Make the cell or the stream and take the steps: that compiles or loads its kernels, and packs weights."""
        self.steps = ENGINES[OURS](1).prepare(self.case(shape)).call
        self.steps()

    def time_steps(self, shape: str) -> None:
        """Time the steps of a sequence, all together."""
        self.steps()

    @unit("times the median")
    def track_p99(self, shape: str) -> float | None:
        """Return the 99th percentile of the times of single calls, in times of their median."""
        return measured(self.case(shape)).cases[0].tail


class LatencyAgainstTorch(inference.AgainstTorch):
    """How they stand to a layer of torch that is called with a sequence of one step."""

    cases = STEP_CASES


class LatencyAgainstTorchCell(inference.AgainstTorch):
    """How they stand to torch's cell."""

    cases: ClassVar = [case for case in STEP_CASES if case.layers == 1]
    peer = "torch-cell"


class LatencyAgainstTheMachine(inference.AgainstTheMachine):
    """How they stand to what this machine allows."""

    cases = STEP_CASES
