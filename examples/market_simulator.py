"""A market simulator with an LSTM in its inner loop, compiled as one function.

A price goes up and down around a slow trend; at every tick the trader's LSTM sees the last change, the trend and its
own position, and says how much to hold next. What it holds moves the price, so that no step can be known before the one
before: the network must be called once a tick. That is where a call from Python costs more than the network.
::

    python examples/market_simulator.py            # ticks a second
    python examples/market_simulator.py --torch    # the same loop with torch.nn.LSTMCell beside it
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numba
import numpy as np

from nblstm import LSTM, nopython

UNITS, INPUTS = 32, 3
REVERSION, IMPACT, TREND = np.float32(0.05), np.float32(0.02), np.float32(0.99)


@numba.njit  # type: ignore[untyped-decorator]
def simulate(weights: Any, readout: Any, noise: Any, h: Any, c: Any, x: Any) -> tuple[Any, Any]:
    """Run len(noise) ticks; return the trader's profit and the last price. h, c, x: scratch, zeros at first."""
    price, trend, position, profit = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for shock in noise:
        change = shock - REVERSION * (price - trend) + IMPACT * position
        price += change
        trend = TREND * trend + (np.float32(1) - TREND) * price
        profit += position * change
        x[0], x[1], x[2] = change, price - trend, position
        nopython.lstm_step(weights, x, h, c, h, c)
        position = np.tanh(np.sum(readout * h[0]))  # Numba's np.dot would want SciPy
    return profit, price


def run(lstm: LSTM, readout: Any, noise: Any) -> tuple[float, float, float]:
    """Return the profit, the last price and the seconds it took, compiled before."""
    states = np.zeros((1, UNITS), np.float32), np.zeros((1, UNITS), np.float32), np.zeros(INPUTS, np.float32)
    weights = lstm.nopython_weights()
    simulate(weights, readout, noise[:1], *(state.copy() for state in states))
    begin = time.perf_counter()
    profit, price = simulate(weights, readout, noise, *states)
    return float(profit), float(price), time.perf_counter() - begin


def run_torch(lstm: LSTM, readout: Any, noise: Any) -> tuple[float, float, float]:
    """The same loop in Python, the network called by torch on one thread."""
    import torch

    torch.set_num_threads(1)
    cell = torch.nn.LSTMCell(INPUTS, UNITS)
    names = {name: name.removesuffix("_l0") for name in lstm.state_dict()}
    cell.load_state_dict({names[name]: torch.tensor(value.copy()) for name, value in lstm.state_dict().items()})
    states, out = (torch.zeros(1, UNITS), torch.zeros(1, UNITS)), torch.tensor(readout)
    price = trend = position = profit = 0.0
    begin = time.perf_counter()
    with torch.inference_mode():
        for shock in noise.tolist():
            change = shock - float(REVERSION) * (price - trend) + float(IMPACT) * position
            price += change
            trend = float(TREND) * trend + (1 - float(TREND)) * price
            profit += position * change
            states = cell(torch.tensor([[change, price - trend, position]]), states)
            position = float(torch.tanh(states[0][0] @ out))
    return profit, price, time.perf_counter() - begin


def main() -> None:
    """Simulate, and print how fast."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ticks", type=int, default=100_000)
    parser.add_argument("--torch", action="store_true", help="run the loop with torch too")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    lstm = LSTM(INPUTS, UNITS, seed=0)
    readout = (random.standard_normal(UNITS) / 2).astype(np.float32)
    noise = random.standard_normal(arguments.ticks).astype(np.float32)
    profit, price, seconds = run(lstm, readout, noise)
    each = seconds / arguments.ticks
    print(f"{arguments.ticks} ticks: profit {profit:.1f}, last price {price:.3f}, {1e6 * each:.2f} us a tick")
    if arguments.torch:
        ticks = noise[: max(1, arguments.ticks // 10)]
        ours = run(lstm, readout, ticks)[:2]
        *theirs, seconds = run_torch(lstm, readout, ticks)
        of_torch = seconds / len(ticks)
        print(f"the first {len(ticks)} with torch: {1e6 * of_torch:.2f} us a tick, {of_torch / each:.0f} times as long")
        print("profit and last price there, nblstm and torch:", *(f"{value:.4f}" for value in (*ours, *theirs)))


if __name__ == "__main__":
    main()
