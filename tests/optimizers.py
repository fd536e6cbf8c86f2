"""What the tests of optimisers share: a layer of nothing but parameters, gradients, the same parameters in torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from nblstm.layers.base import Layer, Weights
from nblstm.training import SGD, Adam, AdamW

KINDS = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


class Bare(Layer):
    """A layer with parameters of any shapes, and nothing else."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> None:
        random = np.random.default_rng(0)
        self._weights = Weights({name: random.standard_normal(s).astype(dtype) for name, s in shapes.items()})


def random_gradients(layer: Layer, random: Any) -> dict[str, Any]:
    return {name: random.standard_normal(a.shape).astype(a.dtype) for name, a in layer.named_parameters()}


def twins(torch: Any, *layers: Layer) -> list[list[Any]]:
    """Return the parameters of each layer as torch's."""
    return [[torch.nn.Parameter(torch.tensor(np.array(a))) for _, a in layer.named_parameters()] for layer in layers]


def set_gradients(torch: Any, parameters: list[list[Any]], gradients: list[Any], names: list[list[str]]) -> None:
    """Give each layer's parameters in torch the gradients of these names; None for those left out."""
    for own, by_name, named in zip(parameters, gradients, names, strict=True):
        for name, parameter in zip(named, own, strict=True):
            gradient = by_name.get(name)
            parameter.grad = None if gradient is None else torch.tensor(np.array(gradient))


def assert_close(layer: Layer, parameters: list[Any], ulps: float = 8) -> None:
    for (name, array), parameter in zip(layer.named_parameters(), parameters, strict=True):
        expected = parameter.detach().numpy()
        scale = np.finfo(array.dtype).eps * max(1, np.abs(expected).max(initial=0))
        assert np.abs(array - expected).max(initial=0) <= ulps * scale, name
