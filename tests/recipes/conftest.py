"""The command `scfm`, as tests of recipes call it."""

import sys
import warnings
from collections.abc import Callable

import pytest

from scfm.cli import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `scfm ...` in this process; the exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scfm", *arguments])
        showwarning = warnings.showwarning
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            warnings.showwarning = showwarning
        return 0

    return run
