"""``python -m nblstm convert``: the tensors of any weight file in a file of another format."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest

import nblstm
from nblstm.__main__ import main
from nblstm.commands import convert, weight_report
from nblstm.commands.weight_report import named_tensors, walk

DATA = Path(__file__).parent / "data"
STATE_DICT, CHECKPOINT = DATA / "torch_state_dict.pt", DATA / "torch_checkpoint.pt"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def assert_same_arrays(got: Any, expected: Any) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        cases.assert_same_bits(got[name], array)


def assert_refused(capsys: pytest.CaptureFixture[str], words: str, *arguments: str) -> None:
    """Hold a command to an exit status of 2 and one line that has these words."""
    there = sorted(Path.cwd().iterdir())
    capsys.readouterr()
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("nblstm convert: ") and said.err.count("\n") == 1
    assert words in said.err
    assert sorted(Path.cwd().iterdir()) == there


@pytest.mark.parametrize("target", ["out.safetensors", "out.npz"])
def test_a_state_dict_comes_out_with_the_same_bits(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = nblstm.load(STATE_DICT)
    assert main(["convert", str(STATE_DICT), target]) == 0
    assert_same_arrays(nblstm.load(target), expected)
    size = sum(array.nbytes for array in expected.values())
    assert capsys.readouterr().out == f"{target}: {len(expected)} tensors, {size} B\n"
    there_and_back = "back.npz" if target.endswith("safetensors") else "back.safetensors"
    assert main(["convert", target, there_and_back]) == 0
    assert_same_arrays(nblstm.load(there_and_back), expected)


def test_the_makers_of_the_format_read_it() -> None:
    library = pytest.importorskip("safetensors.numpy")
    assert main(["convert", str(STATE_DICT), "out.safetensors"]) == 0
    assert_same_arrays(library.load_file("out.safetensors"), nblstm.load(STATE_DICT))


def test_a_checkpoint_is_flattened_and_what_is_no_tensor_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = nblstm.load(CHECKPOINT)
    tensors = {name: value for name, value in loaded.items() if isinstance(value, np.ndarray)}
    tensors |= {f"dtypes.{name}": array for name, array in loaded["dtypes"].items()}
    assert main(["convert", str(CHECKPOINT), "out.npz"]) == 0
    assert_same_arrays(nblstm.load("out.npz"), tensors)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"out.npz: {len(tensors)} tensors, ")
    assert said[1:] == ["left out: 14 values that are no tensors"]


@pytest.mark.parametrize("prefix", ["rnn", "rnn."])
def test_a_prefix_takes_a_part_and_comes_off(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(STATE_DICT), "out.safetensors", "--prefix", prefix]) == 0
    state = nblstm.load(STATE_DICT)
    found = nblstm.load("out.safetensors")
    assert_same_arrays(found, {name[4:]: array for name, array in state.items() if name.startswith("rnn.")})
    assert repr(nblstm.LSTM.from_state_dict(found)) == "LSTM(3, 2, proj_size=1, bidirectional=True)"
    assert capsys.readouterr().out.endswith("\nleft out: 2 tensors of other prefixes\n")


def test_a_prefix_is_a_whole_component_or_else_a_part() -> None:
    names = ["enc.a", "encoder.a", "lstm_a", "lstm_b"]
    nblstm.save("in.npz", {name: np.array(number) for number, name in enumerate(names)})
    for prefix, expected in (
        ("enc", {"a": 0}),
        ("enc.", {"a": 0}),
        ("enco", {"der.a": 1}),
        ("lstm_", {"a": 2, "b": 3}),
    ):
        assert main(["convert", "in.npz", "out.npz", "--prefix", prefix, "--force"]) == 0
        assert nblstm.load("out.npz") == expected


def test_a_file_that_is_there_stays_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.npz").write_bytes(b"mine")
    assert_refused(capsys, "--force overwrites it", str(STATE_DICT), "out.npz")
    assert Path("out.npz").read_bytes() == b"mine"
    assert main(["convert", str(STATE_DICT), "out.npz", "--force"]) == 0
    assert_same_arrays(nblstm.load("out.npz"), nblstm.load(STATE_DICT))
    assert main(["convert", "out.npz", "out.npz", "--prefix", "rnn", "--force"]) == 0
    assert "weight_ih_l0" in nblstm.load("out.npz")
    before = Path("out.npz").read_bytes()
    assert_refused(capsys, "--prefix", str(STATE_DICT), "out.npz", "--force", "--prefix", "decoder")
    assert Path("out.npz").read_bytes() == before


def test_a_link_that_leads_nowhere_is_there_too(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        Path("out.npz").symlink_to("nowhere")
    except OSError:
        pytest.skip("links are not allowed here")
    assert_refused(capsys, "--force overwrites it", str(STATE_DICT), "out.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.pt", "out.npz"], "No such file"),
        ([str(DATA), "out.npz"], "s a directory"),
        ([str(Path(__file__)), "out.npz"], "got a file that begins with"),
        ([str(STATE_DICT), "out.pt"], "path: expected a name that ends in .safetensors or .npz, got 'out.pt'"),
        ([str(STATE_DICT), "missing/out.npz"], "No such file"),
        ([str(STATE_DICT), "out.npz", "--prefix", "x"], "the beginning of a name, such as rnn, head, got 'x'"),
        ([str(STATE_DICT), "out.npz", "--prefix", "head.bias"], "expected tensors with names, got one without"),
        ([str(CHECKPOINT), "out.safetensors"], "got complex128. A .npz file holds it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, words, *arguments)


def test_files_without_tensors_or_names_are_refused(torch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for value, words in (
        ({"epoch": 3}, "expected tensors with names, got none"),
        ({}, "expected tensors with names, got none"),
        (torch.zeros(3), "expected tensors with names, got one without"),
        ({"a.b": torch.zeros(3), "a": {"b": torch.zeros(2)}}, "expected tensors of different names, got two with"),
    ):
        torch.save(value, "in.pt")
        assert_refused(capsys, words, "in.pt", "out.npz")


def test_an_optimizer_keeps_its_names(torch: Any) -> None:
    model = torch.nn.LSTM(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 3))[0].sum().backward()
    optimizer.step()
    torch.save([{"model": model.state_dict()}, {"optimizer": optimizer.state_dict()}], "in.pt")
    assert main(["convert", "in.pt", "out.safetensors"]) == 0
    found = nblstm.load("out.safetensors")
    assert_same_arrays(
        {name: array for name, array in found.items() if name.startswith("0.")},
        {f"0.model.{name}": tensor.numpy() for name, tensor in model.state_dict().items()},
    )
    cases.assert_same_bits(found["1.optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"].numpy())


def test_names_are_the_keys_on_the_way() -> None:
    loaded = OrderedDict(a=[1, (np.zeros(1), {"b": np.zeros(2)})], c={3: {None: np.zeros(3)}, 0.5: "text"})
    tensors, others = named_tensors(loaded)
    assert {name: array.size for name, array in tensors.items()} == {"a.1.0": 1, "a.1.1.b": 2, "c.3.None": 3}
    assert others == 2


def test_a_container_in_itself_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[Any] = []
    inner.append(inner)
    with pytest.raises(ValueError, match="at most 200 containers inside each other"):
        named_tensors({"a": inner})
    twice: Any = np.zeros(1)
    for _ in range(64):
        twice = [twice, twice]
    monkeypatch.setattr(weight_report, "_MOST_VALUES", 10_000)
    with pytest.raises(ValueError, match="at most 10000 values"):
        named_tensors(twice)


def test_a_list_of_itself_takes_no_room_for_what_is_ahead() -> None:
    wide: list[Any] = []
    wide.extend([wide] * 10_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="at most 200 containers inside each other"):
            named_tensors(wide)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inmost", [np.zeros(1), {"weight_ih": None}])
def test_giant_names_are_refused(inmost: Any) -> None:
    key = "k" * 2**16
    values: Any = [inmost] * 4
    for _ in range(100):
        values = {key: values}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="names of at most 16777216 characters in all, got more"):
            weight_report.report("a.pt", values)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_one_giant_name_does_not_widen_every_row() -> None:
    said = weight_report.report("a.npz", {"k" * 10_000: np.ones(1)} | {str(n): np.ones(1) for n in range(100)})
    assert len(said) < 50_000


def test_a_shared_tensor_is_written_under_all_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dict.fromkeys([f"{number}.weight" for number in range(12)], np.ones(100))
    monkeypatch.setattr(convert, "load", lambda path: loaded)
    assert main(["convert", "in.pt", "out.npz"]) == 0
    assert_same_arrays(nblstm.load("out.npz"), loaded)


def test_giant_copies_are_refused_in_convert_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    giant, saved = np.broadcast_to(np.zeros(1), 2**24), []
    loaded = {"small": np.ones(1)} | {f"{number}.weight": giant for number in range(12)}
    monkeypatch.setattr(convert, "load", lambda path: loaded)
    monkeypatch.setattr(convert, "save", lambda path, arrays: saved.append(arrays))
    assert_refused(capsys, "got 12 names for '0.weight' and 1.5 GB. Choose a part with --prefix", "in.pt", "out.npz")
    assert main(["convert", "in.pt", "out.npz", "--prefix", "3"]) == 0
    assert [list(arrays) for arrays in saved] == [["weight"]]
    assert "13 tensors, 1.6 GB" in weight_report.report("in.pt", loaded)


def test_one_is_singular(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(convert, "load", lambda path: {"a.b": np.ones(1), "c": np.ones(1), "epoch": 3})
    assert main(["convert", "in.pt", "out.npz", "--prefix", "a"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left out: 1 tensor of another prefix",
        "left out: 1 value that is no tensor",
    ]
    assert "\n1 value that is no tensor" in weight_report.report("a.pt", {"epoch": 3})


def test_the_way_leads_to_the_value() -> None:
    loaded = nblstm.load(CHECKPOINT)
    for path, value in walk(loaded):
        at = loaded
        for key in path:
            at = at[key]
        assert at is value
