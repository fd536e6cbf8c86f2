"""The losses of nblstm.training: torch's values and gradients, the same bits for any split, NaN where torch has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nblstm
from nblstm.engine import losses as engine
from nblstm.kernels import activations, policy, team
from nblstm.kernels.simd import lanes_of, load, store
from nblstm.training import cross_entropy, l1_loss, mse_loss

run = team.run
LIMIT = {np.float32: 3e-6, np.float64: 1e-14}


def torch_cross_entropy(torch: Any, logits: Any, targets: Any, dtype: str, **options: Any) -> tuple[float, Any]:
    x = torch.tensor(logits, dtype=getattr(torch, dtype), requires_grad=True)
    flat = torch.tensor(np.asarray(targets, np.int64).reshape(-1))
    loss = torch.nn.functional.cross_entropy(x.reshape(-1, x.shape[-1]), flat, **options)
    loss.backward()
    return float(loss.detach()), x.grad.double().numpy()


@settings(max_examples=120)
@given(
    shape=st.lists(st.integers(0, 6), max_size=3).map(tuple),
    classes=st.integers(1, 70) | st.integers(1000, 1400),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    ignored=st.sampled_from([-100, 0, 3]),
    reduction=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
    parts=st.integers(1, 3),
)
def test_cross_entropy_against_torch(
    torch: Any,
    shape: Any,
    classes: int,
    scale: float,
    ignored: int,
    reduction: str,
    dtype: Any,
    seed: int,
    parts: int,
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((*shape, classes)) * scale).astype(dtype)
    targets = random.integers(0, classes, shape)
    targets = np.where(random.random(shape) < 0.2, ignored, targets)
    options = {"ignore_index": ignored, "reduction": reduction}
    expected = torch_cross_entropy(torch, logits, targets, "float64", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "workers_for", lambda alone, rows: min(parts, rows))
        patch.setattr(team, "run", lambda *arguments: run(*arguments[:-1], min(arguments[-1], 2)))
        loss, gradient = cross_entropy(logits, targets, **options)
    assert type(loss) is float and gradient.dtype == dtype and gradient.shape == logits.shape
    np.testing.assert_allclose(loss, expected[0], rtol=LIMIT[dtype], atol=LIMIT[dtype])
    np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=LIMIT[dtype])
    again, same = cross_entropy(logits, targets.astype(np.int32), **options)
    assert np.array_equal(gradient, same) and np.array_equal(again, loss, equal_nan=True)


@pytest.mark.parametrize("classes", [2, 30, 1000, 10_000])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_cross_entropy_is_as_accurate_as_torch(torch: Any, classes: int, scale: float) -> None:
    random = np.random.default_rng(0)
    logits, targets = (
        (random.standard_normal((60, classes)) * scale).astype(np.float32),
        random.integers(0, classes, 60),
    )
    exact = torch_cross_entropy(torch, logits, targets, "float64")
    peer = torch_cross_entropy(torch, logits, targets, "float32")
    own = cross_entropy(logits, targets)
    assert abs(own[0] - exact[0]) <= 3 * abs(peer[0] - exact[0]) + 2e-7 * exact[0]
    error, limit = (np.abs(gradient - exact[1]).max() for gradient in (own[1], peer[1]))
    assert error <= 3 * limit + 1e-9


def test_rows_are_given_to_threads_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((301, 1003)).astype(np.float32), random.integers(0, 1003, 301)
    given_threads = []
    monkeypatch.setattr(team, "run", lambda *arguments: given_threads.append(arguments[-1]) or run(*arguments))
    with nblstm.num_threads(1):
        loss, gradient = cross_entropy(logits, targets)
    with nblstm.num_threads(2):
        again, same = cross_entropy(logits, targets)
        cross_entropy(logits[:9, :40], targets[:9] % 40)
    assert given_threads == [1, 2, 1] and again == loss and np.array_equal(gradient, same)
    few = cross_entropy(logits[:7], targets[:7], reduction="sum")[1]
    assert np.array_equal(few, cross_entropy(logits, targets, reduction="sum")[1][:7])


def test_large_logits_do_not_overflow(dtype: Any) -> None:
    most = float(np.finfo(dtype).max)
    loss, gradient = cross_entropy(np.array([[most, 0, -most], [-most, -most, -most]], dtype), [0, 1])
    np.testing.assert_allclose(loss, np.log(3) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [1 / 6, -1 / 3, 1 / 6]], rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 40, 1003])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_that_of_torch(torch: Any, value: float, classes: int, dtype: Any) -> None:
    for place in (0, classes - 1):
        logits = np.random.default_rng(0).standard_normal((4, classes)).astype(dtype)
        logits[2, place] = value
        targets = np.full(4, 1)
        expected = torch_cross_entropy(torch, logits, targets, str(np.dtype(dtype)), reduction="sum")
        loss, gradient = cross_entropy(logits, targets, reduction="sum")
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
        np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-5)
        targets[2] = -100
        assert np.isfinite(cross_entropy(logits, targets)[0])
    logits[2] = -np.inf
    assert np.isnan(cross_entropy(logits, [1, 1, 1, 1])[0])
    logits[2], logits[2, 0] = 0, -np.inf
    assert cross_entropy(logits, [1, 1, 0, 1])[0] == np.inf


def test_nothing_that_counts(torch: Any) -> None:
    for logits in (np.ones((3, 5)), np.ones((0, 5))):
        targets = np.full(len(logits), -100)
        for reduction in ("mean", "sum"):
            loss, gradient = cross_entropy(logits, targets, reduction=reduction)
            expected = torch_cross_entropy(torch, logits, targets, "float64", reduction=reduction)
            assert np.array_equal(loss, expected[0], equal_nan=True) and not gradient.any()


def test_inputs_are_not_written_to() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 6, 8))[::2, ::-1, 1:]
    targets = np.zeros((10, 6), np.int8)
    expected = cross_entropy(logits.copy(), targets)
    logits.flags.writeable = targets.flags.writeable = False
    loss, gradient = cross_entropy(logits, targets)
    assert loss == expected[0] and np.array_equal(gradient, expected[1]) and gradient.flags.writeable


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(0, 6), max_size=3).map(tuple),
    name=st.sampled_from(["mse_loss", "l1_loss"]),
    reduction=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_errors_of_values_against_torch(torch: Any, shape: Any, name: str, reduction: str, dtype: Any) -> None:
    random = np.random.default_rng(0)
    values, target = (np.asarray(random.standard_normal(shape)).astype(dtype) for _ in range(2))
    values[random.random(shape) < 0.2] = 0
    target[values == 0] = 0
    x = torch.tensor(values.astype(np.float64), requires_grad=True)
    expected = getattr(torch.nn.functional, name)(x, torch.tensor(target.astype(np.float64)), reduction=reduction)
    expected.backward()
    loss, gradient = {"mse_loss": mse_loss, "l1_loss": l1_loss}[name](values, target, reduction=reduction)
    assert type(loss) is float and gradient.shape == shape and gradient.dtype == dtype
    np.testing.assert_allclose(loss, float(expected.detach()), rtol=LIMIT[dtype])
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=LIMIT[dtype])


def test_long_means_are_summed_in_float64() -> None:
    values = np.full(2**25, 0.1, np.float32)
    exact = float(np.float32(0.1))
    assert abs(l1_loss(values, np.zeros_like(values))[0] / exact - 1) < 1e-12
    assert np.isnan(mse_loss(np.array([np.nan, 1.0]), np.zeros(2))[0])


@policy.open_entry
def exp_of(x, y):
    for i in range(0, x.size, lanes_of(x)):
        store(y, i, activations.exp_of_negative(load(x, i)))


def test_exp(dtype: Any) -> None:
    x = np.linspace(-120, 0, 1_000_000).astype(dtype)
    y = np.empty_like(x)
    exp_of(x, y)
    exact = np.exp(x.astype(np.longdouble))
    normal = exact > np.finfo(dtype).tiny
    assert np.max(np.abs(y - exact)[normal] / np.spacing(exact[normal].astype(dtype))) < 2
    assert np.all(y[~normal] <= np.finfo(dtype).tiny)
    ends = np.zeros(64, dtype)
    ends[:4] = -np.inf, np.nan, -1e30, -0.0
    exp_of(ends, y[:64])
    assert np.array_equal(y[:5], np.array([0, np.nan, 0, 1, 1], dtype), equal_nan=True)


SCORES = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cross_entropy(SCORES, [0, 3]), IndexError, "targets: expected 0 ... 2 because there are 3 classes"),
        (lambda: cross_entropy(SCORES, [0, -1]), IndexError, "ignore_index=-100, got -1"),
        (lambda: cross_entropy(SCORES, [0.0, 1.0]), TypeError, "cross_entropy targets: expected whole numbers"),
        (lambda: cross_entropy(SCORES, [True, False]), TypeError, "got dtype bool"),
        (lambda: cross_entropy(SCORES, [0, 1, 2]), ValueError, r"targets: expected \(2,\) because of the logits"),
        (lambda: cross_entropy(SCORES.astype(int), [0, 1]), TypeError, "cross_entropy logits: expected float32"),
        (
            lambda: cross_entropy(np.float64(1), 0),
            ValueError,
            r"expected \(\.\.\., C\) with one class or more, got \(\)",
        ),
        (lambda: cross_entropy(np.zeros((2, 0)), [0, 0]), ValueError, "one class or more"),
        (lambda: cross_entropy(SCORES, [0, 1], reduction="none"), ValueError, "expected 'mean' or 'sum', got 'none'"),
        (lambda: cross_entropy(SCORES, [0, 1], ignore_index=0.5), TypeError, "ignore_index: expected a whole number"),
        (lambda: mse_loss(SCORES, SCORES[0]), ValueError, r"mse_loss target: expected \(2, 3\)"),
        (lambda: mse_loss(SCORES, SCORES.astype(np.float32)), ValueError, "expected dtype float64, as the input"),
        (lambda: l1_loss(SCORES, SCORES, reduction=1), ValueError, "l1_loss reduction"),
        (lambda: l1_loss("words", SCORES), TypeError, "l1_loss input: expected an array"),
    ],
)
def test_errors(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
