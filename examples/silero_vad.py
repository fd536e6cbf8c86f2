"""Find the speech in a WAV file with Silero VAD, without PyTorch: convolutions in NumPy, the LSTM by nblstm.

::

    pip install --no-deps silero-vad==6.2.3
    python examples/silero_vad.py tests/data/speech.wav

The package brings the weights as its authors exported them from PyTorch, in a TorchScript file. Its code is not used:
importing it would import torch. ``--stream`` goes through the audio as it would come from a microphone, 32 ms a call.
The probabilities have the same bits as in one call over everything, and so the segments are the same.

Each chunk of 32 ms, and the 4 ms before it, become four frames of 16 ms; four convolutions turn the frames' spectrum
into 128 features; an LSTM remembers what came before; and a last layer says how probably there is speech in the chunk.
The shapes in letters: S samples, N chunks, C channels in, O channels out, K taps of a convolution, L frames.
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

import nblstm
from nblstm.errors import message

Floats: TypeAlias = npt.NDArray[np.float32]
State: TypeAlias = tuple[Floats, tuple[Floats, Floats] | None]  # the last 4 ms of audio; h and c of the LSTM
Segment: TypeAlias = tuple[int, int]  # its first sample, and the one after its last

CHUNK_MS, CONTEXT_MS, HOP_MS = 32, 4, 8  # a chunk, what the network sees before it, from one frame to the next
STRIDES = 1, 2, 2, 1  # of the four convolutions, which turn four frames into one
NETWORKS = {16000: "_model.", 8000: "_model_8k."}  # the file holds one for either rate, in samples a second
HYSTERESIS = 0.15  # speech begins at the threshold, and ends this far below it
BLOCK = 64  # chunks whose features are computed at once, so that memory does not grow with the audio


class SileroVAD:
    """The network for audio of `rate` samples a second, 16000 or 8000, with the weights of ``silero_vad.jit``.

    Raises
    ------
    ValueError
        Another rate, or the weights of something else.
    """

    def __init__(self, weights: Mapping[str, Floats], rate: int = 16000) -> None:
        if rate not in NETWORKS:
            raise ValueError(message("rate", "16000 or 8000 samples a second", rate, hint="Resample the audio first"))
        prefix = NETWORKS[rate]
        own = {name[len(prefix) :]: array for name, array in weights.items() if name.startswith(prefix)}
        if "stft.forward_basis_buffer" not in own:
            found = ", ".join(list(weights)[:3])
            raise ValueError(message("weights", "those of silero_vad.jit", found, hint="Take it from silero-vad 6.2.3"))
        self.rate = rate
        self.fourier = own["stft.forward_basis_buffer"]  # (K + 2, 1, K): windowed cosines, then windowed sines
        layers = [f"encoder.{i}.reparam_conv." for i in range(len(STRIDES))]
        self.encoder = [(own[layer + "weight"], own[layer + "bias"]) for layer in layers]  # (O, C, 3), (O,)
        names = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
        self.lstm = nblstm.LSTM.from_state_dict({f"{name}_l0": own[f"decoder.rnn.{name}"] for name in names})
        self.head = own["decoder.decoder.2.weight"], own["decoder.decoder.2.bias"]  # (1, 128, 1), (1,)

    def __call__(self, samples: Floats, state: State | None = None) -> tuple[Floats, State]:
        """Return the probability of speech in each chunk of the samples (S,), and the state to go on from.

        Samples are between -1 and 1. Zeros fill up the last chunk: give whole chunks, of 32 ms, in all calls but the
        last one. How many of them come in a call does not change a bit.
        """
        context, hx = state or (np.zeros(self._samples(CONTEXT_MS), np.float32), None)
        chunks = self.reframe(samples, context)
        blocks = [chunks[first : first + BLOCK] for first in range(0, len(chunks), BLOCK)]
        features = np.concatenate([self.encode(block) for block in blocks])
        hidden, hx = self.lstm(features, hx)
        return self.decode(hidden), (chunks[-1, -len(context) :], hx)

    def reframe(self, samples: Floats, context: Floats) -> Floats:
        """Return the chunks of the samples, each behind the 4 ms before it: (N, 36 ms)."""
        filling = np.zeros(-len(samples) % self._samples(CHUNK_MS), np.float32)
        chunks = np.concatenate([samples, filling]).reshape(-1, self._samples(CHUNK_MS))
        contexts = np.concatenate([context[None], chunks[:-1, -len(context) :]])
        return np.concatenate([contexts, chunks], axis=1)

    def encode(self, chunks: Floats) -> Floats:
        """Return the features (N, 128) of chunks with their contexts (N, 36 ms)."""
        mirrored = chunks[:, -2 : -2 - self._samples(CONTEXT_MS) : -1]  # each chunk goes on backwards for 4 ms
        audio = np.concatenate([chunks, mirrored], axis=1)[:, None]  # (N, 1, 40 ms)
        real, imaginary = np.split(convolve(audio, self.fourier, self._samples(HOP_MS)), 2, axis=1)
        x: Floats = np.sqrt(real**2 + imaginary**2)  # (N, K/2 + 1, 4)
        for (weight, bias), stride in zip(self.encoder, STRIDES, strict=True):
            x = relu(convolve(pad(x), weight, stride) + bias[:, None])
        return x.squeeze(2)  # the one frame that is left

    def decode(self, hidden: Floats) -> Floats:
        """Return the probabilities (N,) from the outputs of the LSTM (N, 128)."""
        weight, bias = self.head
        return sigmoid(convolve(relu(hidden)[:, :, None], weight) + bias).reshape(-1)

    def _samples(self, milliseconds: int) -> int:
        return self.rate * milliseconds // 1000


def convolve(x: Floats, weight: Floats, stride: int = 1) -> Floats:
    """Return the convolution of x (N, C, L) with weight (O, C, K), (N, O, L'), as ``torch.nn.functional.conv1d``.

    Each of the N is a matrix product of its own, always of one shape: one over all could round otherwise for another N.
    """
    outputs, channels, taps = weight.shape
    starts = np.arange(0, x.shape[2] - taps + 1, stride)  # (L',)
    windows = x.take(np.arange(taps)[:, None] + starts, axis=2)  # (N, C, K, L')
    product: Floats = weight.reshape(outputs, -1) @ windows.reshape(len(x), channels * taps, -1)
    return product


def pad(x: Floats) -> Floats:
    """Return x (N, C, L) between two frames of zeros: (N, C, L + 2)."""
    zeros = np.zeros((*x.shape[:2], 1), np.float32)
    return np.concatenate([zeros, x, zeros], axis=2)


def relu(x: Floats) -> Floats:
    """Return max(x, 0)."""
    return np.maximum(x, np.float32(0))


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + e^-x)."""
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def find_speech(
    probabilities: Floats,
    rate: int,
    length: int,
    *,
    threshold: float = 0.5,
    min_speech_duration_ms: int = 250,
    min_silence_duration_ms: int = 100,
    speech_pad_ms: int = 30,
) -> list[Segment]:
    """Return the segments of speech in audio of `length` samples, given the probability of each chunk.

    Speech begins at `threshold`, and ends where the probability falls below ``threshold - 0.15`` and does not come back
    to `threshold` before `min_silence_duration_ms` have passed. What is no longer than `min_speech_duration_ms` is left
    out. Then each segment grows at both ends by `speech_pad_ms`, or by half the silence there if that is shorter.
    """
    chunk, shortest, pause, padding = (
        rate * milliseconds // 1000
        for milliseconds in (CHUNK_MS, min_speech_duration_ms, min_silence_duration_ms, speech_pad_ms)
    )
    found = speech_before_pauses(probabilities.tolist(), chunk, length, threshold, pause)
    return widen([(start, end) for start, end in found if end - start > shortest], padding, length)


def speech_before_pauses(
    probabilities: Iterable[float], chunk: int, length: int, threshold: float, pause: int
) -> Iterator[Segment]:
    """Yield each segment, from its first chunk at `threshold` to where a silence of `pause` samples begins."""
    start = silence = None
    for index, probability in enumerate(probabilities):
        now = index * chunk
        if probability >= threshold:
            start, silence = now if start is None else start, None
        elif start is not None and probability < max(threshold - HYSTERESIS, 0.01):
            silence = now if silence is None else silence
            if now - silence >= pause:
                yield start, silence
                start = silence = None
    if start is not None:
        yield start, length


def widen(segments: list[Segment], padding: int, length: int) -> list[Segment]:
    """Return the segments with `padding` more samples at both ends, or half the gap between two that are near."""
    starts = [start for start, _ in segments]
    ends = [end for _, end in segments]
    first = [min(padding, start) for start in starts[:1]]
    between = [min(padding, (start - end) // 2) for start, end in zip(starts[1:], ends[:-1], strict=True)]
    last = [min(padding, length - end) for end in ends[-1:]]
    grown = zip(segments, first + between, between + last, strict=True)
    return [(start - before, end + after) for (start, end), before, after in grown]


def read_wav(path: Path) -> tuple[Floats, int]:
    """Return the samples (S,) of a WAV file of 16-bit PCM, its channels mixed down to one, and the rate.

    Raises
    ------
    ValueError
        It is no such file, or has no samples, or another rate than the network's two.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, rate, bits = file.getnchannels(), file.getframerate(), 8 * file.getsampwidth()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(message(str(path), "a WAV file of 16-bit PCM", str(error) or "less than that")) from error
    if bits != 16 or not data:
        raise ValueError(message(str(path), "samples of 16 bits", f"{bits} bits" if data else "no samples"))
    if rate not in NETWORKS:
        hint = f"Resample it, for example: ffmpeg -i {path} -ar 16000 resampled.wav"
        raise ValueError(message(str(path), "16000 or 8000 samples a second", rate, hint=hint))
    values = np.frombuffer(data, np.int16, len(data) // (2 * channels) * channels)  # whole frames, should it be cut off
    return values.reshape(-1, channels).mean(axis=1, dtype=np.float32) / np.float32(32768), rate


def find_weights() -> Path:
    """Return where the package silero-vad has its TorchScript file, without importing the package.

    Raises
    ------
    FileNotFoundError
        It is not installed.
    """
    try:  # as a distribution: the module of that name would be this file
        return Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")))
    except PackageNotFoundError as error:
        hint = "pip install --no-deps silero-vad==6.2.3, or say where they are: --weights FILE"
        raise FileNotFoundError(message("weights", "the package silero-vad", "none installed", hint=hint)) from error


def stream(vad: SileroVAD, samples: Floats) -> Floats:
    """Return the probabilities (N,) of the samples (S,), computed one chunk a call."""
    chunk = vad.rate * CHUNK_MS // 1000
    probabilities: list[Floats] = []
    state: State | None = None
    for first in range(0, len(samples), chunk):
        probability, state = vad(samples[first : first + chunk], state)
        probabilities.append(probability)
    return np.concatenate(probabilities)


def run(args: argparse.Namespace) -> None:
    """Print the segments of speech in ``args.wav``, and how fast they were found."""
    samples, rate = read_wav(args.wav)
    vad = SileroVAD(nblstm.load(args.weights or find_weights()), rate)
    vad(samples[:1])  # the first call compiles the LSTM
    start = time.perf_counter()
    probabilities = stream(vad, samples) if args.stream else vad(samples)[0]
    seconds = time.perf_counter() - start
    for first, end in find_speech(probabilities, rate, len(samples)):
        print(f"speech from {first / rate:7.2f} s to {end / rate:7.2f} s")
    duration, how = len(samples) / rate, "32 ms a call" if args.stream else "in one call"
    print(f"{duration:.1f} s of audio, {how}: {seconds:.3f} s, {duration / seconds:.0f} times as fast as it plays")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line; a file that cannot be used ends the program with one line that says why."""
    parser = argparse.ArgumentParser(description="Find the speech in a WAV file with Silero VAD, without PyTorch.")
    parser.add_argument("wav", metavar="WAV", type=Path, help="16-bit PCM, 16000 or 8000 samples a second")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="silero_vad.jit (default: the package's)")
    parser.add_argument("--stream", action="store_true", help="one chunk of 32 ms a call, as from a microphone")
    try:
        run(parser.parse_args(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"silero_vad: {error}")


if __name__ == "__main__":
    main()
