"""The shape of the house: import directions, file sizes, a light import, small systems, ever fewer `Any`."""

from __future__ import annotations

import ast
import importlib
import os
import re
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
SYSTEMS = PACKAGE / "models" / "systems"
SYSTEM_LINES = 150
OWN_BASES = 2  # QueryModel and BaseModel
ANY, SELF_ANY = 272, 0  # annotations under lavis/ today; a change that removes some lowers the number here
FOLDERS = ("lavis", "tests", "tools", "benchmarks", "run_scripts", "docs", "assets")  # where files of the project lie

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


def systems() -> list[Path]:
    """The files of the systems; some must be there, or the tests of them would say nothing."""
    found = [path for path in sources(SYSTEMS) if path.name != "__init__.py"]
    assert found, f"no system in {SYSTEMS}"
    return found


def test_systems_are_small_and_apart() -> None:
    wrong = []
    for path in systems():
        text = path.read_text()
        if (count := len(text.splitlines())) > SYSTEM_LINES:
            wrong.append(f"{path.relative_to(ROOT)}: {count} lines, at most {SYSTEM_LINES}")
        for name in imported(ast.parse(text)):
            if name.startswith("lavis.models.systems"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}, of another system")
    assert wrong == []


def test_a_system_has_few_bases_of_ours() -> None:
    """Classes of ours that a model inherits from, at any depth; those of its own file are in sight of its reader."""
    wrong = []
    for path in systems():
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for name, found in vars(module).items():
            if isinstance(found, type) and found.__module__ == module.__name__:
                bases = [base for base in found.__mro__ if base.__module__ != module.__name__]
                ours = [base.__name__ for base in bases if base.__module__.startswith("lavis.")]
                wrong += [f"{name} inherits from {', '.join(ours)}"] if len(ours) > OWN_BASES else []
    assert wrong == [], f"at most {OWN_BASES}"


@pytest.mark.parametrize(("pattern", "limit"), [(r"(:|->) Any\b", ANY), (r"\bself: Any\b", SELF_ANY)])
def test_annotations_say_ever_less_often_any(pattern: str, limit: int) -> None:
    counts = {str(path.relative_to(ROOT)): len(re.findall(pattern, path.read_text())) for path in sources(PACKAGE)}
    most = ", ".join(f"{name} {counts[name]}" for name in sorted(counts, key=lambda name: -counts[name])[:5])
    found = sum(counts.values())
    assert found <= limit, f"{found} matches of {pattern} under lavis/, at most {limit}; most in {most}"


def test_no_two_files_differ_in_case_alone() -> None:
    """On some file systems they would be one file."""
    names: dict[str, list[str]] = {}
    for path in (*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))):
        name = path.relative_to(ROOT).as_posix()
        names.setdefault(name.casefold(), []).append(name)
    assert len(names) > 100
    assert [found for name, found in names.items() if len(found) > 1] == []


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
