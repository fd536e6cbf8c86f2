"""Train the forecaster of ``python -m nblstm demo`` with PyTorch, export it, and record what PyTorch computes with it.

The model reads the yearly sunspot numbers up to a year and says the next year's. It learns from the years to 1954; the
demo judges it on 1955-2008. Its sizes and the number of epochs were chosen on 1900-1954 by models trained to 1899. It
beats the demo's baselines, not every method: an autoregression over 9 years of square roots has an RMSE of 16.7 there.

Writes two files beside the data:

* ``forecaster.pt``: ``torch.save(model.state_dict(), ...)``, as anybody exports a model;
* ``forecaster_expected.npz``: the outputs and last states of the LSTM, and the forecasts, over all years.

Run it from anywhere, with nblstm's extra ``torch`` installed: ``python examples/train_forecaster.py``; seconds pass.
Another version of PyTorch, or another CPU, may arrive at a slightly different model; both files belong together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).resolve().parent.parent / "nblstm" / "commands" / "data"
LAST_TRAINING_YEAR = 1954
HIDDEN_SIZE, EPOCHS, LEARNING_RATE, SEED = 32, 100, 0.01, 0
INPUT_NOISE = 0.1  # in standard deviations of the series: 255 years are few, and noise keeps them from being memorised
WARM_UP = 11  # the first years of the series, a solar cycle, count for nothing: the model has seen too little there


class Forecaster(torch.nn.Module):
    """From the numbers of the years so far, (T, B, 1), to each next year's number, (T, B, 1).

    It works on standardised square roots: the variance of the numbers grows with their size.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, training_numbers: torch.Tensor) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(1, HIDDEN_SIZE, num_layers=2, dropout=0.2)
        self.head = torch.nn.Linear(HIDDEN_SIZE, 1)
        self.register_buffer("mean", training_numbers.sqrt().mean())
        self.register_buffer("scale", training_numbers.sqrt().std())

    def standardise(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the standardised square roots of `numbers`."""
        return (numbers.sqrt() - self.mean) / self.scale

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the forecasts, (T, B, 1)."""
        output, _ = self.lstm(self.standardise(numbers))
        roots = self.head(output) * self.scale + self.mean
        return torch.as_tensor(roots.clamp(min=0) ** 2)


def train(numbers: torch.Tensor) -> Forecaster:
    """Return a model trained on `numbers`, (T, 1, 1), with one pass over the whole series an epoch."""
    model = Forecaster(numbers)
    series = model.standardise(numbers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=EPOCHS)
    for _ in range(EPOCHS):
        optimiser.zero_grad()
        noisy = series[:-1] + INPUT_NOISE * torch.randn_like(series[:-1])
        forecast = model.head(model.lstm(noisy)[0])
        loss = torch.nn.functional.mse_loss(forecast[WARM_UP:], series[1 + WARM_UP :])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def record(model: Forecaster, numbers: torch.Tensor) -> dict[str, np.ndarray]:
    """Return what `model` computes from `numbers`, (T, 1, 1), without the batch axis."""
    with torch.inference_mode():
        output, (h_n, c_n) = model.lstm(model.standardise(numbers))
        values = {"output": output, "h_n": h_n, "c_n": c_n, "forecast": model(numbers)}
    return {name: value.squeeze(1).numpy() for name, value in values.items()}


def main() -> None:
    """Train, export and record."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    years, values = np.loadtxt(DATA / "sunspots.csv", delimiter=",", unpack=True)
    numbers = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
    model = train(numbers[: int((years <= LAST_TRAINING_YEAR).sum())])
    torch.save(model.state_dict(), DATA / "forecaster.pt")
    expected = record(model, numbers)
    np.savez_compressed(DATA / "forecaster_expected.npz", allow_pickle=False, **expected)

    unseen = years[1:] > LAST_TRAINING_YEAR
    errors = (expected["forecast"][:-1, 0] - values[1:])[unseen]
    print(f"RMSE of the forecasts for {LAST_TRAINING_YEAR + 1}-{years[-1]:.0f}: {np.sqrt(np.mean(errors**2)):.1f}")


if __name__ == "__main__":
    main()
