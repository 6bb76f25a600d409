"""The README's model table is the one that the cards give."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_model_table_of_the_readme_is_current() -> None:
    spec = importlib.util.spec_from_file_location("scfm_docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(generate)
    finally:
        sys.path[:] = before
    text = generate.README.read_text(encoding="utf-8")
    assert generate.readme_text(text) == text, "stale: run `python docs/generate.py --readme`"
