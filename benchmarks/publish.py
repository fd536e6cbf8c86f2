"""Put what ``bench --json`` measured into the documents.

    python -m nblstm bench --json two.json
    python -m nblstm bench --json one.json --threads 1
    python -m nblstm bench --json training.json --train
    python -m benchmarks.publish two.json one.json training.json

docs/benchmarks.md gets every file's table, docs/benchmarks.png shows the first file, and the README the summaries of
the first file and of the first one about training. All three are written anew; the README's part stands between two
comments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nblstm.commands.benchmark.plot import save_png
from nblstm.commands.benchmark.report import LEGEND, Table, conditions, limits, losses, problems, speed, table
from nblstm.commands.benchmark.results import Results, geometric_mean, load_results

from .documents import ROOT, replace_part


def summary(results: Results) -> Table:
    """Return a row for each group of cases: its means, and its worst case."""
    rows = []
    for group in dict.fromkeys(result.case.name for result in results.cases):
        cases = [result for result in results.cases if result.case.name == group]
        against_best = [factor for case in cases if (factor := case.speed(case.best_peer)) is not None]
        against_torch = [factor for case in cases if (factor := case.speed("torch")) is not None]
        shares = [share for case in cases if (share := results.share(case)) is not None]
        means = [speed(geometric_mean(factors)) for factors in (against_best, against_torch)]
        share = geometric_mean(shares)
        worst = speed(min(against_best, default=None))
        rows.append([group, str(len(cases)), means[0], worst, means[1], f"{share:.0%}" if share else ""])
    means = [speed(results.mean_speed(peer)) for peer in (None, "torch")]
    worst = speed(min((case.speed(case.best_peer) or 1.0 for case in results.cases), default=None))
    rows.append(["all", str(len(results.cases)), means[0], worst, means[1], ""])
    return Table(["", "cases", "x best peer", "the worst", "x torch", "of limit"], rows, left=1)


def readme_part(runs: list[Results]) -> str:
    """Return the README's section on speed."""
    results, training = runs[0], next((run for run in runs if _trains(run)), None)
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
    parts += ["[docs/benchmarks.md](docs/benchmarks.md) has every case, and says what is measured and how."]
    return "\n\n".join(parts)


def _trains(results: Results) -> bool:
    return results.cases[0].case.kind == "training"


def document(runs: list[Results]) -> str:
    """Return docs/benchmarks.md."""
    parts = ["# Benchmarks", "Written by `python -m benchmarks.publish`; the figures are those of its last run."]
    parts += [LEGEND, METHOD, "![The first table as a picture](benchmarks.png)"]
    for results in runs:
        threads = results.machine["threads"]
        kind = "Training" if _trains(results) else "Inference"
        parts += [
            f"## {kind}, {threads} thread{'s' * (threads > 1)}",
            "\n".join(f"- {line}" for line in conditions(results)),
        ]
        parts += [table(results).markdown(), losses(results)]
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

- nblstm: the call of the layer, as its users make it; in training `vjp`, and the function it returns.
- torch: `torch.nn.LSTM`, `GRU` or `RNN` under `inference_mode`, with `torch.set_num_threads`; in training autograd.
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
