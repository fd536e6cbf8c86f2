"""``python -m nblstm demo``: run a forecaster that PyTorch trained; check, judge, time and draw it.

The forecaster reads the yearly sunspot numbers from 1700 on and says, after each year, the next year's number. It was
trained and exported with PyTorch (examples/train_forecaster.py), which also recorded what it computes there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nblstm import LSTM, __version__, get_num_threads, load
from nblstm.arrays import Array
from nblstm.commands import charts
from nblstm.commands.timing import is_installed, median_seconds

DATA = Path(__file__).parent / "data"
FIRST_UNSEEN = 1955  # the forecaster was trained on the years before
TOLERANCE = 1e-5  # largest difference from PyTorch's numbers, in units of the largest of them
BATCHES = (1, 64)
_DEFAULT_PNG = "nblstm-forecast.png"


class Forecaster(NamedTuple):
    """The exported model: an LSTM over standardised square roots, and a linear layer that reads its output."""

    lstm: LSTM
    weight: Array  # (1, H)
    bias: Array  # (1,)
    mean: Array  # ()
    scale: Array  # ()

    def standardise(self, numbers: Array) -> Array:
        """Return the LSTM's input (T, 1) for `numbers` (T,)."""
        return ((np.sqrt(numbers) - self.mean) / self.scale)[:, None].astype(np.float32)

    def read(self, output: Array) -> Array:
        """Return the forecasts (T,) that the LSTM's `output` (T, H) holds: entry t is about the year after year t."""
        roots = (output @ self.weight.T + self.bias)[:, 0] * self.scale + self.mean
        return np.asarray(np.maximum(roots, 0) ** 2)


def load_forecaster(path: Path = DATA / "forecaster.pt") -> Forecaster:
    """Return the model in the file that ``torch.save(model.state_dict(), path)`` wrote."""
    state = load(path)
    lstm = LSTM.from_state_dict(state, prefix="lstm.")
    return Forecaster(lstm, state["head.weight"], state["head.bias"], state["mean"], state["scale"])


def load_sunspots() -> tuple[Array, Array]:
    """Return the years 1700-2008 and their mean sunspot numbers."""
    years, numbers = np.loadtxt(DATA / "sunspots.csv", delimiter=",", unpack=True)
    return years, numbers


def difference_from_torch(results: dict[str, Array]) -> float:
    """Return the largest difference of `results` from what PyTorch recorded, in units of the largest number there."""
    with np.load(DATA / "forecaster_expected.npz") as expected:
        return max(float(abs(results[name] - expected[name]).max() / abs(expected[name]).max()) for name in expected)


def baselines(years: Array, numbers: Array) -> dict[str, Array]:
    """Return the forecasts (T,) of plain methods for each of the `years` (T,); NaN where too few years came before."""
    previous, before_previous = _delayed(numbers, 1), _delayed(numbers, 2)
    known = (years < FIRST_UNSEEN) & ~np.isnan(before_previous)
    columns = np.column_stack([np.ones_like(numbers), previous, before_previous])
    coefficients = np.linalg.lstsq(columns[known], numbers[known], rcond=None)[0]
    return {
        "the last year's number": previous,
        "the number 11 years before": _delayed(numbers, 11),
        "Yule's autoregression (1927)": columns @ coefficients,
    }


def _delayed(numbers: Array, years: int) -> Array:
    return np.concatenate([np.full(years, np.nan), numbers[:-years]])


def rmse(forecast: Array, numbers: Array) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.mean((forecast - numbers) ** 2)))


def torch_speed(steps: int) -> dict[str, Any] | str:
    """Return PyTorch's version and its median seconds for each of `BATCHES`, or why there are none."""
    if not is_installed("torch"):
        return "torch is not installed: nothing to compare with"
    arguments = [get_num_threads(), DATA / "forecaster.pt", steps, *BATCHES]
    command = [sys.executable, "-m", "nblstm.commands.torch_speed", *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        last_line = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return f"torch could not be timed: {last_line}"
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help=f"where to draw the forecast, if matplotlib is installed (default: {_DEFAULT_PNG})",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; the exit status is 1 if the numbers are not PyTorch's, or if FILE.png cannot be written."""
    years, numbers = load_sunspots()
    model = load_forecaster()
    print(f"nblstm {__version__}: forecast the yearly sunspot number, one year ahead")
    print(f"model  {model.lstm!r} and a linear layer,")
    print(f"       trained by PyTorch on {years[0]:.0f}-{FIRST_UNSEEN - 1}, loaded from its .pt file without PyTorch")
    x = model.standardise(numbers)
    output, (h_n, c_n) = model.lstm(x)
    forecast = model.read(output)
    right = report_check({"output": output, "h_n": h_n, "c_n": c_n, "forecast": forecast[:, None]})
    about_these_years = np.concatenate([[np.nan], forecast[:-1]])
    report_skill(years, numbers, about_these_years)
    print(f"       for {years[-1] + 1:.0f}, the year after the data, it says {forecast[-1]:.0f}")
    report_speed(model.lstm, x)
    drawn = draw(args.plot, years, numbers, about_these_years)
    return 0 if right and drawn else 1


def report_check(results: dict[str, Array]) -> bool:
    """Print how far `results` are from PyTorch's, and return whether that is near enough."""
    difference = difference_from_torch(results)
    right = difference <= TOLERANCE  # False for NaN
    print(f"check  largest difference from the outputs that PyTorch recorded: {difference:.1e}")
    print(f"       of their size; allowed are {TOLERANCE:.0e}: {'passed' if right else 'FAILED'}")
    return right


def report_skill(years: Array, numbers: Array, forecast: Array) -> None:
    """Print the errors of the `forecast` (T,) and of the baselines on the years that it was not trained on."""
    unseen = years >= FIRST_UNSEEN
    error = rmse(forecast[unseen], numbers[unseen])
    print(f"skill  on {FIRST_UNSEEN}-{years[-1]:.0f}, not trained on     RMSE   1 - MSE / MSE of the other")
    print(f"       {'this LSTM':28}{error:8.1f}")
    for name, other in baselines(years, numbers).items():
        other_error = rmse(other[unseen], numbers[unseen])
        print(f"       {name:28}{other_error:8.1f}{1 - (error / other_error) ** 2:8.2f}")


def report_speed(lstm: LSTM, x: Array) -> None:
    """Print the time of a call over the whole series `x` (T, 1), and over a batch of them, beside PyTorch's."""
    series = [np.ascontiguousarray(np.broadcast_to(x[:, None], (len(x), batch, 1))) for batch in BATCHES]
    ours = [median_seconds(partial(lstm, batch)) for batch in series]
    theirs = torch_speed(len(x))
    print(f"speed  median of calls over {len(x)} years, at most {get_num_threads()} threads")
    for row, (batch, seconds) in enumerate(zip(BATCHES, ours, strict=True)):
        rate = len(x) * batch / seconds / 1e6
        line = f"       {batch:2} series {seconds * 1e6:8.0f} us, {rate:.2f} million steps a second"
        if not isinstance(theirs, str):
            line += f"; torch {theirs['version'].partition('+')[0]}: {theirs['seconds'][row] * 1e6:.0f} us"
        print(line)
    if isinstance(theirs, str):
        print(f"       {theirs}")


def draw(path: Path | None, years: Array, numbers: Array, forecast: Array) -> bool:
    """Print the chart and write the PNG to `path`, or to the default; return False if what was asked for failed."""
    unseen = years >= FIRST_UNSEEN
    glyphs = charts.UNICODE if _can_print("".join(charts.UNICODE)) else charts.ASCII
    print()
    print(charts.text_chart(years[unseen], numbers[unseen], forecast[unseen], glyphs))
    print()
    target = path or Path(_DEFAULT_PNG)
    if not is_installed("matplotlib"):
        print(f"{target} was not drawn: matplotlib is not installed")
        return path is None
    try:
        charts.save_png(target, years, numbers, forecast, FIRST_UNSEEN)
    except OSError as error:
        print(f"{target} was not drawn: {error}")
        return path is None
    print(f"drawn to {target}")
    return True


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
