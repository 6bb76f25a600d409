"""Imports point down: the contracts of pyproject.toml, and the rooms that the core may not enter."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("scfm.adapters", "scfm.tasks", "scfm.recipes")
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"
USER_FACING = {"scfm.cli"}  # runs recipes and tasks, by import inside a command


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("scfm", exclude_type_checking_imports=True, cache_dir=None)


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), None)


def test_contracts_are_kept():
    run = subprocess.run(
        [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml")], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_core_enters_no_room(graph):
    """Also by modules that the layers do not list yet."""
    core = [module for module in graph.modules if room_of(module) is None and module not in USER_FACING]
    entered = {
        (module, found)
        for module in core
        for found in graph.find_modules_directly_imported_by(module)
        if room_of(found) is not None
    }
    assert entered == set()


def test_adapters_and_tasks_import_the_core_only(graph):
    """A room's folder or file may import its own parts; another folder of its room, or another room, never."""
    crossed = set()
    for module in graph.modules:
        if room_of(module) not in ROOMS[:2]:
            continue
        own = ".".join(module.split(".")[:3])
        for found in graph.find_modules_directly_imported_by(module):
            if room_of(found) is not None and not (found == own or found.startswith(f"{own}.")):
                crossed.add((module, found))
    assert crossed == set()


def test_all_files_are_in_the_graph(graph):
    """So that the links to the rooms did not hide them from these tests."""
    for room in ROOMS:
        for path in (ROOT / room.rpartition(".")[2]).rglob("*.py"):
            parts = [*path.relative_to(ROOT).with_suffix("").parts]
            name = ".".join(["scfm", *parts]).removesuffix(".__init__")
            if all(part.isidentifier() for part in parts) and (path.parent / "__init__.py").exists():
                assert name in graph.modules
