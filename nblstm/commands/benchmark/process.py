"""A process for each engine, and the pipe between it and the one that asks.

Two engines in one process would disturb each other: the threads of either go on spinning for a while after a call, and
some share a pool. So each has a process, which sleeps on its pipe while another is asked. One line of JSON asks, one
answers: the figures, or ``{"problem": "..."}``.

``python -m nblstm.commands.benchmark.process NAME THREADS`` is the engine's end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

import nblstm
from nblstm.arrays import Array
from nblstm.commands.benchmark.cases import Case, NotOffered
from nblstm.commands.benchmark.engine import Engine, Prepared
from nblstm.commands.benchmark.engines import ENGINES
from nblstm.commands.benchmark.limits import NAME as LIMITS
from nblstm.commands.benchmark.limits import Limits

_WARM_UP_CALLS = 2  # the first compiles or chooses kernels, the second finds the memory of the first
_LEAST_CALLS = 3
_LEAST_SINGLES = 200  # of which the slowest two are the last hundredth


class EngineError(Exception):
    """An engine cannot do what was asked of it; says why."""


class EngineProcess:
    """The asking end: starts the process of the engine `name` at once; what that says on the way goes to `folder`."""

    def __init__(self, name: str, threads: int, folder: Path) -> None:
        self.name = name
        self._said = folder / f"{name}.txt"
        command = [sys.executable, "-m", "nblstm.commands.benchmark.process", name, str(threads)]
        with self._said.open("wb") as said:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8"
            )

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a question; EngineError if there is none."""
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"what": what, **arguments}), file=self._child.stdin, flush=True)
        line = self._child.stdout.readline()
        if not line:
            raise EngineError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise EngineError(answer["problem"])
        return answer

    def _last_words(self) -> str:
        status = self._child.wait()
        lines = self._said.read_text(errors="replace").strip().splitlines()
        return f"its process ended with status {status}: {lines[-1] if lines else 'no message'}"

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        if error is not None:
            self._child.kill()
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()  # it has nothing more to read, and ends
        self._child.wait()
        self._child.stdout.close()


class _EngineEnd:
    """What the process of an engine answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared: Prepared | None = None

    def hello(self) -> dict[str, Any]:
        return {"version": self._engine.version()}

    def forget(self) -> dict[str, Any]:
        """Let go of the case before: the next one, of this engine or another, may need the memory."""
        self._prepared = None
        gc.collect()
        return {}

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        self.forget()
        self._prepared = self._engine.prepare(Case(**case))
        for _ in range(_WARM_UP_CALLS):
            self._prepared.call()
        return {}

    def save(self, path: str) -> dict[str, Any]:
        nblstm.save(path, self._results())
        return {}

    def compare(self, path: str) -> dict[str, Any]:
        found = self._results()
        differences = {name: difference(name, found[name], array) for name, array in nblstm.load(path).items()}
        # argmax, because max passes over NaN.
        furthest = list(differences)[int(np.argmax(list(differences.values())))]
        return {"difference": differences[furthest], "result": furthest}

    def measure(self, budget: float) -> dict[str, Any]:
        assert self._prepared is not None
        answered: dict[str, Any] = {"seconds": median_seconds(self._prepared.call, budget)}
        if self._prepared.step is not None:
            answered["single"] = single_seconds(self._prepared.step, budget)
        return answered

    def _results(self) -> dict[str, Array]:
        assert self._prepared is not None
        return self._prepared.results(self._prepared.call())


class _LimitsEnd:
    """What the process of the limits answers."""

    def __init__(self, threads: int) -> None:
        self._limits = Limits(threads)
        self._measure: Callable[[float], dict[str, float]] | None = None

    def hello(self) -> dict[str, Any]:
        return {"threads": self._limits.slices}

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        self._measure = self._limits.prepare(Case(**case))
        return {}

    def measure(self, budget: float) -> dict[str, Any]:
        assert self._measure is not None
        return self._measure(budget)

    def ladder(self, footprints: list[int], budget: float) -> dict[str, Any]:
        return {"rungs": self._limits.ladder(footprints, budget)}


def difference(name: str, found: Array, expected: Array) -> float:
    """Return the largest difference of a result, in parts of its largest number; EngineError for another shape."""
    if found.shape != expected.shape:
        raise EngineError(f"its {name} is {found.shape}, not {expected.shape}")
    return float(np.max(np.abs(found - expected)) / (np.max(np.abs(expected)) or 1))


def median_seconds(call: Callable[[], object], budget: float) -> float:
    """Return the median time of a `call`: of as many as fit into `budget` seconds, at least 3, after one to wake up."""
    call()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < _LEAST_CALLS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def single_seconds(step: Callable[[], object], budget: float) -> list[float]:
    """Return the times of a single `step`, each between two looks at the clock: the median and the 99th percentile."""
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 2 * _LEAST_SINGLES or times[-1] < end:
        start = time.perf_counter()
        step()
        times += start, time.perf_counter()
    taken = np.diff(np.array(times).reshape(-1, 2)).ravel()
    return [float(np.percentile(taken, share)) for share in (50, 99)]


def answer(end: object, question: dict[str, Any]) -> dict[str, Any]:
    """Return what the engine's `end` answers, or what its problem is."""
    what = question.pop("what")
    try:
        answered: dict[str, Any] = getattr(end, what)(**question)
    except (NotOffered, EngineError) as error:
        return {"problem": str(error)}
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    return answered


def serve(name: str, threads: int, questions: TextIO, answers: TextIO) -> None:
    """Answer one question a line until there are no more."""
    end = _LimitsEnd(threads) if name == LIMITS else _EngineEnd(ENGINES[name](threads))
    for line in questions:
        print(json.dumps(answer(end, json.loads(line))), file=answers, flush=True)


def question_of(case: Case) -> dict[str, Any]:
    """Return a case in the form in which it goes through the pipe."""
    return dataclasses.asdict(case)


if __name__ == "__main__":
    # What an engine prints must not end up among the answers.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(KeyboardInterrupt):  # it is the asking end that reports it
        serve(sys.argv[1], int(sys.argv[2]), sys.stdin, channel)
