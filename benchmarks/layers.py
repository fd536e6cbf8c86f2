"""GRU and RNN, and what peers do by slower ways than an LSTM: projection, float64, packed sequences.

Beside the file of the LSTMs, not in it: that one also runs on commits that have no other layers.
"""

from __future__ import annotations

from nblstm.commands.benchmark.cases import LAYERS, VARIANTS
from nblstm.commands.benchmark.engines import input_of, layer_of

from . import inference

_CASES = [case for case in LAYERS if case not in VARIANTS]


class Layers(inference._Inference):
    """Each layer as its users call it."""

    cases = _CASES

    def setup(self, shape: str) -> None:
        """Make the layer and its input, which is packed if the case is, and call it once."""
        case = self.case(shape)
        self.layer, self.x = layer_of(case), input_of(case)
        self.layer(self.x)


class LayersAgainstTorch(inference.AgainstTorch):
    """How they stand to torch."""

    cases = _CASES


class LayersAgainstTheMachine(inference.AgainstTheMachine):
    """How they stand to what this machine allows."""

    cases = _CASES
