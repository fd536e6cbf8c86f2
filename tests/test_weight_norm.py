"""Weights in the two parts of weight_norm, in both of torch's spellings, against torch and against a definition."""

from __future__ import annotations

import warnings
from typing import Any

import cases
import numpy as np
import pytest

from nblstm import LSTM, LSTMCell
from nblstm.weights.names import find_recurrent_layer
from nblstm.weights.weight_norm import join

OLD, NEW = ("{}_g", "{}_v"), ("parametrizations.{}.original0", "parametrizations.{}.original1")


def split(state: dict[str, Any], names: list[str], spelling: tuple[str, str], prefix: str = "") -> dict[str, Any]:
    """Return a state_dict whose named weights are in parts: directions of another length each, and the lengths."""
    random = np.random.default_rng(5)
    parts = {}
    for name, weight in state.items():
        if name in names:
            length = np.sqrt(np.square(weight.astype(np.float64)).sum(1, keepdims=True))
            g, v = spelling
            parts[prefix + g.format(name)] = length.astype(weight.dtype)
            scales = random.uniform(0.25, 4, (len(weight), 1))
            parts[prefix + v.format(name)] = (weight * scales).astype(weight.dtype)
        else:
            parts[prefix + name] = weight
    return parts


def weights_of(layer: Any) -> list[str]:
    return [name for name in layer.state_dict() if name.startswith("weight")]


def ulps(got: Any, expected: Any) -> float:
    """The largest distance, counted in the spacing of numbers where the expected one lies."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    return float((np.abs(got.astype(np.float64) - expected) / np.spacing(np.abs(expected))).max())


@pytest.mark.parametrize("spelling", [OLD, NEW])
@pytest.mark.parametrize("prefix", ["", "rnn.", "module.rnn."])
def test_parts_are_put_together(spelling, prefix, dtype):
    layer = LSTM(3, 5, 2, bidirectional=True, proj_size=2, dtype=dtype, seed=0)
    loaded = LSTM.from_state_dict(split(layer.state_dict(), weights_of(layer), spelling, prefix), prefix)
    assert repr(loaded) == repr(layer)
    assert loaded.dtype == layer.dtype
    assert list(loaded.state_dict()) == list(layer.state_dict())
    for name, weight in layer.named_parameters():
        assert ulps(loaded.state_dict()[name], weight) <= (3 if name.startswith("weight") else 0), name


@pytest.mark.parametrize("spelling", [OLD, NEW])
def test_a_cell_in_parts(spelling):
    cell = LSTMCell(3, 5, seed=0)
    state = split(cell.state_dict(), ["weight_hh"], spelling, "cell.") | {"lstm.weight_ih_l0": np.zeros((8, 3))}
    loaded = LSTMCell.from_state_dict(state)
    assert ulps(loaded.weight_hh, cell.weight_hh) <= 3
    cases.assert_same_bits(loaded.weight_ih, cell.weight_ih)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("double", [False, True])
def test_torch_agrees(torch, new, dim, double):
    torch.manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    module = torch.nn.LSTM(70, 33, num_layers=2, bidirectional=True, proj_size=9, dtype=dtype)
    names = [name for name, _ in module.named_parameters() if name.startswith("weight")]
    utils = torch.nn.utils.parametrizations if new else torch.nn.utils
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old spelling is deprecated, and in many files
        for name in names:
            utils.weight_norm(module, name, dim=dim)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.mul_(torch.rand(parameter.shape, dtype=dtype) + 0.5)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    loaded = LSTM.from_state_dict(state)
    for name in names:
        torchs = torch._weight_norm(*parts(module, name, new), -1 if dim is None else dim)
        # torch rounds the norm, the quotient and the product, and with dim=None sums thousands of squares in one go
        assert ulps(getattr(loaded, name), torchs.detach().numpy()) <= (16 if double else 8), name


def parts(module: Any, name: str, new: bool) -> tuple[Any, Any]:
    if not new:
        return getattr(module, f"{name}_v"), getattr(module, f"{name}_g")
    parametrization = module.parametrizations[name]
    return parametrization.original1, parametrization.original0


@pytest.mark.parametrize(
    ("g", "axes"),
    [((4, 1, 1), (1, 2)), ((1, 3, 1), (0, 2)), ((1, 1, 2), (0, 1)), ((1, 1, 1), (0, 1, 2)), ((), (0, 1, 2))],
)
def test_the_shape_of_g_says_along_what_the_norm_runs(g, axes):
    random = np.random.default_rng(0)
    v, lengths = random.standard_normal((4, 3, 2)), random.uniform(0.5, 2, g)
    weight = join("g", lengths, v)
    np.testing.assert_allclose(np.sqrt((weight**2).sum(axes, keepdims=True)), lengths.reshape(g or (1, 1, 1)))
    np.testing.assert_allclose(np.sign(weight), np.sign(v))


def test_it_is_rounded_once():
    random = np.random.default_rng(0)
    g, v = (random.standard_normal(shape).astype(np.float32) for shape in ((9, 1), (9, 300)))
    exact = g.astype(np.longdouble) * v / np.sqrt(np.square(v.astype(np.longdouble)).sum(1, keepdims=True))
    cases.assert_same_bits(join("g", g, v), exact.astype(np.float32))
    assert join("g", g.astype(np.float16), v.astype(np.float16)).dtype == np.float32
    assert join("g", g.astype(np.float64), v.astype(np.float64)).dtype == np.float64


def test_a_row_without_a_direction_is_nan_as_in_torch(torch):
    g, v = np.ones((2, 1), np.float32), np.array([[0, 0], [3, 4]], np.float32)
    expected = torch._weight_norm(torch.from_numpy(v), torch.from_numpy(g), 0).numpy()
    np.testing.assert_array_equal(join("g", g, v), expected)
    assert np.isnan(expected[0]).all()


@pytest.mark.parametrize("shape", [(8,), (8, 2), (7, 1), (8, 1, 1), (1, 2), (0,)])
@pytest.mark.parametrize("spelling", [OLD, NEW])
def test_a_g_of_another_shape_is_named(shape, spelling):
    name = spelling[0].format("weight_ih_l0")
    state = split(LSTM(3, 2, seed=0).state_dict(), ["weight_ih_l0"], spelling) | {name: np.ones(shape)}
    with pytest.raises(ValueError, match=r"expected \(8, 1\) because .* \(8, 3\), got ") as error:
        find_recurrent_layer(state)
    assert str(error.value).startswith(f"state_dict[{name!r}]: ")


@pytest.mark.parametrize(
    "keys",
    [
        ["weight_hh_l0_g"],
        ["weight_hh_l0_v"],
        ["weight_hh_l0", "weight_hh_l0_g", "weight_hh_l0_v"],
        ["weight_hh_l0_orig", "weight_hh_l0_v"],  # what spectral_norm leaves
        ["parametrizations.weight_hh_l0.original"],
        ["weight_hh_l0_v", "weight_hh_l0_g", "parametrizations.weight_hh_l0.original1"],
    ],
)
def test_other_parts_are_refused_by_their_names(keys):
    state = {"a.weight_ih_l0": np.ones((8, 3)), **{f"a.{key}": np.ones((8, 2)) for key in keys}}
    with pytest.raises(ValueError, match=r"'a\.weight_hh_l0' as one array, or as the g and v of weight_norm") as error:
        find_recurrent_layer(state)
    assert all(repr(f"a.{key}") in str(error.value) for key in keys)
    old = "torch.nn.utils.remove_spectral_norm or torch.nn.utils.prune.remove"
    new = "torch.nn.utils.parametrize.remove_parametrizations"
    assert str(error.value).endswith(old if any(key.endswith("_orig") for key in keys) else new)


def test_parts_of_another_layer_do_not_matter():
    state = LSTM(3, 2, seed=0).state_dict()
    assert find_recurrent_layer(state | {"b.weight_hh_l0_g": np.ones(3), "conv.weight_v": np.ones(3)}).prefix == ""


def test_complex_parts_are_refused():
    for g, v in (("c8", "f4"), ("f4", "c8")):
        with pytest.raises(ValueError, match=r"g: expected real numbers, got .*complex64"):
            join("g", np.ones((2, 1), g), np.ones((2, 2), v))
