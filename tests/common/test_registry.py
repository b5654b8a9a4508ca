"""Names: lazy search, duplicates, errors that help."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from lavis.common.errors import ConfigError, UnknownNameError
from lavis.common.registry import HOMES, Registry, registry


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry home of its own: a package with a module, a subpackage and a module whose dependency is missing."""
    package = tmp_path / "home_of_tasks"
    (package / "inner").mkdir(parents=True)
    header = "from lavis.common.registry import registry\n"
    for path in (package / "__init__.py", package / "inner" / "__init__.py"):
        path.write_text("")
    (package / "one.py").write_text(header + "@registry.register_task('first_task')\nclass First: pass\n")
    (package / "inner" / "two.py").write_text(header + "@registry.register_task('second_task')\nclass Second: pass\n")
    (package / "zzz.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(HOMES, "task", "home_of_tasks")
    fresh = Registry()
    monkeypatch.setattr("lavis.common.registry.registry", fresh)
    yield package
    for name in [name for name in sys.modules if name.startswith("home_of_tasks")]:
        del sys.modules[name]


def test_a_first_miss_imports_the_home_package(home: Path) -> None:
    from lavis.common.registry import registry as fresh

    assert fresh._classes["task"] == {}
    assert fresh.get_task_class("second_task").__name__ == "Second"
    assert fresh.list_tasks() == ["first_task", "second_task"]


def test_another_thread_waits_for_the_search(home: Path) -> None:
    from lavis.common.registry import registry as fresh

    gate = ModuleType("home_of_tasks_gate")
    gate.reached, gate.open = threading.Event(), threading.Event()
    sys.modules[gate.__name__] = gate
    (home / "a_slow_one.py").write_text(f"import {gate.__name__} as gate\ngate.reached.set()\ngate.open.wait(60)\n")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(fresh.get_task_class("second_task").__name__)) for _ in range(2)]
    threads[0].start()
    assert gate.reached.wait(60)
    threads[1].start()
    threads[1].join(0.2)  # one that did not wait would have failed by now
    gate.open.set()
    for thread in threads:
        thread.join(60)
    assert found == ["Second", "Second"]


def test_an_unknown_name_names_near_matches_accepted_ones_and_what_could_not_be_searched(home: Path) -> None:
    from lavis.common.registry import registry as fresh

    with pytest.raises(UnknownNameError) as caught:
        fresh.get_task_class("frist_task")
    message = str(caught.value)
    assert "Unknown task 'frist_task'. Did you mean 'first_task'" in message
    assert "Accepted: first_task, second_task." in message
    assert "home_of_tasks.zzz was not searched: No module named 'a_module_that_is_not_there'" in message
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, ConfigError)


def test_a_broken_module_of_ours_is_not_hidden(home: Path) -> None:
    from lavis.common.registry import registry as fresh

    (home / "broken.py").write_text("from lavis.common.registry import nothing_of_that_name\n")
    with pytest.raises(ImportError, match="nothing_of_that_name"):
        fresh.get_task_class("first_task_")


def test_duplicates_are_refused_and_the_same_class_again_is_not() -> None:
    fresh = Registry()

    class Model:
        pass

    fresh.register_model("m")(Model)
    fresh.register_model("m")(Model)
    with pytest.raises(KeyError, match="Name 'm' already registered for"):
        fresh.register_model("m")(ModuleType)
    with pytest.raises(TypeError, match="decorates a class"):
        fresh.register_model("f")(lambda: None)


def test_every_kind_has_its_functions() -> None:
    for kind in HOMES:
        cls = type(kind, (), {})
        fresh = Registry()
        getattr(fresh, f"register_{kind}")("name")(cls)
        assert getattr(fresh, f"get_{kind}_class")("name") is cls
    assert "linear_warmup_cosine_lr" in registry.list_lr_schedulers()
    assert {"runner_base", "runner_iter", "runner_regionblip"} <= set(registry.list_runners())


def test_free_names() -> None:
    fresh = Registry()
    fresh.register("a.b", 3)
    assert fresh.get("a.b") == 3
    assert fresh.get("a.c", 4) == 4
    assert fresh.unregister("a.b") == 3
    assert fresh.get("a.b") is None
