"""Archives of torch.jit.save: a recorded one, live torch as the oracle, and archives made by hand."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_pickles import DATA, FLOATS, assert_same, counted, global_name, made, scripted, storage, tensor, value

from nblstm.errors import WeightFileError
from nblstm.weights.files import load

pytestmark = pytest.mark.filterwarnings("ignore")  # torch says at every step that TorchScript is old


def test_a_recorded_module_is_read():
    state = load(DATA / "torchscript.pt")
    assert type(state) is OrderedDict
    layers = {"0.weight": (2, 2), "0.bias": (2,), **{f"1.{name}": (2,) for name in ("weight", "bias")}}
    layers |= {"1.running_mean": (2,), "1.running_var": (2,), "1.num_batches_tracked": ()}
    assert [(name, array.shape) for name, array in state.items()] == [
        ("start", (3, 2)),
        ("short", (2,)),
        ("scale", (3,)),
        ("passing", (2,)),
        ("rnn.weight_ih_l0", (8, 3)),
        ("rnn.weight_hh_l0", (8, 2)),
        ("rnn.bias_ih_l0", (8,)),
        ("rnn.bias_hh_l0", (8,)),
        *((f"{name}.{part}", shape) for name in ("layers", "same") for part, shape in layers.items()),
    ]
    np.testing.assert_array_equal(state.pop("start"), counted(2, 3).T, strict=True)
    for name, array in state.items():
        dtype = np.int64 if name.endswith("tracked") else np.float32
        np.testing.assert_array_equal(array, counted(*array.shape, dtype=dtype), strict=True)
    assert np.shares_memory(state["layers.0.weight"], state["same.0.weight"])


# torch as the oracle


def assert_as_torch(torch: Any, file: io.BytesIO) -> int:
    """Compare with the state_dict of what torch.jit.load loads; return how many tensors there are."""
    file.seek(0)
    theirs = OrderedDict(torch.jit.load(file).state_dict())
    assert_same(load(file), theirs)
    return len(theirs)


def saved(torch: Any, module: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file


@pytest.fixture
def recorder(torch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that recorded the files, which has a module of all kinds of attributes."""
    spec = importlib.util.spec_from_file_location("make_weight_files", DATA / "make_weight_files.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_module_of_all_kinds_of_attributes_as_torch_loads_it(torch, recorder):
    assert assert_as_torch(torch, saved(torch, torch.jit.script(recorder.Scripted()))) == 22
    assert assert_as_torch(torch, io.BytesIO((DATA / "torchscript.pt").read_bytes())) == 22


MODULES: dict[str, Callable[[Any], Any]] = {
    "LSTM": lambda torch: torch.jit.script(torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True)),
    "projection": lambda torch: torch.jit.script(torch.nn.LSTM(3, 4, proj_size=2, bias=False)),
    "float64": lambda torch: torch.jit.script(torch.nn.GRU(3, 4).double()),
    "half": lambda torch: torch.jit.script(torch.nn.LSTMCell(3, 4).half()),
    "traced": lambda torch: torch.jit.trace(torch.nn.GRU(2, 3), torch.ones(2, 2)),
    "traced deeply": lambda torch: torch.jit.trace(
        torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()), torch.nn.Linear(2, 1)),
        torch.ones(1, 2),
    ),
    "two classes of one name": lambda torch: torch.jit.script(
        torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2, bias=False)})
    ),
    "nothing": lambda torch: torch.jit.script(torch.nn.ReLU()),
    "frozen": lambda torch: torch.jit.freeze(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2)).eval())),
    "parameters in a list": lambda torch: torch.jit.trace(parameter_sum(torch), torch.ones(1)),
    "batch of one storage": lambda torch: torch.jit.script(shared(torch)),
}


def parameter_sum(torch: Any) -> Any:
    """Return a module with a ParameterList and a buffer of a newer dtype."""

    class Module(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.list = torch.nn.ParameterList([torch.randn(2), torch.randn(3)])
            self.register_buffer("new", torch.arange(3).to(torch.uint16))

        def forward(self, x: Any) -> Any:
            return x + self.list[0].sum() + self.list[1].sum() + self.new.float().sum()

    return Module()


def shared(torch: Any) -> Any:
    """Return a module whose weights are parts of one storage, as those of an LSTM on a GPU."""
    lstm = torch.nn.LSTM(3, 4)
    flat = torch.cat([weight.detach().flatten() for weight in lstm.parameters()])
    for weight in lstm.parameters():
        weight.data, flat = flat[: weight.numel()].view(weight.shape), flat[weight.numel() :]
    return lstm


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_modules_as_torch_loads_them(torch, make):
    count = assert_as_torch(torch, saved(torch, make(torch)))
    assert count or make in (MODULES["nothing"], MODULES["frozen"])


def test_buffers_that_are_in_no_list_as_torch_loads_them(torch):
    whole, old = saved(torch, torch.jit.script(torch.nn.BatchNorm1d(2))), io.BytesIO()
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(old, "w") as packed:
        for name in archive.namelist():
            packed.writestr(name, re.sub(rb"  __buffers__ = .*\n", b"", archive.read(name)))
    assert assert_as_torch(torch, whole) == 5
    assert assert_as_torch(torch, old) == 2


def test_quantised_layers_are_refused_by_name(torch):
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(layers, {torch.nn.Linear})
    with pytest.raises(WeightFileError, match=r"an object of torch's own code, as in quantised layers .*as it was bef"):
        load(saved(torch, torch.jit.script(quantised)))


def test_the_weights_of_silero_vad_as_torch_loads_them(torch):
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("silero-vad is not installed: pip install --no-deps silero-vad==6.2.3")
    content = Path(spec.origin).with_name("data").joinpath("silero_vad.jit").read_bytes()
    assert assert_as_torch(torch, io.BytesIO(content)) == 30


# Archives made by hand

NET = """class Net(Module):
  __parameters__ = ["w", "none", ]
  __buffers__ = ["b", "maybe", ]
  __annotations__ = []
  __annotations__["0"] = __torch__.deep.Leaf
  w : Tensor
  none : NoneType
  b : Tensor
  maybe : Optional[Tensor]
  plain : Tensor
  size : Final[int] = 3
  def forward(self: __torch__.Net) -> Tensor:
    __parameters__ = ["plain", ]
    plain : Tensor = self.w
    return plain
"""
LEAF = 'class Leaf(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n  w : Tensor\n'
CODE = {"__torch__": NET, "__torch__.deep": LEAF}
TENSOR = tensor(storage())


def module(name: str = "Net", **attributes: bytes) -> bytes:
    """Return the opcodes that make a module of ``__torch__``."""
    return made("__torch__", name, b"".join(value(key) + pushed for key, pushed in attributes.items()))


LEAF_MADE = made("__torch__.deep", "Leaf", value("w") + TENSOR)


def test_parameters_come_first_then_buffers_then_modules():
    leaf = {"0": LEAF_MADE}
    program = module(**leaf, b=TENSOR, plain=TENSOR, maybe=TENSOR, none=b"N", w=TENSOR, unknown=TENSOR)
    state = load(scripted(program, CODE, FLOATS))
    assert list(state) == ["w", "b", "0.w"]
    assert all(array.tolist() == [[0, 1, 2], [3, 4, 5]] for array in state.values())


def test_only_the_beginning_of_a_class_counts():
    text = NET.replace("    return plain\n", '    text = "class Net(Module):"\n    return plain\n\n') + LEAF
    assert list(load(scripted(module(w=TENSOR, plain=TENSOR), {"__torch__": text}, FLOATS))) == ["w"]


REFUSED: dict[str, tuple[bytes, dict[str, str]]] = {
    "no code": (module(w=TENSOR), {}),
    "a class that the code lacks": (module("Other", w=TENSOR), CODE),
    "code that is not there": (made("__torch__.other", "Net", b""), CODE),
    "a class of another module": (made("torch.nn", "Linear", b""), CODE | {"torch.nn": LEAF}),
    "a module that only begins alike": (made("__torch__x", "Net", b""), CODE | {"__torch__x": NET}),
    "a module that climbs": (made("__torch__....os", "Net", b""), CODE | {"__torch__....os": NET}),
    "a module of slashes": (made("__torch__/deep", "Leaf", b""), CODE),
    "a dotted name": (made("__torch__", "deep.Leaf", b""), CODE),
    "a class without a list of parameters": (module(w=TENSOR), {"__torch__": "class Net(Module):\n  w : Tensor\n"}),
    "two lists of parameters": (module(w=TENSOR), {"__torch__": NET.replace("buffers", "parameters")}),
    "two classes of one name": (module(w=TENSOR), {"__torch__": NET + NET}),
    "a state of its own": (module(w=TENSOR), {"__torch__": NET + "  def __setstate__(self, state: int) -> int:\n"}),
    "a call of a class": (global_name("__torch__", "Net") + b")R", CODE),
    "a call of the evaluator": (global_name("builtins", "eval") + value(("1",)) + b"R", CODE),
    "arguments of a class": (global_name("__torch__", "Net") + value((1,)) + b"\x81", CODE),
    "an object of a function": (global_name("torch._utils", "_rebuild_tensor_v2") + b")\x81", CODE),
    "an object of an OrderedDict": (global_name("collections", "OrderedDict") + b")\x81", CODE),
    "a state that is a list": (global_name("__torch__", "Net") + b")\x81]b", CODE),
    "a state with numbers for names": (global_name("__torch__", "Net") + b")\x81}K\x01Nsb", CODE),
    "items of an object": (global_name("__torch__", "Net") + b")\x81" + value("w") + b"Ns", CODE),
    "an object as a key": (b"}" + module() + b"Ns", CODE),
    "a bare class": (module(w=global_name("__torch__", "Net")), CODE),
    "a tag of a number": (global_name("torch.jit._pickle", "restore_type_tag") + value((1, "int")) + b"R", CODE),
    "a list of a tensor": (global_name("torch.jit._pickle", "build_intlist") + TENSOR + b"\x85R", CODE),
    "an object of C++": (made("__torch__.torch.classes.quantized", "LinearPackedParamsBase", b""), CODE),
    "a state_dict": (value({"w": 1}), CODE),
    "a class that is no module": (module("Plain", w=TENSOR), {"__torch__": "class Plain:\n  w : Tensor\n"}),
    "a module in itself": (
        global_name("__torch__", "Net") + b")\x81q\x05}" + value("a") + b"h\x05s" + value("b") + b"h\x05sb",
        CODE,
    ),
}


@pytest.mark.parametrize(("program", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_module_is_refused(program, code):
    begin = time.perf_counter()
    with pytest.raises(WeightFileError) as refused:
        load(scripted(program, code, FLOATS))
    assert len(str(refused.value)) < 500 and time.perf_counter() - begin < 10


def test_deeply_nested_modules_are_refused():
    program = module(w=TENSOR)
    for _ in range(300):
        program = module(m=program)
    with pytest.raises(WeightFileError, match="inside each other"):
        load(scripted(program, CODE, FLOATS))


def test_modules_used_a_billion_times_take_no_time():
    program = module(w=TENSOR) + b"q\x01"
    for level in range(1, 31):
        program = module(a=program, b=b"h" + bytes([level])) + b"q" + bytes([level + 1])
    begin = time.perf_counter()
    with pytest.raises(WeightFileError, match="names of weights that fit the file"):
        load(scripted(program, CODE, FLOATS))
    assert time.perf_counter() - begin < 10
