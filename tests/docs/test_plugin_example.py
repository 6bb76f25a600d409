"""The plugin of the guide `docs/adding_a_model.md` works, with the tests it ships."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from scfm import registry

PLUGIN = Path(__file__).parents[2] / "docs" / "examples" / "plugin"
METADATA = "Metadata-Version: 2.1\nName: scfm-toybag\nVersion: 0.1.0\n"
ENTRY_POINTS = "[scfm.adapters]\ntoybag = scfm_toybag:ToyBag\n"

spec = importlib.util.spec_from_file_location("test_toybag", PLUGIN / "tests" / "test_toybag.py")
assert spec is not None
assert spec.loader is not None
own_tests: ModuleType = importlib.util.module_from_spec(spec)
spec.loader.exec_module(own_tests)
folder = own_tests.folder  # the fixture


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin as pip would leave it: importable, and its entry point in a dist-info folder."""
    site = tmp_path_factory.mktemp("site")
    dist_info = site / "scfm_toybag-0.1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(METADATA)
    (dist_info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(PLUGIN))
    registry.adapters.cache_clear()
    yield
    registry.adapters.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "scfm_toybag"]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", [name for name in vars(own_tests) if name.startswith("test_")])
def test_the_plugins_own_test_passes(name: str, folder: Path) -> None:
    getattr(own_tests, name)(folder)


@pytest.mark.usefixtures("installed")
def test_the_plugin_is_listed_beside_the_built_in_models() -> None:
    assert "toybag" in registry.adapters()
    assert registry.adapters()["toybag"].distribution == "scfm-toybag"
    assert "toybag" in [card.name for card in registry.cards()]


@pytest.mark.slow
def test_pip_installs_the_plugin_with_its_entry_point_and_cards(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(PLUGIN, tmp_path / "plugin")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(tmp_path / "site"), str(tmp_path / "plugin")], check=True)
    assert (tmp_path / "site" / "scfm_toybag" / "cards" / "toybag.toml").is_file()
    (entry_points,) = (tmp_path / "site").glob("*.dist-info/entry_points.txt")
    assert entry_points.read_text().split() == ENTRY_POINTS.split()
