"""The demo's two pictures of observed and forecast numbers: one in characters, one as a PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nblstm.arrays import Array


class Glyphs(NamedTuple):
    """What a chart of characters is drawn with."""

    bars: str  # from empty to full
    mark: str
    corner: str
    axis: str
    tick: str


UNICODE = Glyphs(" ▁▂▃▄▅▆▇█", "●", "└", "─", "┤")
ASCII = Glyphs("  ..:::##", "o", "+", "-", "|")
_HEIGHT = 12
_MARGIN = 6


def text_chart(years: Array, observed: Array, forecast: Array, glyphs: Glyphs) -> str:
    """Return a chart with a column for each year: a bar for what was observed, a mark for what was forecast.

    Takes three arrays (years,) of numbers from 0 on. 54 years make it 60 characters wide.

    >>> print(text_chart(np.array([1990, 1991]), np.array([50, 100]), np.array([70, 90]), ASCII).splitlines()[-1])
          1990
    """
    top = 50 * math.ceil(max(observed.max(), forecast.max()) / 50)
    bars, marks = (values * (_HEIGHT / top) for values in (observed, forecast))
    lines = [f"{'':{_MARGIN}} {glyphs.bars[-1]} observed   {glyphs.mark} forecast a year ahead", ""]
    for row in reversed(range(_HEIGHT)):
        value = (row + 1) * top / _HEIGHT
        label = f"{value:.0f} {glyphs.tick}" if value % 50 == 0 else glyphs.tick
        marked = (max(math.ceil(mark) - 1, 0) == row for mark in marks)
        cells = (_cell(bar - row, here, glyphs) for bar, here in zip(bars, marked, strict=True))
        lines.append(f"{label:>{_MARGIN}}{''.join(cells)}".rstrip())
    lines.append(f"{'0 ' + glyphs.corner:>{_MARGIN}}{glyphs.axis * len(years)}")
    decades = (f"{year:<10.0f}" for year in years[years % 10 == years[0] % 10])
    lines.append(f"{'':{_MARGIN}}{''.join(decades)}".rstrip())
    return "\n".join(lines)


def _cell(filled: float, marked: bool, glyphs: Glyphs) -> str:
    """Return the character of a cell of which the share `filled` (below 0: none, above 1: all) is bar."""
    if marked:
        return glyphs.mark
    return glyphs.bars[round(min(max(filled, 0.0), 1.0) * (len(glyphs.bars) - 1))]


def save_png(path: Path, years: Array, observed: Array, forecast: Array, first_unseen: int) -> None:
    """Draw all years, and below them those from `first_unseen` on, to a PNG file. Needs matplotlib.

    Takes three arrays (years,). Raises OSError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    everything, unseen = figure.subplots(2, 1)
    for axes in (everything, unseen):
        axes.plot(years, observed, color="0.45", linewidth=1.2, label="observed")
        axes.plot(years, forecast, color="tab:red", linewidth=1.2, label="forecast a year ahead")
        axes.set_ylabel("sunspot number")
        axes.set_ylim(0)
        axes.spines[["top", "right"]].set_visible(False)
    everything.set_title("Yearly sunspot numbers, forecast by an LSTM that PyTorch trained and nblstm runs", loc="left")
    everything.axvspan(first_unseen - 0.5, years[-1] + 0.5, color="tab:red", alpha=0.08, linewidth=0)
    everything.set_xlim(years[0], years[-1] + 0.5)
    unseen.set_title(f"Years that it was not trained on: {first_unseen}-{years[-1]:.0f}", loc="left")
    unseen.set_xlim(first_unseen, years[-1])
    for line in unseen.lines:
        line.set_marker("o")
        line.set_markersize(3)
    unseen.legend(frameon=False, ncols=2, loc="upper right")
    unseen.set_ylim(0, 1.15 * np.nanmax(observed[years >= first_unseen]))
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=100, pil_kwargs={"optimize": True})
