"""What the demo runs in a process of its own: the speed of PyTorch with the forecaster's weights.

Two engines in one process would disturb each other: the threads of either go on spinning for a while after a call.

``python -m nblstm.commands.torch_speed THREADS FILE.pt STEPS BATCH...`` prints a JSON object with the version of torch
and the median seconds of a call for each batch size.
"""

from __future__ import annotations

import json
import sys
from functools import partial

from nblstm.commands.timing import median_seconds


def main(threads: int, weights: str, steps: int, batches: list[int]) -> None:
    """Time ``torch.nn.LSTM`` and print what came of it."""
    import torch

    torch.set_num_threads(threads)
    state = torch.load(weights, weights_only=True, map_location="cpu")
    parameters = {name.removeprefix("lstm."): value for name, value in state.items() if name.startswith("lstm.")}
    lstm = torch.nn.LSTM(1, parameters["weight_hh_l0"].shape[1], num_layers=2).eval()
    lstm.load_state_dict(parameters)
    with torch.inference_mode():
        seconds = [median_seconds(partial(lstm, torch.zeros(steps, batch, 1))) for batch in batches]
    print(json.dumps({"version": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [int(batch) for batch in sys.argv[4:]])
