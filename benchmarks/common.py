"""What the benchmarks share: a list of cases as asv's parameters, and the measurements in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from nblstm.commands.benchmark.cases import Case
from nblstm.commands.benchmark.engines import ENGINES, OURS
from nblstm.commands.benchmark.measure import QUICK, bench, threads_for
from nblstm.commands.benchmark.process import EngineError
from nblstm.commands.benchmark.results import Results

Track = TypeVar("Track", bound=Callable[..., float | None])


class CaseBenchmark:
    """Benchmarks of the same things for each of `cases`; subclasses say which, and bear the names that asv shows."""

    cases: ClassVar[list[Case]]
    params: ClassVar[list[list[str]]]
    param_names: ClassVar[list[str]] = ["case"]
    timeout = 300.0  # the first call of a commit compiles

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Make the cases the parameters: by their shapes, which stay the same when a list grows."""
        super().__init_subclass__(**arguments)
        if "cases" in cls.__dict__:
            cls.params = [[case.shape for case in cls.cases]]

    def case(self, shape: str) -> Case:
        """Return the case of a parameter."""
        return next(case for case in self.cases if case.shape == shape)


def require(engine: str) -> None:
    """Raise NotImplementedError, with which asv passes over a benchmark in its setup, if an engine is not installed."""
    if missing := ENGINES[engine].missing():
        raise NotImplementedError(f"{engine} needs {', '.join(missing)}")


def measured(case: Case, *peers: str) -> Results:
    """Return what ``bench --quick`` says about one case."""
    threads = threads_for([case])
    with bench([OURS, *peers], threads) as processes:
        (result,) = processes.measure([case], QUICK)
    problems = [f"{name}: {outcome.problem}" for name, outcome in result.engines.items() if outcome.problem]
    if problems:
        raise EngineError("; ".join(problems))
    return Results("", "", {"threads": threads, "caches": {}}, {}, QUICK.rounds, [], [result])


def inverse(value: float | None) -> float | None:
    """Return 1 / value; None, with which asv shows nothing, for None."""
    return None if value is None else 1 / value


def unit(name: str) -> Callable[[Track], Track]:
    """Say what a ``track_`` benchmark counts in."""

    def with_unit(track: Track) -> Track:
        vars(track)["unit"] = name
        return track

    return with_unit
