"""What came of a run: the figures as they were measured, what follows from them, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nblstm.commands.benchmark.cases import Case
from nblstm.commands.benchmark.engines import OURS
from nblstm.commands.benchmark.machine import cache_of
from nblstm.errors import message

FORMAT = 1


@dataclass
class Outcome:
    """What one engine did with one case."""

    medians: list[float] = field(default_factory=list)  # seconds, one a round; of all steps of a cell or a stream
    difference: float | None = None  # the largest one from nblstm's results, in parts of their largest numbers
    problem: str | None = None  # why there are no medians
    singles: list[list[float]] = field(default_factory=list)  # median and 99th percentile of single steps, one a round

    def fail(self, problem: str) -> None:
        """Take note of a problem; there are no times then, also not of the rounds before."""
        self.problem = problem
        self.medians.clear()
        self.singles.clear()

    @property
    def seconds(self) -> float | None:
        """The best of the medians."""
        return min(self.medians, default=None)

    @property
    def tail(self) -> float | None:
        """The 99th percentile of single steps, in times of their median: that of the round where it is least."""
        return min((slow / middle for middle, slow in self.singles), default=None)


class Limit(NamedTuple):
    """The least time that this machine needs for a case, and what most of the recurrence takes it for."""

    name: str  # FMA, or the cache that the weights stream from
    seconds: float


@dataclass
class CaseResult:
    """What all engines did with one case, and what the machine could do in the same rounds."""

    case: Case
    engines: dict[str, Outcome]
    fma: list[float] = field(default_factory=list)  # operations a second, one a round
    stream: list[float] = field(default_factory=list)  # bytes a second

    def seconds(self, engine: str) -> float | None:
        """Return the time of an engine, over the whole input; None if it has none."""
        return self.engines[engine].seconds if engine in self.engines else None

    def call_seconds(self, engine: str) -> float | None:
        """Return that of one call: where every step is one, that of a step."""
        seconds = self.seconds(engine)
        return seconds / self.case.calls if seconds else None

    @property
    def tail(self) -> float | None:
        """The tail of nblstm's single steps (`Outcome.tail`)."""
        return self.engines[OURS].tail if OURS in self.engines else None

    @property
    def best_peer(self) -> str | None:
        """The fastest engine but nblstm."""
        times = {name: s for name, outcome in self.engines.items() if name != OURS and (s := outcome.seconds)}
        return min(times, key=lambda name: times[name], default=None)

    def speed(self, peer: str | None) -> float | None:
        """Return how many times as fast as `peer`, or the best one if None, nblstm is; None where one has no time."""
        peer = peer or self.best_peer
        ours, theirs = self.seconds(OURS), self.seconds(peer) if peer else None
        return theirs / ours if ours and theirs else None

    @property
    def gflops(self) -> float | None:
        """nblstm's 10^9 operations a second."""
        ours = self.seconds(OURS)
        return self.case.flops / ours / 1e9 if ours else None


@dataclass
class Results:
    """A run of ``python -m nblstm bench``."""

    date: str
    command: str
    machine: dict[str, Any]  # nblstm.commands.benchmark.machine.describe
    versions: dict[str, str]
    rounds: int
    ladder: list[dict[str, float]]  # rate (bytes a second) at which weights of a size (bytes of one thread) stream
    cases: list[CaseResult]

    @property
    def engines(self) -> list[str]:
        """The engines that were asked."""
        return list(self.cases[0].engines) if self.cases else []

    @property
    def compared(self) -> list[str | None]:
        """Whom nblstm's speed is told against: None, the best peer at each case, and every engine of torch's."""
        peers = [name for name in self.engines if name != OURS]
        return [None] * bool(peers) + [name for name in peers if name.startswith("torch")]

    def fma(self, dtype: str) -> float | None:
        """Return the peak of the multiply-adds, operations a second: the best round of all cases of that dtype."""
        return max((rate for case in self.cases if case.case.dtype == dtype for rate in case.fma), default=None)

    def limit(self, result: CaseResult) -> Limit | None:
        """Return this machine's own limit for a case (nblstm.commands.benchmark.limits)."""
        case, fma, threads = result.case, self.fma(result.case.dtype), self.machine["threads"]
        if not fma or not result.stream:
            return None
        level = cache_of(self.machine["caches"], case.recurrent_bytes / threads, threads)
        computing = case.recurrent_flops() / fma
        streaming = np.full(case.steps, case.streamed_bytes / max(result.stream))
        name = "FMA" if computing.sum() >= streaming.sum() else level
        recurrence = float(np.maximum(computing, streaming).sum())
        return Limit(name, recurrence + float(case.flops - case.recurrent_flops().sum()) / fma)

    def share(self, result: CaseResult) -> float | None:
        """Return the share of that limit at which nblstm runs."""
        limit, ours = self.limit(result), result.seconds(OURS)
        return limit.seconds / ours if limit and ours else None

    def mean_speed(self, peer: str | None) -> float | None:
        """Return the geometric mean of nblstm's speed against a peer, or against the best at each case if None."""
        return mean_speed(self.cases, peer)

    def groups(self) -> dict[str, list[CaseResult]]:
        """Return the cases by their names; a cell or a stream without one by what it is."""
        found: dict[str, list[CaseResult]] = {}
        for result in self.cases:
            case = result.case
            found.setdefault(case.name or (f"{case.layer} {case.kind}" if case.in_steps else ""), []).append(result)
        return found

    def losses(self) -> list[CaseResult]:
        """Return the cases at which a peer is faster than nblstm."""
        return [case for case in self.cases if (case.speed(None) or 1.0) < 1.0]

    def save(self, path: Path) -> None:
        """Write everything to a JSON file."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_results(path: Path) -> Results:
    """Return what `Results.save` wrote; ValueError if the file is something else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(message(f"{path}", f"a file of `bench --json`, format {FORMAT}", f"format {found}"))
    cases = [
        CaseResult(
            Case(**entry.pop("case")),
            {name: Outcome(**outcome) for name, outcome in entry.pop("engines").items()},
            **entry,
        )
        for entry in content.pop("cases")
    ]
    return Results(**content, cases=cases)


def mean_speed(cases: Iterable[CaseResult], peer: str | None) -> float | None:
    """Return the geometric mean of the speeds (`CaseResult.speed`) at those of the cases that have one."""
    return geometric_mean(speed for case in cases if (speed := case.speed(peer)) is not None)


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return the geometric mean; None for no values.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None
