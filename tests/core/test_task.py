"""Tasks are found through entry points, run from Python and the shell, and their results are JSON, tables and pictures."""

import json
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scfm
from scfm import task as registry
from scfm.cli import app
from scfm.errors import CapabilityError, ScfmError
from scfm.results import TaskResult, provenance_of
from scfm.task import Task, find_task, require_capabilities, tasks

TOY = '''
from dataclasses import dataclass
from typing import Annotated
import numpy as np, pandas as pd, typer
from scfm.options import Json, Plot, Quiet, Result, show
from scfm.results import TaskResult
from scfm.task import Task

@dataclass(frozen=True)
class Counted(TaskResult):
    extra: np.ndarray

    def summary(self):
        return f"{len(self.table)} rows"

    def plot(self, *, ax=None, save=None):
        from scfm.plotting import axes_of, saved
        ax = axes_of(ax)
        ax.plot(self.extra)
        return saved(ax, save)

def count(n):
    return Counted(pd.DataFrame({"value": [1.0] * n}, index=list("abc")[:n]), np.array([1.0, np.nan]), provenance={"seed": 0})

def command(
    n: Annotated[int, typer.Argument(help="How many.")],
    out: Result = None, plot: Plot = None, as_json: Json = False, quiet: Quiet = False,
) -> None:
    """Count rows."""
    show(count(n), out=out, plot=plot, as_json=as_json, quiet=quiet)

TASK = Task("toycount", run=count, command=command)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toytask.py").write_text(TOY)
    (tmp_path / "brokentask.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [
        EntryPoint("toycount", "toytask:TASK", registry.GROUP),
        EntryPoint("broken", "brokentask:TASK", registry.GROUP),
        EntryPoint("misnamed", "toytask:TASK", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    tasks.cache_clear()
    yield
    tasks.cache_clear()


@pytest.mark.usefixtures("toy")
def test_a_task_of_a_plugin_runs_from_python():
    assert scfm.tasks.toycount(2).summary() == "2 rows"
    assert "toycount" in dir(scfm.tasks)


@pytest.mark.usefixtures("toy")
def test_a_task_of_a_plugin_is_a_command(tmp_path):
    run = CliRunner()
    listed = run.invoke(app, ["--help"]).output
    assert "Count rows." in listed
    assert "can't be imported" in listed  # of a broken one, which hides nothing
    assert isinstance(run.invoke(app, ["broken"]).exception, ScfmError)
    assert "Count rows." in run.invoke(app, ["toycount", "--help"]).output
    files = [tmp_path / name for name in ("r.json", "r.csv", "r.png")]
    done = run.invoke(app, ["toycount", "2", "--out", str(files[0]), "--plot", str(files[2])])
    assert done.exit_code == 0, done.output
    assert done.output == "2 rows\n"
    assert run.invoke(app, ["toycount", "3", "--out", str(files[1]), "-q"]).output == ""
    stored = json.loads(files[0].read_text())
    assert stored["table"] == {"columns": ["value"], "index": ["a", "b"], "data": [[1.0], [1.0]]}
    assert stored["extra"] == [1.0, None]
    assert stored["provenance"] == {"seed": 0}
    assert len(pd.read_csv(files[1])) == 3
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert json.loads(run.invoke(app, ["toycount", "2", "--json"]).output) == stored
    assert "neither .json" in run.invoke(app, ["toycount", "2", "--out", "x.txt"]).output


@pytest.mark.usefixtures("toy")
def test_unknown_broken_and_misnamed_tasks_are_told():
    with pytest.raises(ScfmError, match="Did you mean 'toycount'"):
        find_task("toycuont")
    with pytest.raises(ScfmError, match="can't be imported: ModuleNotFoundError"):
        find_task("broken")
    with pytest.raises(ScfmError, match="names no Task"):
        find_task("misnamed")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scfm.tasks.nothing


def test_a_clash_of_names_is_refused(monkeypatch):
    entries = [EntryPoint("same", f"{name}:TASK", registry.GROUP) for name in ("one", "two")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    tasks.cache_clear()
    with pytest.raises(ScfmError, match="two packages provide a task 'same'"):
        tasks()
    tasks.cache_clear()


def test_needs_are_checked_before_work():
    toy = Task("grn", run=lambda: None, command=lambda: None, needs=frozenset({"attention"}))
    with pytest.raises(CapabilityError, match="grn needs attention: pca has no attention"):
        require_capabilities(scfm.load("pca"), toy)
    require_capabilities(scfm.load("mini"), toy)


def test_provenance_names_encoder_settings_and_versions():
    record = provenance_of("toy", scfm.load("mini"), k=15, labels=np.str_("cell_type"))
    assert record["encoders"][0]["model"] == "mini"
    assert record["settings"] == {"k": 15, "labels": "cell_type"}
    assert set(record["versions"]) == {"scfm", "torch", "numpy"}


def test_results_are_json_whatever_they_hold():
    class Odd(TaskResult):
        def summary(self):
            return ""

        def plot(self, *, ax=None, save=None):
            raise AssertionError

    table = pd.DataFrame(
        {"a": pd.Categorical(["x", None]), "b": [np.float32(1), np.nan], "c": [{"k": (1,)}, SimpleNamespace()]}
    )
    data = json.loads(Odd(table, provenance={"path": __file__}).to_json())["table"]["data"]
    assert data[0] == ["x", 1.0, {"k": [1]}]
    assert data[1][:2] == [None, None]


def test_every_task_of_the_package_imports_light():
    import subprocess
    import sys

    code = (
        "import sys; from scfm.task import tasks, find_task; [find_task(name) for name in tasks()];"
        "print(sorted({'torch', 'pandas', 'anndata', 'scanpy', 'transformers', 'peft', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
