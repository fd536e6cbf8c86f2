"""The measuring: every engine in turn, round after round, and the machine's own limits in the same rounds.

A round goes through all cases: neighbours disturb a shared machine for minutes at a time, and such a minute costs every
case a round at most, where it would take all rounds of some.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from nblstm import get_num_threads
from nblstm.commands.benchmark.cases import Case
from nblstm.commands.benchmark.engines import OURS
from nblstm.commands.benchmark.limits import NAME as LIMITS
from nblstm.commands.benchmark.process import EngineError, EngineProcess, question_of
from nblstm.commands.benchmark.results import CaseResult, Outcome

# How far an engine's results, the output and gradients, may lie from nblstm's, in parts of the largest number of each.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


class Effort(NamedTuple):
    """How much time to give."""

    rounds: int
    budget: float  # seconds of one engine's turn
    # Between two turns: OpenMP's and others' threads look for work for a while before they sleep.
    pause: float


THOROUGH = Effort(rounds=5, budget=0.15, pause=0.2)
QUICK = Effort(rounds=2, budget=0.05, pause=0.1)


def threads_for(cases: Sequence[Case]) -> int:
    """Return the threads of each engine if none are asked for: all, but one where there are but cells and streams."""
    return 1 if all(case.in_steps for case in cases) else get_num_threads()


class Watcher:
    """What is told how far a run has come; this one says nothing."""

    def begins(self, case: Case) -> None:
        """Take note of the next case of a round."""

    def turn(self) -> None:
        """Take note of a turn of an engine or the limits, of (engines + 1) * cases * rounds."""

    def ends(self, result: CaseResult) -> None:
        """Take note of a case that is done in this round."""


class Bench:
    """The processes of some engines, nblstm first, and of the limits; all of them asleep but the one that is asked."""

    def __init__(self, engines: Sequence[EngineProcess], limits: EngineProcess, folder: Path) -> None:
        self.engines = engines
        self.limits = limits
        self._expected = folder / "expected.npz"

    def versions(self) -> dict[str, str]:
        """Return the engines' versions; EngineError if one cannot start."""
        return {engine.name: engine.ask("hello")["version"] for engine in self.engines}

    def threads(self) -> int:
        """Return how many threads nblstm can use, which its cores and settings may bound; EngineError as above."""
        return int(self.limits.ask("hello")["threads"])

    def ladder(self, footprints: list[int], effort: Effort) -> list[dict[str, float]]:
        """Return the best rate of all rounds at which weights of each size stream: ``{"bytes": ..., "rate": ...}``."""
        rounds = [
            self.limits.ask("ladder", footprints=footprints, budget=effort.budget / 5)["rungs"]
            for _ in range(effort.rounds)
        ]
        return [max(rungs, key=lambda rung: float(rung["rate"])) for rungs in zip(*rounds, strict=True)]

    def measure(self, cases: Sequence[Case], effort: Effort, watcher: Watcher | None = None) -> list[CaseResult]:
        """Return what all engines do with the cases; the watcher sees every turn."""
        watcher = watcher or Watcher()
        results = [CaseResult(case, {engine.name: Outcome() for engine in self.engines}) for case in cases]
        for number in range(effort.rounds):
            for result in results:
                watcher.begins(result.case)
                self._prepare(result, compare=number == 0)
                self._take_turns(result, effort, watcher)
                watcher.ends(result)
        return results

    def _prepare(self, result: CaseResult, *, compare: bool) -> None:
        """Let the engines prepare a case and, if asked to, compare their results with those of nblstm, the first."""
        if compare:
            self._expected.unlink(missing_ok=True)
        for engine in self.engines:
            outcome = result.engines[engine.name]
            if outcome.problem is not None:
                with suppress(EngineError):
                    engine.ask("forget")
            else:
                try:
                    engine.ask("prepare", case=question_of(result.case))
                    if compare:
                        self._compare(engine, result.case, outcome)
                except EngineError as error:
                    outcome.fail(str(error))
        self.limits.ask("prepare", case=question_of(result.case))

    def _compare(self, engine: EngineProcess, case: Case, outcome: Outcome) -> None:
        if engine.name == OURS:
            engine.ask("save", path=str(self._expected))
            return
        compared = engine.ask("compare", path=str(self._expected))
        outcome.difference = float(compared["difference"])
        if not outcome.difference <= TOLERANCE[case.dtype]:
            raise EngineError(f"wrong: {outcome.difference:.0e} from nblstm's {compared['result']}")

    def _take_turns(self, result: CaseResult, effort: Effort, watcher: Watcher) -> None:
        """Let every engine have a turn at a case, and then the limits."""
        for engine in self.engines:
            outcome = result.engines[engine.name]
            if outcome.problem is None:
                time.sleep(effort.pause)
                try:
                    figures = engine.ask("measure", budget=effort.budget)
                    outcome.medians.append(figures["seconds"])
                    outcome.singles += [figures["single"]] if "single" in figures else []
                except EngineError as error:
                    outcome.fail(str(error))
            watcher.turn()
        time.sleep(effort.pause)
        figures = self.limits.ask("measure", budget=effort.budget)
        result.fma.append(figures["fma"])
        result.stream.append(figures["stream"])
        watcher.turn()


@contextmanager
def bench(engines: Sequence[str], threads: int) -> Iterator[Bench]:
    """Start the processes of the named engines, nblstm among them and first, for as long as the context lasts."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="nblstm-bench-")))
        # All start before any is asked, so that their imports take the time of one.
        processes = [stack.enter_context(EngineProcess(name, threads, folder)) for name in [*engines, LIMITS]]
        yield Bench(processes[:-1], processes[-1], folder)
