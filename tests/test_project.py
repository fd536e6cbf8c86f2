"""The house: what the files of the project promise one another, and the README its readers."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import nblstm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nblstm"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Which part of the package stands on which floor. A file imports from floors below its own, or from its own part; the
# faces on floor 4 may also use one another.
FLOORS = [
    {"arrays", "errors"},
    {"kernels", "reference", "threads"},
    {"engine", "sequences", "weights"},
    {"layers", "nopython"},
    {"__init__", "__main__", "commands", "cuda", "functional", "torch", "training"},
]
TOP = len(FLOORS) - 1
NUMBA_COMPILERS = {"cfunc", "generated_jit", "guvectorize", "jit", "jit_module", "njit", "stencil", "vectorize"}
NUMBA_OPTIONS = {"boundscheck", "error_model", "fastmath", "forceinline", "inline", "looplift", "nogil", "parallel"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    """The file or folder directly in the package that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(path: Path) -> int:
    (floor,) = (floor for floor, parts in enumerate(FLOORS) if part_of(path) in parts)
    return floor


def file_of(module: str) -> Path | None:
    """The file of a module of the package; None if there is none of that name."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_files(path: Path) -> Iterator[Path]:
    """The files of the package that `path` imports, anywhere in it."""
    for node in ast.walk(parsed(path)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: name the package in imports"
            # `from nblstm import errors` imports a file, `from nblstm.errors import message` a name in one.
            modules = [
                name if file_of(name := f"{node.module}.{alias.name}") else str(node.module) for alias in node.names
            ]
        for module in modules:
            if module.partition(".")[0] == "nblstm":
                file = file_of(module)
                assert file is not None, f"{relative(path)}:{node.lineno}: there is no {module}"
                yield file


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_imports_from_floors_below_its_own(path: Path) -> None:
    floor = floor_of(path)
    for file in imported_files(path):
        allowed = floor_of(file) < floor or part_of(file) == part_of(path) or floor_of(file) == floor in (0, TOP)
        assert allowed, f"{relative(path)} on floor {floor} imports {relative(file)} on floor {floor_of(file)}"


def test_no_imports_go_in_a_circle() -> None:
    imports = {path: set(imported_files(path)) for path in SOURCES}
    while leaves := [path for path, files in imports.items() if not files & imports.keys()]:
        for path in leaves:
            del imports[path]
    assert not imports, f"a circle among {sorted(map(relative, imports))}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_policy_names_numbas_options(path: Path) -> None:
    if relative(path) in ("nblstm/kernels/policy.py", "nblstm/cuda/device.py"):
        return
    for node in ast.walk(parsed(path)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        assert name not in NUMBA_COMPILERS, f"{relative(path)} uses {name}"
        if isinstance(node, ast.Call):
            options = {keyword.arg for keyword in node.keywords} & NUMBA_OPTIONS
            assert not options, f"{relative(path)}:{node.lineno} names {options}"


def test_one_file_imports_the_gpus_numba() -> None:
    files = [path for path in SOURCES if '"numba.cuda"' in path.read_text(encoding="utf-8")]
    assert [relative(path) for path in files] == ["nblstm/cuda/device.py"]
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "numba":
                assert "cuda" not in {alias.name for alias in node.names}, relative(path)


def names_in(path: Path) -> set[str]:
    return {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}


def test_no_loop_is_given_to_numbas_threads() -> None:
    """The team has its own: a layer may be called in a forked child, and beside parallel loops of the user's."""
    policy = (PACKAGE / "kernels" / "policy.py").read_text(encoding="utf-8")
    assert "parallel=" not in policy and '"parallel"' not in policy


def test_intrinsics_stay_in_the_kernels() -> None:
    assert {part_of(path) for path in SOURCES if "intrinsic" in names_in(path)} == {"kernels"}


def test_fast_math_is_off() -> None:
    policy = (PACKAGE / "kernels" / "policy.py").read_text(encoding="utf-8")
    assert re.findall(r"fastmath\W+(\w+)", policy) == ["False"]


def test_kernels_that_multiply_name_the_product() -> None:
    """Without it they would be compiled, or loaded, before the product has an address: a crash."""
    kernels = [path for path in SOURCES if part_of(path) == "kernels"]
    multiplying = [path for path in kernels if "multiply_add" in names_in(path)]
    assert len(multiplying) >= 8
    for path in multiplying:
        functions = [node for node in parsed(path).body if isinstance(node, ast.FunctionDef)]
        said = {f.name: ast.unparse(f.decorator_list[0]) for f in functions if f.decorator_list}
        workers = {name: how for name, how in said.items() if how.startswith("worker")}
        assert workers and workers == {name: f"worker_calling(product_{name.split('_')[-1]})" for name in workers}, path


def test_files_are_short() -> None:
    folders = ("nblstm", "tests", "examples", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {relative(path): lines for path in files if (lines := len(path.read_bytes().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize(
    ("used", "needed"),
    [
        ("nblstm", {"numpy"}),
        ("nblstm.load, nblstm.save", {"numpy"}),
        ("nblstm.LSTM(2, 3)", {"numpy", "numba"}),
    ],
)
def test_importing_it_is_light(used: str, needed: set[str]) -> None:
    script = f"import sys, nblstm; {used}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    packages = {name.partition(".")[0] for name in loaded}
    others = {"torch", "matplotlib", "scipy", "safetensors", "onnxruntime", "openvino"}
    assert packages & {"numpy", "numba", *others} == needed
    # A fifth of a second, which the first compilation pays, or the first kernel from the cache.
    assert "numba.np.arrayobj" not in loaded


def test_the_names_that_come_later_are_those_that_type_checkers_see() -> None:
    later = next(node for node in parsed(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    seen = {alias.name for node in later.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(nblstm._HOMES) <= set(nblstm.__all__)


def test_without_compilation_there_are_no_layers() -> None:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", "import nblstm; nblstm.LSTM"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Unset that variable" in done.stderr.splitlines()[-1]


def test_a_name_that_is_not_there() -> None:
    assert set(nblstm.__all__) <= set(dir(nblstm))
    with pytest.raises(AttributeError, match="no attribute 'LTSM'"):
        nblstm.LTSM  # noqa: B018


@pytest.mark.parametrize("name", nblstm.__all__)
def test_public_names_have_docstrings_with_examples(name: str) -> None:
    documented = inspect.getdoc(getattr(nblstm, name)) or ""
    assert ">>> " in documented


def test_every_module_says_what_it_is() -> None:
    undocumented = [relative(path) for path in SOURCES if not ast.get_docstring(parsed(path))]
    assert not undocumented


def pyproject_list(name: str) -> list[str]:
    """The strings of a list in pyproject.toml, read without tomllib: Python 3.10 has none."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert found
    return re.findall(r'"([^"]*)"', re.sub(r"#.*", "", found[1]))


def test_run_time_dependencies() -> None:
    assert [re.split(r"[>=]", dependency)[0] for dependency in pyproject_list("dependencies")] == ["numba", "numpy"]


def test_all_files_of_the_package_are_shipped() -> None:
    patterns = pyproject_list("nblstm")
    assert "py.typed" in patterns and (PACKAGE / "py.typed").is_file()
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    data = [name for name in files if not name.endswith(".py") and not re.search(r"(^|/)(\.|__pycache__/)", name)]
    assert data
    assert not [name for name in data if not any(fnmatch(name, pattern) for pattern in patterns)]
    folders = {path.parent for path in SOURCES}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = blocks("README.md", "bash")[:2]
    assert commands[0].endswith("-m nblstm demo\n") and commands[1].endswith("-m pytest\n")
    for block in commands:
        assert f"\n{block}" in ci


def test_the_readmes_examples_run_and_print_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    examples = blocks("README.md", "python")
    assert examples
    said = re.findall(r"^print\(.*\)  # (.*)$", "".join(examples), re.MULTILINE)
    assert said
    printed = io.StringIO()
    namespace: dict[str, object] = {}
    with contextlib.redirect_stdout(printed):
        for example in examples:
            exec(compile(example, "README.md", "exec"), namespace)
    assert printed.getvalue().splitlines() == said


def test_links_in_documents_lead_somewhere() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"
