"""Put what ``bench --json`` measured into the documents.

    python -m nblstm bench --json two.json
    python -m nblstm bench --json one.json --threads 1
    python -m nblstm bench --json training.json --train
    python -m nblstm bench --json steps.json --set steps
    python -m benchmarks.publish two.json one.json training.json steps.json

docs/benchmarks.md gets every file's table, docs/benchmarks.png shows the first file, and the README the summaries of
the first file, of the first one about training and of the first one about cells and streams. All three are written
anew; the README's part stands between two comments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nblstm.commands.benchmark.plot import save_png
from nblstm.commands.benchmark.report import (
    LEGEND,
    Table,
    compared,
    conditions,
    limits,
    losses,
    problems,
    speed,
    steps,
    table,
    tails,
)
from nblstm.commands.benchmark.results import CaseResult, Results, geometric_mean, load_results, mean_speed

from .documents import ROOT, replace_part


def summary(results: Results) -> Table:
    """Return a row for each group of cases: its means, and its worst case."""
    rows = []
    for group, cases in results.groups().items():
        shares = [share for case in cases if (share := results.share(case)) is not None]
        share = geometric_mean(shares)
        rows.append([group, *_speeds(results, cases), f"{share:.0%}" if share else ""])
    rows.append(["all", *_speeds(results, results.cases), ""])
    best, others = compared(results)[:1], compared(results)[1:]
    return Table(["", "cases", *best, *["the worst"] * len(best), *others, "of limit"], rows, left=1)


def _speeds(results: Results, cases: list[CaseResult]) -> list[str]:
    """Return the number of cases, the mean and the worst speed against the best peer, and the means against others."""
    means = [speed(mean_speed(cases, peer)) for peer in results.compared]
    worst = min((factor for case in cases if (factor := case.speed(None)) is not None), default=None)
    return [str(len(cases)), *means[:1], *[speed(worst)] * len(means[:1]), *means[1:]]


def readme_part(runs: list[Results]) -> str:
    """Return the README's section on speed."""
    results = runs[0]
    training, stepped = (next((run for run in runs if told(run)), None) for told in (_trains, _steps))
    parts = [
        "How many times as fast as its peers nblstm is in the forward pass, in geometric means; the peers are "
        f"{_named([name for name in results.engines if name != 'nblstm'])}, each with the same number of threads "
        "and in a process of its own, and the best peer is the fastest of them at each case. The last column is "
        "the share of what this machine allows.",
        summary(results).markdown(),
        losses(results),
        "![Time of each engine, in times of nblstm's, and the share of the machine's limit](docs/benchmarks.png)",
        "\n".join(f"- {line}" for line in conditions(results)),
    ]
    if training is not None:
        peers = _named([name for name in training.engines if name != "nblstm"])
        parts += [
            "The forward and the backward pass together, to the gradients of all weights and the input; the peer is "
            f"{peers}.",
            summary(training).markdown(),
            losses(training),
            "\n".join(f"- {line}" for line in conditions(training)[-1:]),
        ]
    if stepped is not None:
        threads = stepped.machine["threads"]
        parts += [
            f"A step a call, on {threads} thread{'s' * (threads > 1)}: cells, and `stream`, which keeps its states. "
            "The peer torch is its layer, called with a sequence of one step, and torch-cell its cell.",
            summary(stepped).markdown(),
            " ".join([*tails(stepped), losses(stepped)]),
            "\n".join(f"- {line}" for line in conditions(stepped)[-1:]),
        ]
    parts += ["[docs/benchmarks.md](docs/benchmarks.md) has every case, and says what is measured and how."]
    return "\n\n".join(parts)


def _trains(results: Results) -> bool:
    return results.cases[0].case.kind == "training"


def _steps(results: Results) -> bool:
    return results.cases[0].case.in_steps


def document(runs: list[Results]) -> str:
    """Return docs/benchmarks.md."""
    parts = ["# Benchmarks", "Written by `python -m benchmarks.publish`; the figures are those of its last run."]
    parts += [LEGEND, METHOD, "![The first table as a picture](benchmarks.png)"]
    for results in runs:
        threads = results.machine["threads"]
        kind = "Training" if _trains(results) else "Cells and streams" if _steps(results) else "Inference"
        parts += [
            f"## {kind}, {threads} thread{'s' * (threads > 1)}",
            "\n".join(f"- {line}" for line in conditions(results)),
        ]
        parts += [table(results).markdown(), "\n".join(f"- {line}" for line in steps(results)), losses(results)]
        parts += ["\n".join(f"- {line}" for line in problems(results))]
        parts += ["What this machine can do at most, on all threads at once:"]
        parts += ["\n".join(f"- {line}" for line in limits(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


METHOD = """\
Each engine has a process of its own, which sleeps while another is asked: two in one process would disturb each other,
since the threads of either go on spinning for a while after a call. They take turns, with a pause between, and go
through several rounds; a turn gives the median of the calls that fit into it. All get the same weights and the same
input, already in memory. An engine whose output differs from nblstm's is reported as wrong and not timed. Operations
are those of the matrix products: twice the number of weights at each step of each row. Rows of different lengths
(`packed-`) have no steps past theirs: nblstm and torch get and give a packed sequence, made and taken apart off the
clock; the others get the padded batch with the lengths, and give a padded one. In training a call is a forward and a
backward pass, from a gradient of the output to those of all weights and the input; gradients are compared too, and
operations are three times those of the forward pass.

Cells and streams take a sequence a step a call, from states of zeros. The whole sequence is timed, since the clock
would count in a call of microseconds, and the time of one step is told. Every peer is called for one step, and handed
the states that the call before gave. Then single calls of nblstm are timed too, each between two looks at the clock:
'p99' is the 99th percentile of their times, in times of the median, in the best round.

- nblstm: the call of the layer, the cell or the stream, as its users make it; in training `vjp`, and the function it
  returns.
- torch: `torch.nn.LSTM`, `GRU` or `RNN` under `inference_mode`, with `torch.set_num_threads`; in training autograd; a
  step is a sequence of one.
- torch-cell: `torch.nn.LSTMCell`, `GRUCell` or `RNNCell`, likewise; for steps of one layer.
- onnxruntime: an ONNX model of LSTM, GRU or RNN nodes, as torch exports it, with `sequence_lens` where lengths differ;
  `intra_op_num_threads`; spinning as it is by default.
- openvino: the same model; `INFERENCE_NUM_THREADS`, the latency hint, float32, one request with shared arrays."""


def _named(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def main() -> None:
    """Write the three documents."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json", help="what `bench --json` wrote")
    runs = [load_results(path) for path in parser.parse_args().files]
    replace_part(ROOT / "README.md", "benchmarks", readme_part(runs))
    (ROOT / "docs" / "benchmarks.md").write_text(document(runs), encoding="utf-8")
    save_png(ROOT / "docs" / "benchmarks.png", runs[0])


if __name__ == "__main__":
    main()
