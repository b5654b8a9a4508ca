"""The shape of the house: import directions, file sizes, a light import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lavis
from lavis.common.registry import HOMES, registry

PACKAGE = Path(lavis.__file__).resolve().parent
ROOT = PACKAGE.parent
LINES = 400

# what each part may import of ours; a dotted name stands for one module
MAY_IMPORT = {
    "common": {"common"},
    "processors": {"common", "processors"},
    "datasets": {"common", "processors", "datasets"},
    "evaluation": {"common", "datasets", "evaluation"},
    "models": {"common", "processors", "datasets.geometry", "models"},
    "tasks": {"common", "datasets", "evaluation", "report", "tasks"},
    "runners": {"common", "datasets.wrappers", "datasets.loaders", "datasets.datasets", "tasks", "runners"},
    "report": {"common", "datasets", "evaluation", "report"},
    "quickstart": {"common", "datasets", "evaluation", "report", "quickstart"},
    "serving": {"common", "processors", "datasets", "models", "report", "quickstart", "serving"},
}


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every imported module, and every name imported from a module as module.name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_downwards(part: str) -> None:
    wrong = []
    for path in sources(PACKAGE / part):
        for name in imported(ast.parse(path.read_text())):
            inner = name.removeprefix("lavis.")
            if not name.startswith("lavis.") or inner.startswith("__version__"):
                continue
            if not any(inner == allowed or inner.startswith(f"{allowed}.") for allowed in MAY_IMPORT[part]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_every_folder_of_the_package_has_a_rule() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders <= set(MAY_IMPORT)


def test_no_file_is_too_long_and_none_imports_all() -> None:
    wrong = []
    for path in [*sources(PACKAGE, ROOT / "tools", ROOT / "tests", ROOT / "benchmarks"), *ROOT.glob("*.py")]:
        text = path.read_text()
        if (count := len(text.splitlines())) > LINES:
            wrong.append(f"{path.relative_to(ROOT)}: {count} lines")
        if any(name.endswith(".*") for name in imported(ast.parse(text))):
            wrong.append(f"{path.relative_to(ROOT)}: star import")
    assert wrong == []


def test_the_library_neither_prints_nor_exits() -> None:
    wrong = []
    for path in sources(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "exit", "quit", "sys.exit", "os._exit"):
                to_stderr = any(keyword.arg == "file" for keyword in node.keywords)
                own_worker = (
                    path.name == "workers.py" and ast.unparse(node.func) == "os._exit"
                )  # a loader's process, not the user's
                wrong += [] if to_stderr or own_worker else [f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"]
    assert wrong == []


def test_importing_is_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import lavis; seconds = time.perf_counter() - start\n"
        "assert seconds < 1, seconds\n"
        "heavy = {'torch', 'numpy', 'transformers', 'timm', 'matplotlib', 'PIL', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_module_can_be_searched() -> None:
    for kind in HOMES:
        registry.names(kind)
        assert registry._failed[kind] == {}


LIGHT = {*sys.stdlib_module_names, "numpy", "PIL", "matplotlib", "tqdm", "yaml", "pytest"}  # what does not load torch
SCRIPTS = [*ROOT.glob("*.py"), *sources(ROOT / "tools", ROOT / "run_scripts", ROOT / "benchmarks")]
COMMANDS = [*(path for path in SCRIPTS if "__main__" in path.read_text()), ROOT / "tests" / "conftest.py"]


def first_heavy_import(path: Path) -> str:
    """The first package that a file imports and that is not light; for a module of a package, what the package imports."""
    package = path.with_name("__init__.py")
    body = [*(ast.parse(package.read_text()).body if package.exists() else []), *ast.parse(path.read_text()).body]
    for node in body:
        for name in imported(node) if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            if (top := name.split(".")[0]) not in LIGHT:
                beside = path.with_name(f"{top}.py")
                return first_heavy_import(beside) if beside.exists() else top
    return "nothing"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_imports_lavis_before_torch(path: Path) -> None:
    """lavis/__init__.py sets what OpenMP reads when torch is loaded."""
    assert first_heavy_import(path) in ("lavis", "nothing")


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_openmp_is_told_to_sleep_unless_the_user_says_otherwise(given: str | None, policy: str) -> None:
    """OpenMP itself tells what it read, when torch loads it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": given} if given else {})
    command = [sys.executable, "train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
