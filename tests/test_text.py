"""Text as numbers: vocabularies, and batches that are functions of the step."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nblstm.training import RandomBatches, SequentialBatches, Vocabulary, one_hot

KINDS = [SequentialBatches, RandomBatches]


@given(st.text(st.characters(), min_size=1))
def test_any_text_comes_back_from_its_numbers(text: str) -> None:
    vocabulary = Vocabulary(text)
    numbers = vocabulary.encode(text)
    assert numbers.dtype == np.int64 and numbers.shape == (len(text),)
    assert set(numbers.tolist()) == set(range(len(vocabulary)))
    assert vocabulary.decode(numbers) == text


def test_what_a_vocabulary_refuses() -> None:
    vocabulary = Vocabulary("abc")
    assert vocabulary.encode("").shape == (0,)
    with pytest.raises(ValueError, match=r"Vocabulary.encode text: expected characters of 'abc', got 'd' at place 1"):
        vocabulary.encode("ad")
    with pytest.raises(TypeError, match=r"Vocabulary.encode text: expected a str, got bytes"):
        vocabulary.encode(b"a")  # type: ignore[arg-type]
    for number in (-1, 3):
        with pytest.raises(IndexError, match=rf"0 ... 2, got {number}"):
            vocabulary.decode([0, number])
    with pytest.raises(ValueError, match="one character or more"):
        Vocabulary("")
    with pytest.raises(TypeError, match="a str, got bytes"):
        Vocabulary(b"abc")  # type: ignore[arg-type]


@st.composite
def partitions(draw: Any) -> Any:
    batch, steps = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    length = batch * steps + 1 + draw(st.integers(0, 60))
    kind, seed = draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**40))
    return kind(np.arange(length), batch, steps, seed=seed)


@given(partitions(), st.integers(0, 3))
def test_batches_cut_the_text_into_disjoint_pieces(batches: Any, epoch: int) -> None:
    found = [batches(epoch * len(batches) + place) for place in range(len(batches))]
    for batch in found:
        assert batch.tokens.shape == batch.targets.shape == (batches.num_steps, batches.batch_size)
        np.testing.assert_array_equal(batch.targets, batch.tokens + 1)  # the text is 0, 1, 2, ...
        np.testing.assert_array_equal(np.diff(batch.tokens, axis=0), 1)
    tokens = np.stack([batch.tokens for batch in found]).ravel()
    assert len(set(tokens.tolist())) == tokens.size
    left_out = len(batches.tokens) - 1 - tokens.size
    assert left_out < batches.num_steps * batches.batch_size  # no further batch would have fitted


@given(partitions(), st.integers(0, 20))
def test_a_batch_is_a_function_of_the_step(batches: Any, step: int) -> None:
    again = type(batches)(batches.tokens, batches.batch_size, batches.num_steps, seed=batches.seed)
    for later in range(step):
        batches(later)
    for one, other in zip(batches(step), again(step), strict=True):
        np.testing.assert_array_equal(one, other)


@given(partitions())
def test_sequential_batches_go_on_where_the_last_one_ended(batches: Any) -> None:
    found = [batches(place) for place in range(len(batches) + 1)]
    if isinstance(batches, RandomBatches):
        assert all(batch.begins for batch in found)
        return
    assert [batch.begins for batch in found] == [True] + [False] * (len(batches) - 1) + [True]
    for before, after in itertools.pairwise(found[:-1]):
        np.testing.assert_array_equal(after.tokens[0], before.targets[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_and_seeds_differ(kind: Any) -> None:
    firsts = {kind(np.arange(5000), 4, 50, seed=seed)(step).tokens.tobytes() for seed in range(3) for step in (0, 24)}
    assert len(firsts) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_what_batches_refuse(kind: Any) -> None:
    text = np.arange(13)
    assert len(kind(text, 3, 4)) == 1
    with pytest.raises(ValueError, match=r"expected 14 or more because batch_size=1 and num_steps=13, got 13"):
        kind(text, 1, 13)
    with pytest.raises(ValueError, match=r"tokens: expected \(N,\), got \(1, 13\)"):
        kind(text[None], 3, 4)
    with pytest.raises(TypeError, match="whole numbers, got dtype float64"):
        kind(text * 1.0, 3, 4)
    with pytest.raises(ValueError, match="batch_size must be greater than zero"):
        kind(text, 0, 4)
    with pytest.raises(TypeError, match="seed: expected a whole number"):
        kind(text, 3, 4, seed=None)
    with pytest.raises(ValueError, match="seed: expected 0 or more, got -1"):
        kind(text, 3, 4, seed=-1)
    with pytest.raises(ValueError, match="step: expected 0 or more, got -1"):
        kind(text, 3, 4)(-1)


def test_one_hot() -> None:
    numbers = np.random.default_rng(0).integers(7, size=(3, 4, 5))
    for dtype in (np.float32, np.float64):
        found = one_hot(numbers, 7, dtype=dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.eye(7)[numbers])
    assert one_hot(3, 5).tolist() == [0, 0, 0, 1, 0]
    assert one_hot(np.zeros((0, 2), np.int64), 5).shape == (0, 2, 5)
    for wrong, error in (([7], IndexError), ([-1], IndexError), ([0.5], TypeError)):
        with pytest.raises(error, match="one_hot indices: expected"):
            one_hot(wrong, 7)
    with pytest.raises(TypeError, match="float32 or float64"):
        one_hot([1], 7, dtype=np.int64)
    with pytest.raises(ValueError, match="num_classes must be greater than zero"):
        one_hot([], 0)
