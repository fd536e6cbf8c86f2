"""A run as people read it: a table, the means, the losses, and what every figure means."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from nblstm.commands.benchmark.engines import OURS
from nblstm.commands.benchmark.machine import cache_of
from nblstm.commands.benchmark.results import CaseResult, Results

_NOTHING = "–"
LEGEND = (
    "Times are the best of the medians of all rounds, one call of the whole sequence. 'x best peer' and 'x torch' say "
    "how many times as fast as they nblstm is; below 1 it is slower. 'of limit' is the share of the speed that this "
    "machine allows for the case. The recurrence is bound by FMA, the multiply-adds on all threads, or by the cache "
    "from which its weights stream at every step; the products with the input always by FMA. All of it was measured in "
    "the same rounds."
)

TRAINING = (
    "One call is a forward and a backward pass, from a gradient of the output to those of all weights and the input. "
    "Operations are three times those of the forward pass: each product has two more of its size on the way back. The "
    "limit has the recurrence twice, as both passes go through time. The weights stay the same from call to call."
)


class Table(NamedTuple):
    """Columns of text; the first `left` of them are set to the left."""

    header: list[str]
    rows: list[list[str]]
    left: int

    def text(self) -> str:
        """Return it for a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = []
        for row in [self.header, *self.rows]:
            cells = [
                cell.ljust(width) if number < self.left else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return it for a document."""
        marks = ["---" if number < self.left else "---:" for number in range(len(self.header))]
        return "\n".join(f"| {' | '.join(row)} |" for row in [self.header, marks, *self.rows])


def table(results: Results) -> Table:
    """Return a row for each case, and one of geometric means where there are peers."""
    peers = [name for name in results.engines if name != OURS]
    compared = ["x best peer"] * bool(peers) + ["x torch"] * ("torch" in peers)
    header = ["", "case", *results.engines, "GFLOP/s", *compared, "of limit", "bound by"]
    rows = [_row(results, case, len(compared)) for case in results.cases]
    if peers:
        means = [speed(results.mean_speed(peer)) for peer in [None, "torch"][: len(compared)]]
        rows.append(["geometric mean", "", *[""] * len(results.engines), "", *means, "", ""])
    return Table(header, rows, left=2)


def _row(results: Results, case: CaseResult, comparisons: int) -> list[str]:
    limit, share = results.limit(case), results.share(case)
    times = [duration(case.seconds(engine)) for engine in results.engines]
    speeds = [speed(case.speed(peer)) for peer in [case.best_peer, "torch"][:comparisons]]
    gflops = _NOTHING if case.gflops is None else f"{case.gflops:.1f}" if case.gflops < 100 else f"{case.gflops:.0f}"
    bound = [f"{share:.0%}" if share else _NOTHING, limit.name if limit else _NOTHING]
    return [case.case.name, case.case.shape, *times, gflops, *speeds, *bound]


def duration(seconds: float | None) -> str:
    """Return a time in three digits.

    >>> [duration(s) for s in (3.21e-6, 0.0123, 4.5, None)]
    ['3.21 us', '12.3 ms', '4.50 s', '–']
    """
    if seconds is None:
        return _NOTHING
    unit, factor = ("us", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1.0)
    value = seconds * factor
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def speed(factor: float | None) -> str:
    """Return a factor in two decimals."""
    return _NOTHING if factor is None else f"{factor:.2f}"


def losses(results: Results) -> str:
    """Return what nblstm is slower at, and than whom."""
    if len(results.engines) < 2:
        return ""
    lost = results.losses()
    if not lost:
        return f"Slower than a peer: at none of {len(results.cases)} cases."
    named = "; ".join(f"{case.case.shape} ({speed(case.speed(case.best_peer))} of {case.best_peer})" for case in lost)
    return f"Slower than a peer at {len(lost)} of {len(results.cases)} cases: {named}."


def problems(results: Results) -> list[str]:
    """Return a line for each reason for which engines have no time."""
    engines: dict[str, list[str]] = {}
    shapes: dict[str, list[str]] = {}
    for case in results.cases:
        for name, outcome in case.engines.items():
            if outcome.problem is not None:
                engines.setdefault(outcome.problem, []).append(name)
                shapes.setdefault(outcome.problem, []).append(case.case.shape)
    return [
        f"{_NOTHING}: {problem} ({', '.join(dict.fromkeys(names))}: {', '.join(dict.fromkeys(shapes[problem]))})"
        for problem, names in engines.items()
    ]


def limits(results: Results) -> list[str]:
    """Return lines about what the machine can do at most."""
    machine = results.machine
    lines = []
    for dtype in ("float32", "float64"):
        if fma := results.fma(dtype):
            lines.append(f"multiply-adds in {dtype}: {fma / 1e9:.0f} GFLOP/s")
    for rung in results.ladder:
        level = cache_of(machine["caches"], rung["bytes"], machine["threads"])
        size = f"{rung['bytes'] / 2**10:.0f} KiB" if rung["bytes"] < 2**20 else f"{rung['bytes'] / 2**20:.0f} MiB"
        lines.append(f"weights stream, {size} for each thread ({level}): {rung['rate'] / 1e9:.0f} GB/s")
    return lines


def conditions(results: Results) -> list[str]:
    """Return lines about where, when and how it was measured."""
    machine = results.machine
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in machine["caches"].items()) or "unknown"
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    threads, usable = machine["threads"], machine["threads of nblstm"]
    serial = f", but {usable} for nblstm (see `python -m nblstm info`)" if usable < threads else ""
    return [
        f"{machine['cpu']} ({machine['vectors']}), {machine['cores']} cores, caches {caches}; {machine['system']}",
        f"{threads} thread{'s' * (threads > 1)} for every engine{serial}; Python {machine['python']}, {versions}",
        f"{results.date}, {results.rounds} round{'s' * (results.rounds > 1)}: {results.command}",
    ]


def legend(results: Results) -> str:
    """Return what the figures mean."""
    return " ".join([LEGEND] + [TRAINING] * any(result.case.kind == "training" for result in results.cases))


def text(results: Results) -> str:
    """Return the whole report for a terminal."""
    parts: Sequence[Sequence[str]] = [
        conditions(results),
        [table(results).text()],
        [line for line in [losses(results), *problems(results)] if line],
        ["This machine, on all threads at once:", *(f"  {line}" for line in limits(results))],
        textwrap.wrap(legend(results), 120),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)
