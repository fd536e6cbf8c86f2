"""The example of g2pM: a bidirectional LSTM from its package's weights, beside the package's own NumPy."""

from __future__ import annotations

import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nblstm
from nblstm.arrays import Array
from nblstm.errors import WeightFileError

ROOT = Path(__file__).resolve().parent.parent
example = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "g2pm.py")))

# Most have characters of several readings, such as 行 (hang2, xing2), 长 (chang2, zhang3) and 得 (de2, de5, dei3).
SENTENCES = [
    "他红了20年以后",
    "他竟退出了大家的视线",
    "银行行长说这样做不行",
    "孩子们长得很快",
    "这条河很长",
    "我觉得你应该睡一觉",
    "音乐让人快乐",
    "他还没有还给我那本书",
    "首都的人都很忙",
    "为什么他为了钱这样做",
    "请把种子种在地里",
    "这件衣服很便宜",
    "随便你怎么说",
    "他的头发发白了",
    "请给我发一封信",
    "他们正在朝阳下散步",
    "今朝有酒今朝醉",
    "这是一本自传",
    "消息传得很快",
    "他当了十年的老师",
    "别上当",
    "数一数一共有多少数字",
    "他重复了三次",
    "这个箱子太重了",
    "她的作品参加了比赛",
    "没有人能活一千年",
    "水淹没了村庄",
    "他背着背包走了",
    "把车停在空地上",
    "天空很蓝",
    "我们应当调查调整的原因",
    "她弹钢琴",
    "子弹打中了目标",
    "放假的时候他说假话",
    "教室里老师在教书",
    "船只在海上只有三天",
    "他参加了会议并且会计算",
    "转过身去看旋转的木马",
    "相信自己的长相",
    "ABC和3.14都不是汉字",
    "一",
    "行",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of the installed package."""
    try:
        path: Path = example.find_folder()
    except FileNotFoundError:
        pytest.skip("g2pM is not installed: pip install --no-deps g2pM==0.1.2.5")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return example.G2pM(folder)


@pytest.fixture
def package(folder: Path) -> Any:
    """The package's own model; it keeps the logits of its last call in `logits`."""
    package = pytest.importorskip("g2pM").G2pM()
    layer = package.fc_layer

    def recording(hidden: Array) -> Array:
        package.logits = layer(hidden)
        return np.asarray(package.logits)

    package.fc_layer = recording
    return package


@pytest.mark.filterwarnings("ignore")  # it leaves its files open, and its arrays name a module that NumPy has moved
def test_the_readings_and_logits_are_those_of_the_package(model: Any, package: Any) -> None:
    readings, logits = model(SENTENCES), model.logits(SENTENCES)
    characters = 0
    for sentence, reading, row in zip(SENTENCES, readings, logits, strict=True):
        package.logits = np.zeros((0, 876))
        assert reading == package(sentence, char_split=True)
        places = [place for place, one in enumerate(sentence, 1) if len(model.readings.get(one, [])) > 1]
        # They go to -120, where the floats of 32 bits are 8e-6 apart; PyTorch in float32 is as far from the package's.
        np.testing.assert_allclose(row[places], package.logits, rtol=0, atol=1e-6 * np.abs(logits).max())
        characters += len(places)
    assert characters > 100


def test_other_sentences_in_the_batch_do_not_change_a_reading(model: Any) -> None:
    together = model(SENTENCES)
    assert [model([sentence])[0] for sentence in SENTENCES] == together
    assert "hang2" in together[2] and "xing2" in together[2]


def test_the_bare_pickle_is_refused_by_load(folder: Path) -> None:
    with pytest.raises(WeightFileError, match=r"np_ckpt\.pkl: .* got a bare pickle"):
        nblstm.load(folder / "np_ckpt.pkl")


def test_the_arrays_can_be_saved_for_load(folder: Path, tmp_path: Path) -> None:
    weights = example.read_pickle(folder / "np_ckpt.pkl")
    nblstm.save(tmp_path / "g2pm.safetensors", weights)
    lstm = nblstm.LSTM.from_state_dict(nblstm.load(tmp_path / "g2pm.safetensors"))
    assert repr(lstm) == "LSTM(64, 32, bidirectional=True)"


def test_a_pickle_of_arrays_is_read(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0)}
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(arrays, protocol=3).replace(b"numpy._core", b"numpy.core"))
    read = example.read_pickle(path)
    assert list(read) == ["a", "b"]
    np.testing.assert_array_equal(read["a"], arrays["a"])


@pytest.mark.parametrize("name", ["builtins.print", "posix.system", "numpy.save", "numpy.core.ndarray"])
def test_a_pickle_that_asks_for_more_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = name.rpartition(".")
    path = tmp_path / "harmful.pkl"
    path.write_bytes(f"c{module}\n{function}\n(Vharm\ntR.".encode())  # function("harm")
    with pytest.raises(pickle.UnpicklingError, match=f"expected NumPy arrays and plain values, got {name}$"):
        example.read_pickle(path)
    assert capsys.readouterr().out == ""


def test_the_program_prints_a_line_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(SENTENCES[:2])
    assert capsys.readouterr().out.splitlines() == [
        "ta1 hong2 le5 2 0 nian2 yi3 hou4",
        "ta1 jing4 tui4 chu1 le5 da4 jia1 de5 shi4 xian4",
    ]
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match=r"^g2pm: weights: .* pip install --no-deps g2pM==0\.1\.2\.5$"):
        example.main(SENTENCES[:1])
