"""The documentation builds without a warning and without a connection."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_documentation_builds_without_warnings(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(tmp_path / "doctrees"),
    ]
    run = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, **offline},
    )
    assert run.returncode == 0, run.stderr
    for page in (
        "index.html",
        "input.html",
        "generated/models.html",
        "generated/models/scgpt.html",
        "generated/api/scfm.encoder.html",
    ):
        assert (tmp_path / "html" / page).stat().st_size > 1000
    text = (tmp_path / "html" / "input.html").read_text(encoding="utf-8")
    assert "raw counts found in adata.layers" in text
