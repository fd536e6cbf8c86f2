"""Learn the states in which a recurrent network begins: as parameters, and computed from a condition.

::

    python examples/learned_initial_state.py

* As parameters: an LSTM with known weights put out a series, its first states are not known. They are found from the
  first steps of the series alone, by gradients through all steps (`InitialState`), while the weights stay. How well it
  then foretells the steps that were not used shows whether the states are right.
* From a condition: a GRU with no input at all draws a wave whose phase a linear layer tells it, through its first
  state. Without that state all waves would be the same.

In letters: T steps, B series, H hidden units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm import GRU, LSTM
from nblstm.training import Adam, InitialState, Linear, mse_loss

Floats = npt.NDArray[np.float32]


def rms(difference: npt.NDArray[Any]) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(difference**2)))


def find_states(steps: int = 300, seed: int = 0) -> tuple[float, float]:
    """Return the RMS error on steps not used, with the states that were found and with zeros."""
    random = np.random.default_rng(seed)
    observed, later, hidden = 12, 6, 8
    lstm = LSTM(2, hidden, seed=seed)
    bias = lstm.bias_ih_l0.copy()
    bias[hidden : 2 * hidden] += 3  # forget gates near 1: the first states can be told for long
    lstm.set_parameters({"bias_ih_l0": bias})
    x = random.standard_normal((observed + later, 1, 2)).astype(np.float32)  # (T, B, 2)
    h_0, c_0 = random.uniform(-1, 1, (2, 1, 1, hidden)).astype(np.float32)
    series, _ = lstm(x, (h_0, c_0))

    initial = InitialState(lstm)
    optimizer = Adam(initial, lr=0.05)
    for _ in range(steps):
        states, initial_backward = initial.vjp(1)
        (output, _), lstm_backward = lstm.vjp(x[:observed], states, input=False)
        _, d_output = mse_loss(output, series[:observed])
        optimizer.step(initial_backward(lstm_backward(d_output).hx))

    def error(states: Any) -> float:
        return rms(lstm(x, states)[0][observed:] - series[observed:])

    return error(initial(1)), error(None)


def draw_waves(steps: int = 300, seed: int = 0) -> tuple[float, float]:
    """Return the RMS error of the waves that were learned, and that of the best answer to all phases at once."""
    phases, length, hidden = 8, 32, 32
    time = np.arange(length)[:, None, None] / 16  # (T, 1, 1)
    waves = np.sin(2 * np.pi * (time + np.arange(phases)[:, None] / phases)).astype(np.float32)  # (T, B, 1)
    conditions = np.eye(phases, dtype=np.float32)  # (B, B): the phase as a one-hot vector
    nothing = np.zeros((length, phases, 1), np.float32)

    to_state = Linear(phases, hidden, seed=seed)
    gru, decoder = GRU(1, hidden, seed=seed + 1), Linear(hidden, 1, seed=seed + 2)
    optimizer = Adam([to_state, gru, decoder], lr=0.01)
    for _ in range(steps):
        h_0, to_state_backward = to_state.vjp(conditions, input=False)
        (output, _), gru_backward = gru.vjp(nothing, h_0[None], input=False)
        drawn, decoder_backward = decoder.vjp(output)
        _, d_drawn = mse_loss(drawn, waves)
        of_decoder = decoder_backward(d_drawn)
        of_gru = gru_backward(of_decoder.input)
        optimizer.step([to_state_backward(of_gru.hx[0]), of_gru, of_decoder])

    drawn = decoder(gru(nothing, to_state(conditions)[None])[0])
    return rms(drawn - waves), rms(waves - waves.mean(axis=1, keepdims=True))


def main() -> None:
    """Do both, and say how large the errors are."""
    found, zeros = find_states()
    print(f"states found from 12 steps foretell the next 6 with an RMS error of {found:.5f}; from zeros {zeros:.5f}")
    learned, same = draw_waves()
    print(f"waves from a state that a condition tells: an RMS error of {learned:.4f}; the same for all {same:.4f}")


if __name__ == "__main__":
    main()
