"""The code in the guides runs, and raises what the page says; without Sphinx, so that it is quick."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    path
    for path in sorted(DOCS.glob("*.md"))
    if re.search(r"^```\{(run|scfm)\}", path.read_text(encoding="utf-8"), re.MULTILINE)
]


def load_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scfm_docs_run", DOCS / "_ext" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["scfm_docs_run"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_does_what_its_page_says(path: Path) -> None:
    assert load_run().run_page(path) > 0


def test_an_error_that_does_not_come_is_noticed() -> None:
    run = load_run()
    with run.Page("page") as page:
        with pytest.raises(run.PageError, match="no ValueError"):
            page.python("1 + 1", raises="ValueError")
        with pytest.raises(run.PageError, match="ZeroDivisionError"):
            page.python("1 / 0")
