"""The recurrent language model: beside torch's of the same structure, its states, perplexity and samples."""

from __future__ import annotations

import copy
import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm.training import Adam, RecurrentLanguageModel, SequentialBatches, Trainer, Vocabulary, cross_entropy

ROOT = Path(__file__).resolve().parent.parent
example = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "char_language_model.py")))

STRUCTURES = [
    {"cell": "LSTM"},
    {"cell": "LSTM", "embedding_dim": 5, "num_layers": 2},
    {"cell": "GRU", "embedding_dim": 11},
    {"cell": "RNN", "num_layers": 2},
]


@pytest.fixture(params=STRUCTURES, ids=lambda kwargs: "-".join(map(str, kwargs.values())))
def structure(request: pytest.FixtureRequest) -> Any:
    return request.param


def small(structure: Any, **options: Any) -> RecurrentLanguageModel:
    return RecurrentLanguageModel(9, 11, **{"seed": 0, **structure, **options})


def tokens_of(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(9, size=shape)


@pytest.fixture(scope="module")
def text() -> Any:
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8") + (ROOT / "LICENSE").read_text(encoding="utf-8")


def run_both(text: str, steps: int, **options: Any) -> tuple[Trainer, list[float], Any]:
    """Return a run of `steps`, torch's losses from the same weights on the same batches, and torch's model."""
    vocabulary = Vocabulary(text)
    batches = SequentialBatches(vocabulary.encode(text), 16, 25)
    model = RecurrentLanguageModel(len(vocabulary), 48, seed=0, **options)
    peer = example.TorchModel(model, 0.01, 1.0)
    trainer = Trainer(model, Adam(model.layers, lr=0.01), batches, max_norm=1.0)
    trainer.run(steps)
    return trainer, peer.train(batches, steps), peer


@pytest.mark.usefixtures("torch")
def test_200_steps_of_adam_follow_torchs(text: str) -> None:
    trainer, losses, peer = run_both(text, 200)
    np.testing.assert_allclose(trainer.losses[:20], losses[:20], rtol=1e-5)
    ours, theirs = trainer.perplexity(50), float(np.exp(np.mean(losses[-50:])))
    assert losses[-1] < 0.7 * losses[0]
    assert ours == pytest.approx(theirs, rel=0.01)
    tokens = trainer.batches.tokens  # type: ignore[attr-defined]
    assert trainer.model.perplexity(tokens) == pytest.approx(peer.perplexity(tokens), rel=0.01)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("torch")
def test_twenty_steps_of_other_structures_follow_torchs(text: str, structure: Any) -> None:
    trainer, losses, _ = run_both(text, 20, **structure)
    np.testing.assert_allclose(trainer.losses, losses, rtol=1e-5)


def test_the_gradients_are_torchs(torch: Any, structure: Any) -> None:
    model = small(structure, dtype=np.float64)
    module = example.TorchModel(model, 0.1, 1.0).module
    tokens, targets = tokens_of(6, 4), tokens_of(6, 4, seed=1)
    _, state = model(tokens_of(3, 4, seed=2))
    outcome = model.loss_and_gradients(tokens, targets, state)
    with torch.no_grad():
        _, begun = module(torch.tensor(tokens_of(3, 4, seed=2)), None)
    logits, _ = module(torch.tensor(tokens), begun)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-12)
    gradients = {name: g for entry in outcome.gradients for name, g in entry.parameters.items()}
    expected = {name.partition(".")[2]: p.grad.numpy() for name, p in module.named_parameters()}
    assert len(outcome.gradients) == len(model.layers)
    names = [name for layer in model.layers for name, _ in layer.named_parameters()]
    assert [n for e in outcome.gradients for n in e.parameters] == names
    for layer, entry in zip(("embedding", "rnn", "decoder")[-len(model.layers) :], outcome.gradients, strict=True):
        for name, gradient in entry.parameters.items():
            wanted = dict(module.named_parameters())[f"{layer}.{name}"].grad.numpy()
            np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-12)
    assert set(gradients) == set(expected)


def test_an_exported_model_of_torch_is_loaded(torch: Any, structure: Any, tmp_path: Path) -> None:
    module = example.TorchModel(small(structure), 0.1, 1.0).module
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    model = RecurrentLanguageModel.from_state_dict(nblstm.load(tmp_path / "model.pt"))
    assert repr(model) == repr(small(structure))
    assert list(model.state_dict()) == list(module.state_dict())
    logits, _ = model(tokens_of(6, 4))
    with torch.inference_mode():
        expected, _ = module(torch.tensor(tokens_of(6, 4)), None)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-6)


def test_pieces_of_a_text_have_the_bits_of_the_whole(structure: Any) -> None:
    model, tokens = small(structure), tokens_of(10, 3)
    whole, last = model(tokens, model.begin_state(3))
    first, state = model(tokens[:4])
    second, state = model(tokens[4:], state)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(np.asarray(state), np.asarray(last))
    alone, _ = model(tokens[:, 1])
    np.testing.assert_array_equal(alone, whole[:, 1])
    outcome = model.loss_and_gradients(tokens[4:], tokens[:6], model(tokens[:4])[1])
    assert outcome.loss == cross_entropy(second, tokens[:6])[0]


def test_a_state_dict_is_taken_as_a_whole_or_not_at_all(structure: Any) -> None:
    model, other = small(structure), small(structure, seed=1)
    before = model.state_dict()
    wrong = [
        {**other.state_dict(), "decoder.bias": np.zeros(8)},
        {**other.state_dict(), "decoder.bias": np.zeros(9, np.complex64)},
        {**other.state_dict(), "more": np.zeros(9)},
        {name: array for name, array in other.state_dict().items() if name != "decoder.bias"},
    ]
    for state_dict in wrong:
        with pytest.raises(RuntimeError, match=r"load_state_dict state_dict: expected the parameters of"):
            model.load_state_dict(state_dict)
        for name, array in model.state_dict().items():
            assert array is before[name] or np.shares_memory(array, before[name])
    model.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(model(tokens_of(5))[0], other(tokens_of(5))[0])
    prefixed = {f"model.{name}": array for name, array in other.state_dict().items()}
    loaded = RecurrentLanguageModel.from_state_dict({**prefixed, "losses": np.zeros(3)}, "model.")
    np.testing.assert_array_equal(loaded(tokens_of(5))[0], other(tokens_of(5))[0])


def test_what_from_state_dict_refuses() -> None:
    state = small(STRUCTURES[0]).state_dict()
    with pytest.raises(ValueError, match=r"expected one recurrent layer 'rnn', got only \['decoder.bias'\]"):
        RecurrentLanguageModel.from_state_dict({"decoder.bias": np.zeros(3)})
    with pytest.raises(ValueError, match="bias_hh"):
        RecurrentLanguageModel.from_state_dict({n: a for n, a in state.items() if n != "rnn.bias_hh_l0"})
    with pytest.raises(RuntimeError, match=r"missing \['decoder.weight'\]"):
        RecurrentLanguageModel.from_state_dict({n: a for n, a in state.items() if n != "decoder.weight"})
    both = nblstm.LSTM(9, 11, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"unexpected \['rnn.weight_ih_l0_reverse'"):
        RecurrentLanguageModel.from_state_dict({**state, **{f"rnn.{n}": a for n, a in both.named_parameters()}})


def test_perplexity_is_that_of_the_whole_text(structure: Any) -> None:
    model, tokens = small(structure), tokens_of(700)
    loss, _ = cross_entropy(model(tokens[:-1])[0], tokens[1:])
    assert model.perplexity(tokens) == pytest.approx(np.exp(loss), rel=1e-12)
    for wrong in ([3], np.zeros((4, 4), np.int64)):
        with pytest.raises(ValueError, match=r"\(N,\), two or more"):
            model.perplexity(wrong)


def test_dropout_is_for_training_alone() -> None:
    model = small(STRUCTURES[1], dropout=0.5)
    tokens = tokens_of(40)
    logits = [model(tokens, dropout_call=call)[0] for call in (1, 1, 2)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert (logits[0] != logits[2]).any()
    quiet = copy.deepcopy(model).eval()
    assert model.perplexity(tokens) == quiet.perplexity(tokens)
    assert list(model.sample([1], 9, seed=0)) == list(quiet.sample([1], 9, seed=0))
    assert model.rnn.training and not quiet.rnn.training


def test_a_sample_reads_what_it_has_drawn(structure: Any) -> None:
    model, prompt = small(structure), tokens_of(5)
    weight = 20 * np.random.default_rng(0).standard_normal((9, 11))
    model.decoder.set_parameters({"weight": weight, "bias": np.zeros(9)})
    model.rnn.set_parameters({name: 8 * array for name, array in model.rnn.named_parameters()})
    text = prompt.tolist()
    for _ in range(12):
        text.append(int(model(text)[0][-1].argmax()))
    assert list(model.sample(prompt, 12, temperature=0)) == text[5:]
    assert list(model.sample(prompt, 12, temperature=1e-300, seed=0)) == text[5:]
    assert len(set(text[5:])) > 1
    endless = model.sample(prompt, seed=1)
    assert list(itertools.islice(endless, 9)) == list(model.sample(prompt, 9, seed=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_sample_has_the_chances_of_the_scores(temperature: float) -> None:
    model = RecurrentLanguageModel(4, 3, seed=0)
    chances = np.array([0.5, 0.3, 0.2, 0.0])
    with np.errstate(divide="ignore"):
        model.decoder.set_parameters({"weight": np.zeros((4, 3)), "bias": np.log(chances)})
    drawn = np.bincount(list(model.sample([0], 3000, temperature=temperature, seed=0)), minlength=4) / 3000
    expected = chances ** (1 / temperature) / (chances ** (1 / temperature)).sum()
    assert np.abs(drawn - expected).max() < 0.03 and drawn[3] == 0


def test_a_sample_keeps_the_weights_it_began_with() -> None:
    model = small(STRUCTURES[0])
    expected = list(model.sample([1], 20, seed=0))
    sample = model.sample([1], 20, seed=0)
    model.decoder.set_parameters({"weight": np.zeros((9, 11))})
    assert list(sample) == expected


def test_what_it_refuses() -> None:
    model = small(STRUCTURES[0])
    with pytest.raises(ValueError, match="cell: expected 'LSTM' or 'GRU' or 'RNN', got 'lstm'"):
        RecurrentLanguageModel(9, 11, cell="lstm")
    with pytest.raises(ValueError, match="vocab_size must be greater than zero"):
        RecurrentLanguageModel(0, 11)
    for one in (model, small(STRUCTURES[1])):
        with pytest.raises(IndexError, match=r"0 ... 8"):
            one([[9]])
        with pytest.raises(IndexError, match=r"0 ... 8"):
            one.loss_and_gradients([[0]], [[9]])
        with pytest.raises(TypeError, match="whole numbers"):
            one([[0.5]])
    with pytest.raises(ValueError, match=r"prompt: expected .*one token or more"):
        model.sample([])
    with pytest.raises(ValueError, match="count: expected 0 or more"):
        model.sample([1], -1)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature: expected a finite number of 0 or more"):
            model.sample([1], temperature=temperature)
    with pytest.raises(TypeError, match="temperature: expected a number, got 'hot'"):
        model.sample([1], temperature="hot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="begin_state batch_size: expected 0 or more, got -1"):
        model.begin_state(-1)
