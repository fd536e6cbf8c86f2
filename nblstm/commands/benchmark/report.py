"""A run as people read it: a table, the means, the losses, and what every figure means."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from nblstm.commands.benchmark.machine import cache_of
from nblstm.commands.benchmark.results import CaseResult, Results, mean_speed

_NOTHING = "–"
TAIL = 3  # what the 99th percentile of single calls may be, in times of their median, on an idle core
LEGEND = (
    "Times are the best of the medians of all rounds, one call of the whole sequence. 'x best peer' and 'x torch' say "
    "how many times as fast as they nblstm is; below 1 it is slower. 'of limit' is the share of the speed that this "
    "machine allows for the case. The recurrence is bound by FMA, the multiply-adds on all threads, or by the cache "
    "from which its weights stream at every step; the products with the input always by FMA. All of it was measured in "
    "the same rounds."
)

STEPS = (
    "Of a cell or a stream the time is that of one step, a call each: a whole sequence was timed and shared out. A "
    "peer is called for one step and handed the states that it gave before: torch is its layer, for a sequence of one, "
    "torch-cell its cell. The products with the input wait for the step before too. 'p99' is the 99th percentile of "
    "nblstm's single calls, in times of their median."
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
    tailed = any(case.tail is not None for case in results.cases)
    header = ["", "case", *results.engines, *["p99"] * tailed, "GFLOP/s", *compared(results), "of limit", "bound by"]
    rows = [_row(results, case, tailed) for case in results.cases]
    if results.compared:
        means = [speed(results.mean_speed(peer)) for peer in results.compared]
        rows.append(["geometric mean", "", *[""] * (len(results.engines) + tailed), "", *means, "", ""])
    return Table(header, rows, left=2)


def compared(results: Results) -> list[str]:
    """Return the headers of the columns that say how many times as fast as a peer nblstm is."""
    return [f"x {peer or 'best peer'}" for peer in results.compared]


def _row(results: Results, case: CaseResult, tailed: bool) -> list[str]:
    limit, share = results.limit(case), results.share(case)
    times = [duration(case.call_seconds(engine)) for engine in results.engines]
    times += [speed(case.tail)] * tailed
    speeds = [speed(case.speed(peer)) for peer in results.compared]
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


def steps(results: Results) -> list[str]:
    """Return what cells and streams are judged by: a line of means for each group of them, and that of their tails."""
    lines = []
    for name, group in results.groups().items():
        means = [(peer, mean_speed(group, peer)) for peer in ("torch-cell", "torch")]
        told = ", ".join(f"{speed(mean)} x {peer}" for peer, mean in means if mean)
        if group[0].case.in_steps and told:
            lines.append(f"{name}, geometric mean of {len(group)}: {told}.")
    return [*lines, *tails(results)]


def tails(results: Results) -> list[str]:
    """Return a line about the slowest hundredth of nblstm's single calls, if any were timed."""
    found = {case.case.shape: case.tail for case in results.cases if case.tail is not None}
    if not found:
        return []
    worst = max(found, key=lambda shape: found[shape])
    within = sum(tail <= TAIL for tail in found.values())
    return [
        f"Single calls: the 99th percentile is within {TAIL} times the median at {within} of {len(found)} cases, "
        f"at worst {speed(found[worst])} times ({worst})."
    ]


def losses(results: Results) -> str:
    """Return what nblstm is slower at, and than whom."""
    if len(results.engines) < 2:
        return ""
    lost = results.losses()
    if not lost:
        return f"Slower than a peer: at none of {len(results.cases)} cases."
    named = "; ".join(f"{case.case.shape} ({speed(case.speed(None))} of {case.best_peer})" for case in lost)
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
    serial = f", but {usable} for nblstm" if usable < threads else ""
    return [
        f"{machine['cpu']} ({machine['vectors']}), {machine['cores']} cores, caches {caches}; {machine['system']}",
        f"{threads} thread{'s' * (threads > 1)} for every engine{serial}; Python {machine['python']}, {versions}",
        f"{results.date}, {results.rounds} round{'s' * (results.rounds > 1)}: {results.command}",
    ]


def legend(results: Results) -> str:
    """Return what the figures mean."""
    cases = [result.case for result in results.cases]
    words = [STEPS] * any(case.in_steps for case in cases) + [TRAINING] * any(case.kind == "training" for case in cases)
    return " ".join([LEGEND, *words])


def text(results: Results) -> str:
    """Return the whole report for a terminal."""
    parts: Sequence[Sequence[str]] = [
        conditions(results),
        [table(results).text()],
        steps(results),
        [line for line in [losses(results), *problems(results)] if line],
        ["This machine, on all threads at once:", *(f"  {line}" for line in limits(results))],
        textwrap.wrap(legend(results), 120),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)
