"""A run as a picture: the speed against each peer, and the share of the machine's own limit. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nblstm.commands.benchmark.engines import OURS
from nblstm.commands.benchmark.results import Results

_COLOURS = {"torch": "tab:orange", "torch-cell": "tab:red", "onnxruntime": "tab:blue", "openvino": "tab:purple"}
_OURS = "tab:green"


def save_png(path: Path, results: Results) -> None:
    """Draw a line of marks for each case to a PNG file. Raises OSError if the file cannot be written."""
    from matplotlib.figure import Figure

    height = 1.6 + 0.24 * len(results.cases)
    figure = Figure(figsize=(11, height), layout="constrained")
    speeds, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.2))
    _draw_speeds(speeds, results)
    _draw_shares(shares, results)
    labels = [f"{result.case.name}  {result.case.shape}".strip() for result in results.cases]
    speeds.set_yticks(range(len(labels)), labels, fontsize=8)
    speeds.set_ylim(len(labels) - 0.5, -0.5)
    for axes in (speeds, shares):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=80, pil_kwargs={"optimize": True})


def _draw_speeds(axes: Any, results: Results) -> None:
    """Draw how much longer each peer takes; left of 1 it is faster."""
    axes.axvline(1, color=_OURS, linewidth=1.5)
    for peer in results.engines:
        points = [(row, speed) for row, case in enumerate(results.cases) if (speed := case.speed(peer)) is not None]
        if peer != OURS and points:
            rows, factors = zip(*points, strict=True)
            axes.plot(factors, rows, "o", markersize=4.5, color=_COLOURS.get(peer), label=peer)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    title = f"Time of a call, in times of nblstm's ({results.machine['threads']} threads)"
    axes.set_title(title, loc="left", fontsize=10)
    if len(results.engines) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_shares(axes: Any, results: Results) -> None:
    """Draw the share of the limit, lighter where the recurrence is bound by its weights' streaming."""
    for row, case in enumerate(results.cases):
        limit, share = results.limit(case), results.share(case)
        if limit and share:
            axes.barh(row, share, height=0.6, color=_OURS, alpha=0.8 if limit.name == "FMA" else 0.4)
            axes.annotate(f" {limit.name}", (0, row), va="center", fontsize=7)
    axes.set_xlim(0, 1.05)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_title("Share of the limit", loc="left", fontsize=10)
