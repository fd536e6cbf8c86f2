"""The example of Silero VAD: its parts beside PyTorch, and on real audio with the weights that its package brings."""

from __future__ import annotations

import runpy
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm.arrays import Array

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "tests" / "data" / "speech.wav"
FORECASTER = ROOT / "nblstm" / "commands" / "data" / "forecaster.pt"
silero = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "silero_vad.py")))
CONVOLUTIONS = ((128, None), (64, 128), (64, 64), (128, 64))  # channels out and in; None: of the spectrum


def random_weights(rate: int) -> dict[str, Array]:
    """Weights of the network's shapes, under the names in ``silero_vad.jit``; all drawn from normal distributions."""
    rng = np.random.default_rng(rate)
    taps = rate * 16 // 1000
    shapes = {"stft.forward_basis_buffer": (taps + 2, 1, taps), "decoder.decoder.2.weight": (1, 128, 1)}
    shapes |= {"decoder.rnn.weight_ih": (512, 128), "decoder.rnn.weight_hh": (512, 128)}
    for index, (channels_out, channels_in) in enumerate(CONVOLUTIONS):
        shapes[f"encoder.{index}.reparam_conv.weight"] = channels_out, channels_in or taps // 2 + 1, 3
    weights = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) / 2) for name, shape in shapes.items()}
    weights |= {
        f"encoder.{index}.reparam_conv.bias": rng.normal(size=size) for index, (size, _) in enumerate(CONVOLUTIONS)
    }
    weights |= {"decoder.rnn.bias_ih": rng.normal(size=512), "decoder.rnn.bias_hh": rng.normal(size=512)}
    weights["decoder.decoder.2.bias"] = rng.normal(size=1)
    return {silero.NETWORKS[rate] + name: array.astype(np.float32) for name, array in weights.items()}


def noise(rate: int, chunks: float) -> Array:
    """Return as many chunks of noise, by turns loud and low."""
    samples = np.random.default_rng(0).normal(size=int(chunks * rate * 32 // 1000))
    envelope = 0.1 + 4 * np.abs(np.sin(np.arange(len(samples)) / rate * 7))
    return np.asarray(samples * envelope, np.float32)


def torch_probabilities(torch: Any, weights: dict[str, Array], samples: Array, rate: int) -> Array:
    """The probability of each chunk by PyTorch in float64, computed one after the other."""
    own = {name[len(silero.NETWORKS[rate]) :]: torch.tensor(array).double() for name, array in weights.items()}
    conv1d, chunk, context = torch.nn.functional.conv1d, rate * 32 // 1000, rate * 4 // 1000
    audio = np.concatenate([np.zeros(context), samples, np.zeros(-len(samples) % chunk)])
    cell = torch.nn.LSTMCell(128, 128).double()
    cell.load_state_dict({name: own[f"decoder.rnn.{name}"] for name in cell.state_dict()})
    state, probabilities = None, []
    for first in range(0, len(audio) - context, chunk):
        x = torch.tensor(audio[first : first + context + chunk])[None]
        x = torch.nn.functional.pad(x, [0, context], mode="reflect")[:, None]
        real, imaginary = conv1d(x, own["stft.forward_basis_buffer"], stride=rate * 8 // 1000).chunk(2, dim=1)
        x = (real**2 + imaginary**2).sqrt()
        for index, stride in enumerate([1, 2, 2, 1]):
            layer = own[f"encoder.{index}.reparam_conv.weight"], own[f"encoder.{index}.reparam_conv.bias"]
            x = conv1d(x, *layer, stride=stride, padding=1).relu()
        state = cell(x[:, :, 0], state)
        x = conv1d(state[0].relu()[:, :, None], own["decoder.decoder.2.weight"], own["decoder.decoder.2.bias"])
        probabilities.append(x.sigmoid().item())
    return np.array(probabilities)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_the_network_is_that_of_torch(torch: Any, rate: int) -> None:
    weights, samples = random_weights(rate), noise(rate, 20.3)
    with torch.inference_mode():
        expected = torch_probabilities(torch, weights, samples, rate)
    probabilities, _ = silero.SileroVAD(weights, rate)(samples)
    assert probabilities.shape == (21,)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_how_many_chunks_come_in_a_call_does_not_change_a_bit(rate: int) -> None:
    vad, samples = silero.SileroVAD(random_weights(rate), rate), noise(rate, 150.3)
    whole, state = vad(samples)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(silero.stream(vad, samples), whole)
    chunk, then, pieces = rate * 32 // 1000, None, []
    for piece in np.split(samples, [chunk, 8 * chunk, 73 * chunk]):
        probabilities, then = vad(piece, then)
        pieces.append(probabilities)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(then[0], state[0])
    np.testing.assert_array_equal(then[1], state[1])


def test_weights_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights: expected those of silero_vad\.jit, got mean, scale, lstm"):
        silero.SileroVAD(nblstm.load(FORECASTER))
    with pytest.raises(ValueError, match="rate: expected 16000 or 8000 samples a second, got 44100"):
        silero.SileroVAD(random_weights(8000), 44100)


# Chunks of 512 samples: 100 ms of silence are 3.1 of them, 250 ms of speech are 7.8, and 30 ms are 480 samples.
@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        pytest.param([], [], id="no audio"),
        pytest.param([0.1] * 20, [], id="none"),
        pytest.param([0.4] * 20, [], id="below the threshold"),
        pytest.param([0.9] * 20, [(0, 20 * 512)], id="all"),
        pytest.param([0.1] * 4 + [0.5] * 8 + [0.3] * 8, [(4 * 512 - 480, 12 * 512 + 480)], id="one"),
        pytest.param([0.1] * 4 + [0.9] * 7 + [0.1] * 9, [], id="too short"),
        pytest.param([0.1] * 13 + [0.9] * 7, [], id="too short at the end"),
        pytest.param([0.1] * 4 + [0.5] + [0.4] * 9 + [0.1] * 6, [(4 * 512 - 480, 14 * 512 + 480)], id="hysteresis"),
        pytest.param([0.9] * 8 + [0.1] * 4 + [0.9] * 8, [(0, 20 * 512)], id="a short pause"),
        pytest.param(
            [0.9] * 8 + [0.1] * 5 + [0.9] * 8, [(0, 8 * 512 + 480), (13 * 512 - 480, 21 * 512)], id="a long pause"
        ),
    ],
)
def test_speech_from_probabilities(probabilities: list[float], expected: list[tuple[int, int]]) -> None:
    found = silero.find_speech(np.array(probabilities, np.float32), 16000, 512 * len(probabilities))
    assert found == expected


def test_neighbours_share_the_silence_between_them() -> None:
    probabilities = np.array([0.9] * 8 + [0.1] * 4 + [0.9] * 8, np.float32)
    found = silero.find_speech(probabilities, 16000, 20 * 512, min_silence_duration_ms=32, speech_pad_ms=100)
    assert found == [(0, 10 * 512), (10 * 512, 20 * 512)]


def write_wav(path: Path, frames: Array, rate: int = 16000) -> Path:
    """Write frames (S, channels) of int16 or uint8."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(frames.shape[1])
        file.setsampwidth(frames.itemsize)
        file.setframerate(rate)
        file.writeframes(frames.tobytes())
    return path


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    frames = np.array([[-32768, -32768], [16384, 0], [100, 300]], np.int16)
    samples, rate = silero.read_wav(write_wav(tmp_path / "stereo.wav", frames, 8000))
    assert rate == 8000 and samples.dtype == np.float32
    np.testing.assert_array_equal(samples, np.array([-1, 0.25, 200 / 32768], np.float32))


def test_a_file_that_is_cut_off_is_read_to_its_last_whole_frame(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "cut.wav", np.arange(12, dtype=np.int16).reshape(6, 2))
    path.write_bytes(path.read_bytes()[:-5])
    assert len(silero.read_wav(path)[0]) == 4


@pytest.mark.parametrize(
    ("frames", "rate", "words"),
    [
        (np.zeros((9, 1), np.int16), 44100, "expected 16000 or 8000 samples a second, got 44100. Resample it"),
        (np.zeros((9, 1), np.uint8), 16000, "expected samples of 16 bits, got 8 bits"),
        (np.zeros((0, 1), np.int16), 16000, "expected samples of 16 bits, got no samples"),
    ],
)
def test_other_audio_is_refused(tmp_path: Path, frames: Array, rate: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        silero.read_wav(write_wav(tmp_path / "other.wav", frames, rate))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all" * 9])
def test_what_is_no_wav_file_ends_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.wav"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"^silero_vad: .*other\.wav: expected a WAV file of 16-bit PCM, got .+$"):
        silero.main([str(path)])


def test_without_the_package_it_says_how_to_get_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match=r"pip install --no-deps silero-vad==6\.2\.3, or .* --weights FILE"):
        silero.main([str(SPEECH)])


@pytest.fixture(scope="module")
def weights_file() -> Path:
    """The TorchScript file of the installed package silero-vad."""
    try:
        path: Path = silero.find_weights()
    except FileNotFoundError:
        pytest.skip("silero-vad is not installed: pip install --no-deps silero-vad==6.2.3")
    return path


@pytest.fixture(scope="module")
def weights(weights_file: Path) -> dict[str, Array]:
    loaded: dict[str, Array] = nblstm.load(weights_file)
    return loaded


@pytest.fixture(scope="module")
def session(weights_file: Path) -> Callable[[str], Any]:
    """Makes ONNX Runtime's session of a model of the package."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return lambda name: onnxruntime.InferenceSession(str(weights_file.with_name(name)), options)


def test_real_speech_has_the_probabilities_of_onnxruntime(
    weights: dict[str, Array], session: Callable[[str], Any]
) -> None:
    samples, rate = silero.read_wav(SPEECH)
    vad, zeros = silero.SileroVAD(weights, rate), np.zeros((1, 1, 128), np.float32)
    probabilities, (_, (h_n, c_n)) = vad(samples)
    inputs = {"input": vad.reframe(samples, zeros[0, 0, :64]), "h": zeros, "c": zeros}
    expected, *states = session("silero_vad_16k_sequence.onnx").run(None, inputs)
    assert len(probabilities) == 182 and np.ptp(expected) > 0.95
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.stack([h_n, c_n])[:, None], states, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(silero.stream(vad, samples), probabilities)


def test_real_speech_at_half_the_rate_has_the_probabilities_of_onnxruntime(
    weights: dict[str, Array], session: Callable[[str], Any]
) -> None:
    samples = silero.read_wav(SPEECH)[0][::2]
    vad, state, expected = silero.SileroVAD(weights, 8000), np.zeros((2, 1, 128), np.float32), []
    model = session("silero_vad.onnx")
    for chunk in vad.reframe(samples, np.zeros(32, np.float32)):
        probability, state = model.run(None, {"input": chunk[None], "state": state, "sr": np.array(8000)})
        expected.append(probability.item())
    probabilities, _ = vad(samples)
    assert np.ptp(expected) > 0.9
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(silero.stream(vad, samples), probabilities)


@pytest.fixture
def package(torch: Any, weights_file: Path) -> Any:
    """The package silero-vad itself, which needs torch."""
    return pytest.importorskip("silero_vad.utils_vad")


@pytest.mark.filterwarnings("ignore")
def test_real_speech_has_the_segments_of_the_package(package: Any, torch: Any, weights_file: Path) -> None:
    samples, rate = silero.read_wav(SPEECH)
    expected = package.get_speech_timestamps(torch.tensor(samples), package.init_jit_model(str(weights_file)))
    probabilities, _ = silero.SileroVAD(nblstm.load(weights_file), rate)(samples)
    found = silero.find_speech(probabilities, rate, len(samples))
    assert len(found) == 2
    assert found == [(segment["start"], segment["end"]) for segment in expected]


@pytest.mark.filterwarnings("ignore")
def test_probabilities_mean_the_segments_of_the_package(package: Any) -> None:
    rng = np.random.default_rng(0)
    found_at_all = 0
    for _ in range(300):
        levels = rng.random(rng.integers(1, 60))
        probabilities = np.repeat(levels, rng.integers(1, 14, len(levels))).astype(np.float32)
        rate = int(rng.choice([8000, 16000]))
        length = len(probabilities) * rate * 32 // 1000 - int(rng.integers(0, 200))
        options = {
            "threshold": float(rng.choice([0.1, 0.3, 0.5, 0.7])),
            "min_speech_duration_ms": int(rng.choice([0, 64, 250])),
            "min_silence_duration_ms": int(rng.choice([0, 32, 100, 500])),
            "speech_pad_ms": int(rng.choice([0, 30, 200])),
        }
        expected = package.get_speech_timestamps_from_probs(
            probabilities.tolist(), rate, audio_length_samples=length, **options
        )
        found = silero.find_speech(probabilities, rate, length, **options)
        assert found == [(segment["start"], segment["end"]) for segment in expected], options
        found_at_all += len(found)
    assert found_at_all > 500


def test_the_program_finds_the_same_speech_in_both_ways(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    silero.main([str(SPEECH)])
    *whole, speed = capsys.readouterr().out.splitlines()
    assert whole == ["speech from    0.48 s to    2.56 s", "speech from    2.79 s to    4.70 s"]
    assert speed.startswith("5.8 s of audio, in one call: ") and speed.endswith(" times as fast as it plays")
    silero.main([str(SPEECH), "--stream", "--weights", str(weights_file)])
    *streamed, speed = capsys.readouterr().out.splitlines()
    assert streamed == whole
    assert speed.startswith("5.8 s of audio, 32 ms a call: ")
