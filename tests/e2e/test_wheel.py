"""What is installed is what is in the tree, and nothing lands beside `scfm`."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = {".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in tracked.stdout.decode().split("\0"):
        path = ROOT / name
        if (
            name
            and path.is_file()
            and not path.is_symlink()
            and not name.startswith(("tests/", "docs/", "benchmarks/"))
        ):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_only_scfm_lands_in_site_packages(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"scfm"}


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    expected = set()
    for folder, target in (
        ("scfm", "scfm"),
        ("adapters", "scfm/adapters"),
        ("tasks", "scfm/tasks"),
        ("recipes", "scfm/recipes"),
    ):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            linked = folder == "scfm" and inside.parts[0] in ("adapters", "tasks", "recipes")
            if path.is_file() and not linked and "__pycache__" not in path.parts and path.suffix not in NOT_INSTALLED:
                expected.add(f"{target}/{inside.as_posix()}")
    assert expected - wheel == set()
