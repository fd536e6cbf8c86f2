"""Clipping: torch's norms and scales, in sums that neither overflow nor depend on the number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm import GRU
from nblstm.kernels.updates import BLOCK
from nblstm.training import clip_grad_norm, clip_grad_value

NORMS = [1, 2, 2.0, 0.5, 3, 7.5, np.inf, "inf", -np.inf, -1, -2.5, 0]


def parameters(torch: Any, arrays: list[Any]) -> list[Any]:
    """Return parameters of torch with these gradients."""
    found = []
    for array in arrays:
        found.append(torch.nn.Parameter(torch.zeros(array.shape, dtype=getattr(torch, str(array.dtype)))))
        found[-1].grad = torch.tensor(array)
    return found


@st.composite
def gradients(draw: st.DrawFn) -> list[Any]:
    sizes = draw(st.lists(st.sampled_from([1, 7, 64, 65, BLOCK - 1, BLOCK + 9, 3 * BLOCK]), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    random, scale = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from([1e-3, 1.0, 1e4]))
    return [(scale * random.standard_normal(size)).astype(dtype) for size in sizes]


@settings(max_examples=150)
@given(arrays=gradients(), norm_type=st.sampled_from(NORMS), limit=st.sampled_from([0.0, 0.1, 10.0, 1e9, np.inf]))
def test_norms_against_torch(torch: Any, arrays: list[Any], norm_type: Any, limit: float) -> None:
    twins = parameters(torch, [array.astype(np.float64) for array in arrays])
    expected = torch.nn.utils.clip_grad_norm_(twins, limit, norm_type)
    got = clip_grad_norm([{str(n): array for n, array in enumerate(arrays)}], limit, norm_type)
    assert isinstance(got, float) and np.isclose(got, float(expected), rtol=1e-12, atol=0)
    for array, twin in zip(arrays, twins, strict=True):
        assert np.allclose(array, twin.grad.numpy(), rtol=max(2 * np.finfo(array.dtype).eps, 1e-12), atol=0)


@settings(max_examples=50)
@given(arrays=gradients(), limit=st.sampled_from([0.0, 0.1, 10.0, np.inf]))
def test_values_against_torch(torch: Any, arrays: list[Any], limit: float) -> None:
    arrays[0][0] = np.nan
    twins = parameters(torch, arrays)
    torch.nn.utils.clip_grad_value_(twins, limit)
    assert clip_grad_value([{"a": array} for array in arrays], limit) is None
    for array, twin in zip(arrays, twins, strict=True):
        assert np.array_equal(array, twin.grad.numpy(), equal_nan=True)


@pytest.mark.parametrize("norm_type", [1, 2, np.inf, -np.inf, 3, -1])
@pytest.mark.parametrize("values", [[np.nan, 1.0], [np.inf, 1.0], [np.nan, np.inf], [0.0, 0.0], [0.0, 1.0]])
def test_special_numbers_as_in_torch(norm_type: float, values: list[float], dtype: Any, torch: Any) -> None:
    arrays = [np.array(values, dtype), np.ones(5, dtype)]
    twins = parameters(torch, arrays)
    expected = torch.nn.utils.clip_grad_norm_(twins, 0.5, norm_type)
    got = clip_grad_norm([{"a": arrays[0]}, None, {"b": arrays[1], "c": None}], 0.5, norm_type)
    assert np.isclose(got, float(expected), rtol=1e-6, equal_nan=True)
    for array, twin in zip(arrays, twins, strict=True):
        assert np.allclose(array, twin.grad.numpy(), rtol=1e-6, equal_nan=True)
    if not np.isfinite(got):
        kept = arrays[1].copy()
        with pytest.raises(RuntimeError, match=r"The total norm of order .* is non-finite, so it cannot be clipped"):
            clip_grad_norm({"a": np.array(values, dtype), "b": arrays[1]}, 0.5, norm_type, error_if_nonfinite=True)
        assert np.array_equal(arrays[1], kept, equal_nan=True)


@pytest.mark.parametrize("norm_type", [2, 3, 0.5, -2, 40])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_no_norm_leaves_the_range_of_numbers(norm_type: float, scale: float) -> None:
    arrays = [np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0])]
    plain = clip_grad_norm([{"a": array} for array in arrays], np.inf, norm_type)
    got = clip_grad_norm([{"a": scale * array} for array in arrays], np.inf, norm_type)
    assert np.isclose(got, scale * plain, rtol=1e-12)


def test_ten_million_numbers_lose_no_digits() -> None:
    array = np.random.default_rng(0).random(10**7, np.float32)
    exact = np.sqrt(np.square(array.astype(np.longdouble)).sum())
    norms = []
    for threads in (1, 2):
        with nblstm.num_threads(threads):
            norms.append(clip_grad_norm({"a": array}, np.inf))
    assert norms[0] == norms[1] and abs(norms[0] / exact - 1) < 1e-14
    assert abs(clip_grad_norm({"a": array}, np.inf, 1) / array.astype(np.longdouble).sum() - 1) < 1e-14
    array *= np.float32(1e30)
    assert np.isclose(clip_grad_norm({"a": array}, np.inf), 1e30 * norms[0], rtol=1e-6)


def test_gradients_of_layers_in_place() -> None:
    layer = GRU(2, 3, 2, seed=0)
    (output, _), backward = layer.vjp(np.ones((4, 1, 2), np.float32))
    found = backward(output)
    untouched, kept = backward(output), dict(found.parameters)
    norm = clip_grad_norm(found, 0.01)
    assert all(array is kept[name] for name, array in found.parameters.items())
    assert np.isclose(clip_grad_norm([found], np.inf), 0.01, rtol=1e-3)
    scale = np.float32(0.01 / (norm + 1e-6))
    assert all(np.array_equal(array, untouched.parameters[name] * scale) for name, array in kept.items())
    assert np.array_equal(found.input, untouched.input)
    strided = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2].T
    expected = np.sqrt((strided**2).sum())
    assert np.isclose(clip_grad_norm({"a": strided}, 1.0), expected) and np.isclose((strided**2).sum(), 1)


def test_nothing_to_clip() -> None:
    for gradients in ([], None, [None, {}], {"a": np.ones((0, 3), np.float32)}):
        for norm_type in (2.0, np.inf):
            assert clip_grad_norm(gradients, 1.0, norm_type) == 0.0
        clip_grad_value(gradients, 1.0)


READ_ONLY = np.broadcast_to(np.float32(1), (3,))


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"b": np.ones(3, int)}, ValueError, r"gradients\[1\]\['b'\]: expected dtype float32 or float64"),
        ({"b": READ_ONLY}, ValueError, "expected a writeable array"),
        ({"b": [1.0]}, TypeError, "expected a NumPy array because it changes in place, got list"),
        (np.ones(3), TypeError, "expected a mapping"),
    ],
)
def test_bad_gradients_leave_the_others_alone(bad: Any, error: type[Exception], words: str) -> None:
    good = {"a": np.full(3, 9.0)}
    for clip in (clip_grad_norm, clip_grad_value):
        with pytest.raises(error, match=words):
            clip([good, bad], 1.0)
    assert (good["a"] == 9).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1.0,), ValueError, "max_norm: expected a number of 0 or more, got -1"),
        ((np.nan,), ValueError, "max_norm"),
        (("words",), TypeError, "max_norm: expected a number"),
        ((1.0, "two"), TypeError, "norm_type: expected a number"),
        ((1.0, np.nan), ValueError, "norm_type"),
    ],
)
def test_bad_limits(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        clip_grad_norm({"a": np.ones(3)}, *arguments)
    with pytest.raises((ValueError, TypeError), match="clip_value"):
        clip_grad_value({"a": np.ones(3)}, -1.0)
