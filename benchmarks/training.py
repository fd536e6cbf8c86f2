"""The forward and the backward pass: time and peak memory, and torch's beside them.

Beside the files of inference, not in them: those also run on commits that cannot train.
"""

from __future__ import annotations

from typing import ClassVar

from nblstm import get_num_threads
from nblstm.commands.benchmark.cases import TRAINING
from nblstm.commands.benchmark.engines import ENGINES, OURS

from . import inference
from .common import CaseBenchmark, require


class _Step(CaseBenchmark):
    """One step of training without its optimiser, by one engine. asv passes over names that begin like this one."""

    cases = TRAINING
    engine: ClassVar[str]

    def setup(self, shape: str) -> None:
        """Prepare the engine and let it take a step: that compiles its kernels, or loads them, and packs weights."""
        require(self.engine)
        self.step = ENGINES[self.engine](get_num_threads()).prepare(self.case(shape)).call
        self.step()

    def peakmem_step(self, shape: str) -> None:
        """Take the process's peak memory in a step, the engine itself and the weights included."""
        self.step()


class Training(_Step):
    """nblstm: `vjp` and its way back."""

    engine = OURS

    def time_step(self, shape: str) -> None:
        """Time a step."""
        self.step()


class TrainingOfTorch(_Step):
    """torch, in a process of its own too: its memory is what nblstm's stands beside."""

    engine = "torch"


class TrainingAgainstTorch(inference.AgainstTorch):
    """How nblstm's step stands to torch's in time."""

    cases = TRAINING


class TrainingAgainstTheMachine(inference.AgainstTheMachine):
    """How it stands to what this machine allows."""

    cases = TRAINING
