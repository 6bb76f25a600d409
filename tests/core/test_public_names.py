"""What users import, what importing costs, and who may be named where."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scfm
from scfm.registry import GROUP, adapters

ROOT = Path(__file__).parents[2]
CORE = sorted(path for path in (ROOT / "scfm").rglob("*.py") if not {"adapters", "tasks", "recipes"} & set(path.parts))
FAMILIES = sorted(path.parent.name for path in (ROOT / "adapters").glob("*/__init__.py"))
HEAVY = {"torch", "pandas", "anndata", "scanpy", "transformers", "peft", "sklearn", "scipy", "numpy", "zarr", "h5py"}


def imported_by(code: str) -> set[str]:
    """Top-level modules in a fresh process after running some code."""
    code += "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import scfm", "import scfm; scfm.models()", "import scfm; scfm.errors; dir(scfm)"])
def test_import_is_light(code):
    assert imported_by(code) & HEAVY == set()


def test_importing_changes_nothing_in_the_process():
    code = """
import warnings, logging, os, random, torch, scipy.sparse  # which adds a filter of its own
before = list(warnings.filters), list(logging.root.handlers), dict(os.environ), random.getstate(), torch.get_num_threads()
import scfm, scfm.encoder, scfm.inference, scfm.loading
after = list(warnings.filters), list(logging.root.handlers), dict(os.environ), random.getstate(), torch.get_num_threads()
assert before == after
assert logging.getLogger("scfm").handlers == []
"""
    imported_by(code)


@pytest.mark.parametrize("name", scfm.__all__)
def test_public_names_are_there(name):
    assert getattr(scfm, name) is getattr(scfm, name)
    assert name in dir(scfm)


def test_unknown_names_are_attribute_errors():
    assert scfm.__version__ == importlib.metadata.version("scfm-sdk")
    with pytest.raises(AttributeError, match="no attribute 'embed'"):
        _ = scfm.embed


# Rooms


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_folder_has_a_card_and_an_entry_point(family):
    assert list((ROOT / "adapters" / family / "cards").glob("*.toml"))
    found = adapters().get(family)
    assert found is not None, f"add {family} to [project.entry-points.'scfm.adapters'] and run `make dev`"
    assert found.entry_point.value.partition(":")[0] == f"scfm.adapters.{family}"


def test_every_built_in_entry_point_has_a_folder():
    own = importlib.metadata.distribution("scfm-sdk").entry_points.select(group=GROUP)
    assert sorted(point.name for point in own) == FAMILIES


def literals(path: Path) -> list[str]:
    """String constants of a file that are not docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_names_no_adapter(path):
    """Nothing in the core asks for a model by name: no literal that is a family's name, one of its variants, or loads it."""
    name = "|".join(map(re.escape, FAMILIES))
    asks = re.compile(rf"(scfm\.adapters\.)?({name})(/.*)?|.*load\(['\"]({name})\b.*", re.DOTALL)
    assert [text for text in literals(path) if asks.fullmatch(text)] == []


def test_no_file_shadows_an_installed_package():
    """`python recipes/x.py` puts recipes/ first on sys.path: a file there called like a package would hide it."""
    packages = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    entries = [entry for room in ("recipes", "tasks", "adapters") for entry in (ROOT / room).iterdir()]
    names = {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").exists()} - {
        "__init__"
    }
    assert names & packages == set()


@pytest.mark.parametrize("room", ["adapters", "tasks", "recipes"])
def test_rooms_are_not_importable_under_their_folders_name(room):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {room}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"this package is scfm.{room}" in run.stderr
