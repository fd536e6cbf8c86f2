"""The forward pass: time, peak memory, speed against torch, share of the machine's own limit."""

from __future__ import annotations

from typing import ClassVar

from nblstm import LSTM
from nblstm.commands.benchmark.cases import NETWORKS, ODD, SERVER, VARIANTS

from .common import CaseBenchmark, inverse, measured, require, unit


class _Inference(CaseBenchmark):
    """What is measured of every list of cases below. asv passes over names that begin like this one."""

    def setup(self, shape: str) -> None:
        """Make the layer and call it once: that compiles its kernels, or loads them, and packs its weights."""
        case = self.case(shape)
        self.layer = LSTM.from_state_dict(case.parameters()).eval()
        self.x = case.input()
        self.layer(self.x)

    def time_call(self, shape: str) -> None:
        """Time a call."""
        self.layer(self.x)

    def peakmem_call(self, shape: str) -> None:
        """Take the process's peak memory in a call, weights included."""
        self.layer(self.x)


class Server(_Inference):
    """DeepBench's server shapes."""

    cases = SERVER


class Networks(_Inference):
    """Networks of other people's benchmarks."""

    cases = NETWORKS


class Odd(_Inference):
    """Sizes that fill no cache line."""

    cases = ODD


class Variants(_Inference):
    """Layers, directions, projection, float64."""

    cases = VARIANTS


# asv takes less for better, so both of these count in times of something: the inverse of what `bench` shows.


class AgainstTorch(CaseBenchmark):
    """How nblstm stands to torch, each in a process of its own, asked in turn."""

    cases = SERVER + NETWORKS + ODD + VARIANTS
    peer: ClassVar[str] = "torch"

    def setup(self, shape: str) -> None:
        """Do nothing, if torch is there."""
        require(self.peer)

    @unit("of torch's time")
    def track_time(self, shape: str) -> float | None:
        """Return the share of torch's time that nblstm takes."""
        return inverse(measured(self.case(shape), self.peer).cases[0].speed(self.peer))


class AgainstTheMachine(CaseBenchmark):
    """How nblstm stands to what this machine allows."""

    cases = SERVER + NETWORKS + ODD + VARIANTS

    @unit("times its limit")
    def track_time(self, shape: str) -> float | None:
        """Return how many times the least possible time a case takes."""
        results = measured(self.case(shape))
        return inverse(results.share(results.cases[0]))
