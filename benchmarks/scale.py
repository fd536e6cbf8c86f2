"""How the time of a call grows with T, B, H, layers and threads: measured, and as the planner's model has it.

    python -m benchmarks.scale measure scale.json
    python -m benchmarks.scale publish scale.json

The first measures nblstm alone, along one size at a time, in a process for each number of threads, in turn and in
several rounds. The second writes the tables of docs/scaling.md and draws docs/scaling.png. The model is the one by
which the engine chooses how to split a call (nblstm.engine.plan), and what a call and a layer cost before any work is
done, which is measured too; where there are no cores to measure on, it is alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nblstm import get_num_threads
from nblstm.commands.benchmark.cases import CELLS, Case
from nblstm.commands.benchmark.engines import OURS
from nblstm.commands.benchmark.machine import describe
from nblstm.commands.benchmark.measure import QUICK, THOROUGH, Effort, bench
from nblstm.commands.benchmark.report import Table, duration
from nblstm.engine import plan
from nblstm.engine.packing import pack_direction

from .documents import ROOT, replace_part

PICTURE = "![Time of a call against T, B, H, L and threads: measured, and as the model has it](scaling.png)"
CORES_ON_PAPER = (1, 2, 4, 8, 16, 32)


class Sweep(NamedTuple):
    """Cases that differ in one size."""

    size: str  # its letter
    title: str
    cases: list[Case]

    def value(self, case: Case) -> int:
        """Return the size in which the cases differ."""
        return {"T": case.steps, "B": case.batch, "H": case.hidden, "L": case.layers}[self.size]


SWEEPS = [
    Sweep("T", "B1 H256", [Case(steps, 1, 256, 256) for steps in (1, 3, 10, 30, 100, 300, 1000, 3000)]),
    Sweep("T", "B16 H256", [Case(steps, 16, 256, 256) for steps in (1, 3, 10, 30, 100, 300, 1000)]),
    Sweep("B", "T50 H256", [Case(50, batch, 256, 256) for batch in (1, 2, 4, 8, 16, 32, 64, 128)]),
    Sweep("B", "T50 H64", [Case(50, batch, 64, 64) for batch in (1, 2, 4, 8, 16, 32, 64, 128)]),
    Sweep("H", "T50 B1", [Case(50, 1, size, size) for size in (16, 32, 64, 128, 256, 512, 1024, 2048)]),
    Sweep("H", "T50 B16", [Case(50, 16, size, size) for size in (16, 32, 64, 128, 256, 512, 1024)]),
    Sweep("L", "T50 B1 H256", [Case(50, 1, 256, 256, layers=layers) for layers in (1, 2, 3, 4, 6, 8)]),
    Sweep("L", "T50 B16 H256", [Case(50, 16, 256, 256, layers=layers) for layers in (1, 2, 3, 4, 6, 8)]),
]
# Drawn against the number of threads.
CORES = [Case(50, 1, 256, 256), Case(50, 1, 1024, 1024), Case(50, 16, 256, 256), Case(50, 64, 512, 512)]
# Hardly any work.
ONE_LAYER, NINE_LAYERS = Case(1, 1, 1, 1), Case(1, 1, 1, 1, layers=9)


@dataclass
class Point:
    """One case on a number of threads: measured, and modelled."""

    case: Case
    threads: int
    medians: list[float] = field(default_factory=list)  # one a round; none where it could not be measured
    model: float = 0.0  # seconds

    @property
    def seconds(self) -> float | None:
        """The best of the medians."""
        return min(self.medians, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times as long as measured the model says it takes."""
        return self.model / self.seconds if self.seconds else None


def planned(case: Case, threads: int) -> float:
    """Return the seconds that the planner expects a call to take with the plans it would choose."""
    layers = []
    for layer in range(case.layers):
        shapes = {name.partition("_l")[0]: shape for name, shape in case.matrices() if name.endswith(f"_l{layer}")}
        w_ih, w_hh = (np.zeros(shapes[name], case.dtype) for name in ("weight_ih", "weight_hh"))
        layers.append(pack_direction(CELLS[case.cell], w_ih, w_hh, None, None, None))
    sizes = case.steps, case.batch
    if case.layers > 1 and case.directions == 1:
        together = plan.choose_for_layers(layers, *sizes, case.batch, threads)
        if together is not None:
            return plan.estimate_layers([together], layers, *sizes)[0] * 1e-9
    chosen = [plan.choose(weights, case.directions, *sizes, case.batch, threads) for weights in layers]
    times = (plan.estimate(one, weights, case.directions, *sizes) for one, weights in zip(chosen, layers, strict=True))
    return sum(times) * 1e-9


def points(cores: int) -> list[Point]:
    """Return every point to measure on a machine with that many cores, and those on paper."""
    pairs = [(case, 1) for case in (ONE_LAYER, NINE_LAYERS)]
    pairs += [(case, threads) for sweep in SWEEPS for case in sweep.cases for threads in (1, cores)]
    pairs += [(case, threads) for case in CORES for threads in sorted({*CORES_ON_PAPER, *range(1, cores + 1)})]
    return [Point(case, threads) for case, threads in dict.fromkeys(pairs)]


def measure(found: list[Point], cores: int, effort: Effort) -> None:
    """Measure the points that can be."""
    for threads in range(1, cores + 1):
        with bench([OURS], threads) as processes:
            own = [point for point in found if point.threads == threads]
            for point, result in zip(own, processes.measure([point.case for point in own], effort), strict=True):
                point.medians = result.engines[OURS].medians
                print(f"{point.case.shape}, {threads}: {duration(point.seconds)}", file=sys.stderr)


def fixed_costs(found: list[Point]) -> tuple[float, float]:
    """Return the seconds that a call and a layer of it take before any work is done."""
    one, nine = (next(p.seconds for p in found if p.case == case) or 0.0 for case in (ONE_LAYER, NINE_LAYERS))
    layer = (nine - one) / 8
    return one - layer, layer


def model(found: list[Point]) -> None:
    """Set what the model says of each point."""
    call, layer = fixed_costs(found)
    for point in found:
        point.model = call + layer * point.case.layers + planned(point.case, point.threads)


def load(path: Path) -> tuple[dict[str, Any], list[Point]]:
    """Return the machine and what was measured on it, from the file it went to, with the model of today."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = [Point(**{**entry, "case": Case(**entry["case"])}) for entry in content["points"]]
    model(found)
    return content["machine"], found


def tables(found: list[Point]) -> Iterator[str]:
    """Yield a table for each sweep, and one for the threads."""
    at = {(point.case, point.threads): point for point in found}
    most = max(point.threads for point in found if point.medians)
    for sweep in SWEEPS:
        header = [
            f"{sweep.size} ({sweep.title})",
            "1 thread",
            "model",
            f"{most} threads",
            "model",
            "GFLOP/s",
            "speed-up",
        ]
        rows = []
        for case in sweep.cases:
            alone, together = at[case, 1], at[case, most]
            rate = case.flops / min(alone.medians + together.medians) / 1e9
            gain = (alone.seconds or 0) / (together.seconds or math.inf)
            cells = [cell for point in (alone, together) for cell in (duration(point.seconds), _factor(point.ratio))]
            rows.append([str(sweep.value(case)), *cells, f"{rate:.1f}", _factor(gain)])
        yield Table(header, rows, left=0).markdown()
    counts = sorted({point.threads for point in found})
    header = ["threads", *(str(count) for count in counts)]
    rows = [[case.shape, *(_cell(at[case, count]) for count in counts if (case, count) in at)] for case in CORES]
    yield Table(header, rows, left=1).markdown()


def _factor(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cell(point: Point) -> str:
    return duration(point.seconds) if point.medians else f"({duration(point.model)})"


def error(found: list[Point]) -> str:
    """Return sentences on what a call costs at least, and on how far the model is from what was measured."""
    ratios = sorted(point.ratio for point in found if point.ratio)
    middle, (call, layer) = statistics.median(ratios), fixed_costs(found)
    away = sorted(max(ratio / middle, middle / ratio) for ratio in ratios)
    half, most = away[len(away) // 2], away[int(0.9 * len(away))]
    return (
        f"Before any work is done a call takes {duration(call)}, and {duration(layer)} for each of its layers. "
        f"Over {len(ratios)} measured points the model says {middle:.2f} times what was measured, in the median. Apart "
        f"from that factor, half of the points lie within a factor of {half:.2f} of it, nine tenths within {most:.2f}, "
        f"and all within {away[-1]:.2f}."
    )


def draw(path: Path, machine: dict[str, Any], found: list[Point]) -> None:
    """Draw the sweeps to a PNG file: marks for what was measured, lines for the model."""
    from matplotlib.figure import Figure

    at = {(point.case, point.threads): point for point in found}
    figure = Figure(figsize=(9, 8.5), layout="constrained")
    panels = figure.subplots(3, 2).ravel()
    for axes, size in zip(panels, "TBHL", strict=False):
        for number, sweep in enumerate(sweep for sweep in SWEEPS if sweep.size == size):
            for threads, mark in ((1, "o"), (machine["threads"], "^")):
                line = [at[case, threads] for case in sweep.cases]
                style = {"color": f"C{number}", "marker": mark, "label": sweep.title if threads == 1 else None}
                _draw_line(axes, [sweep.value(p.case) for p in line], line, style)
        axes.set_xlabel(size)
    for number, case in enumerate(CORES):
        line = [point for point in found if point.case == case]
        style = {"color": f"C{number}", "marker": "o", "label": case.shape}
        _draw_line(panels[4], [point.threads for point in line], line, style)
    panels[4].set_xlabel("threads")
    panels[5].axis("off")
    words = "marks: measured\nround, solid: 1 thread\npointed, dashed: {threads} threads\nlines: the model\n\n{cpu}"
    panels[5].text(0, 0.9, words.format(**machine), va="top")
    for axes in panels[:5]:
        axes.set_xscale("log", base=2 if axes is not panels[0] else 10)
        axes.set_yscale("log")
        axes.set_ylabel("microseconds")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=72, pil_kwargs={"optimize": True})


def _draw_line(axes: Any, values: Sequence[int], line: list[Point], style: dict[str, Any]) -> None:
    measured = [(value, 1e6 * point.seconds) for value, point in zip(values, line, strict=True) if point.seconds]
    axes.plot(*zip(*measured, strict=True), linestyle="", markersize=4, **style)
    dashes = "--" if style["marker"] == "^" else "-"
    axes.plot(values, [1e6 * point.model for point in line], dashes, color=style["color"], linewidth=0.8)


def main() -> None:
    """Measure, or publish what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("measure", "publish"))
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--quick", action="store_true", help="short rounds")
    args = parser.parse_args()
    if args.what == "measure":
        cores = get_num_threads()
        found = points(cores)
        measure(found, cores, QUICK if args.quick else THOROUGH._replace(rounds=3))
        content = {"machine": describe(cores), "points": [asdict(point) for point in found]}
        args.file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return
    machine, found = load(args.file)
    where = f"Measured on: {machine['cpu']}, {machine['cores']} cores."
    parts = [PICTURE, where, error(found), *tables(found)]
    replace_part(ROOT / "docs" / "scaling.md", "scaling", "\n\n".join(parts))
    draw(ROOT / "docs" / "scaling.png", machine, found)


if __name__ == "__main__":
    main()
