"""``python -m nblstm bench``: time nblstm beside every peer that is installed, and against this machine's limits.

The tool for every speed figure of this project. Each engine runs in a process of its own and is asked in turn, round
after round through all cases, so that a time in which the machine is busy meets all of them; engines, their settings
and the limits are described in nblstm.commands.benchmark, in engines.py and limits.py. The extra ``bench`` brings the
peers but torch, the extra ``torch`` that one.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numba

from nblstm.commands.benchmark import machine, plot, report
from nblstm.commands.benchmark.cases import FORM, SETS, TRAINING, Case, parse_shapes
from nblstm.commands.benchmark.engines import ENGINES, OURS, parse_engines
from nblstm.commands.benchmark.measure import QUICK, THOROUGH, Effort, Watcher, bench, threads_for
from nblstm.commands.benchmark.process import EngineError
from nblstm.commands.benchmark.results import CaseResult, Results
from nblstm.commands.timing import is_installed
from nblstm.errors import message

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    sets = ", ".join(f"{name} ({len(cases)})" for name, cases in SETS.items())
    engines = f"some of {', '.join(ENGINES)}, separated by commas (default: all that are installed)"
    quick = "two short rounds, and --set small if no other cases are asked for: less than a minute"
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--set", choices=SETS, metavar="NAME", help=f"a list of cases: {sets} (default: standard)")
    which.add_argument("--shapes", type=_read(parse_shapes), metavar="LIST", help=f"your own cases: '{FORM}; ...'")
    train = f"time forward and backward passes; {len(TRAINING)} cases of its own if no others are asked for"
    parser.add_argument("--train", action="store_true", help=train)
    threads = "of every engine (default: all cores; one for cells and streams alone)"
    parser.add_argument("--threads", type=_read(_threads), metavar="N", help=threads)
    parser.add_argument("--engines", type=_read(parse_engines), metavar="LIST", help=engines)
    parser.add_argument("--rounds", type=_read(_rounds), metavar="N", help=f"default: {THOROUGH.rounds}")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--plot", type=_read(_picture), metavar="FILE.png", help="draw the results; needs matplotlib")
    parser.add_argument(
        "--json", type=_read(_target), metavar="FILE", help="keep every median, the machine and the versions"
    )


def _read(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return `parse` with errors that argparse hands on in their own words."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _rounds(text: str) -> int:
    if _whole(text) < 1:
        raise ValueError(message("rounds", "a whole number of at least 1", repr(text)))
    return _whole(text)


def _threads(text: str) -> int:
    most = int(numba.config.NUMBA_NUM_THREADS)
    if not 1 <= _whole(text) <= most:
        because = "NUMBA_NUM_THREADS, by default the number of cores, bounds what Numba can use"
        raise ValueError(message("threads", f"a whole number from 1 to {most}", repr(text), because=because))
    return _whole(text)


def _target(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(message("file", "a file in a folder that exists", repr(text)))
    return path


def _picture(text: str) -> Path:
    if not is_installed("matplotlib"):
        raise ValueError("drawing needs matplotlib, which is not installed: pip install matplotlib")
    return _target(text)


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status is 1 if nblstm fails at a case or an engine cannot start."""
    cases = _cases(args)
    if args.train and any(case.in_steps for case in cases):
        print("--train: expected cases without cell or stream, which are timed forward only", file=sys.stderr)
        return 2
    offered = [name for name, engine in ENGINES.items() if any(engine.offers(case.kind) for case in cases)]
    engines = args.engines or [name for name in offered if not ENGINES[name].missing()]
    threads = args.threads or threads_for(cases)
    effort = QUICK if args.quick else THOROUGH
    effort = effort._replace(rounds=args.rounds or effort.rounds)
    for name in set(offered) - set(engines):
        if missing := ENGINES[name].missing():
            print(f"without {name}: not installed ({', '.join(missing)})", file=sys.stderr)
    try:
        results = measure(cases, engines, threads, effort, command=_command(args, threads))
    except EngineError as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 1
    if args.json is not None:
        results.save(args.json)
    print(report.text(results))
    if args.plot is not None:
        plot.save_png(args.plot, results)
    return 1 if any(case.engines[OURS].problem for case in results.cases) else 0


def _cases(args: argparse.Namespace) -> list[Case]:
    """Return what to measure."""
    if args.train and not (args.shapes or args.set or args.quick):
        return TRAINING
    cases: list[Case] = args.shapes or SETS[args.set or ("small" if args.quick else "standard")]
    if not args.train:
        return cases
    return [case if case.in_steps else dataclasses.replace(case, kind="training") for case in cases]


def _command(args: argparse.Namespace, threads: int) -> str:
    """Return the command that measures the same again."""
    words = ["python -m nblstm bench", f"--threads {threads}"]
    words += ["--train"] * args.train + ["--quick"] * args.quick + [f"--rounds {args.rounds}"] * bool(args.rounds)
    words += [f"--set {args.set}"] * bool(args.set) + [f"--engines {','.join(args.engines or [])}"] * bool(args.engines)
    words += [f"--shapes '{'; '.join(case.written for case in args.shapes or [])}'"] * bool(args.shapes)
    return " ".join(words)


def measure(cases: Sequence[Case], engines: Sequence[str], threads: int, effort: Effort, *, command: str) -> Results:
    """Return what the named engines do with the cases; progress goes to standard error."""
    facts = machine.describe(threads)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(" ", "minutes")
    turns = len(cases) * effort.rounds * (len(engines) + 1)
    with bench(engines, threads) as processes, progress(len(cases), turns) as watcher:
        versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy")} | processes.versions()
        facts["threads of nblstm"] = processes.threads()
        ladder = processes.ladder(machine.footprints(facts["caches"], threads), effort)
        measured = processes.measure(cases, effort, watcher)
    return Results(started, command, facts, versions, effort.rounds, ladder, measured)


class Lines(Watcher):
    """A line on standard error for each case of a round, with the best times so far."""

    def __init__(self, cases: int) -> None:
        self._cases, self._done = cases, 0

    def ends(self, result: CaseResult) -> None:
        """Print it."""
        number, place = divmod(self._done, self._cases)
        self._done += 1
        times = ", ".join(f"{name} {report.duration(result.call_seconds(name))}" for name in result.engines)
        where = f"round {number + 1}, {place + 1}/{self._cases}"
        print(f"[{where}] {result.case.shape}: {times}", file=sys.stderr, flush=True)


class Bar(Watcher):
    """A bar of tqdm's that grows with every turn."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def begins(self, case: Case) -> None:
        """Show the case."""
        self._bar.set_description(case.shape)

    def turn(self) -> None:
        """Grow."""
        self._bar.update()


@contextmanager
def progress(cases: int, turns: int) -> Iterator[Watcher]:
    """Show how far a run of so many cases and turns has come."""
    if not (sys.stderr.isatty() and is_installed("tqdm")):
        yield Lines(cases)
        return
    from tqdm import tqdm

    with tqdm(total=turns, unit="turn", leave=False) as bar:
        yield Bar(bar)
