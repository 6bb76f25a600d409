"""A page for every shipped recipe: its commands, what it expects, its measured result, and the file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from families import ROOT, table

RECIPES = ROOT / "recipes"
RESULTS = RECIPES / "results"


def recipe_pages() -> dict[str, str]:
    """Name of the page -> text; "index" is the table of all."""
    from scfm.plans import read, shipped

    pages = {name: _page(name, path, read(name)) for name, path in shipped().items()}
    rows = [
        (f"[`{name}`](recipes/{name}.md)", recipe.title, f"`{recipe.kind}`")
        for name, recipe in ((name, read(name)) for name in shipped())
    ]
    toc = "\n".join(f"recipes/{name}" for name in pages)
    pages["index"] = f"""# All recipes

{table(("recipe", "what", "kind"), rows)}

```{{toctree}}
:hidden:

{toc}
```
"""
    return pages


def memory_table() -> str:
    """Estimated and measured peaks of memory."""
    stored = RESULTS / "memory.json"
    if not stored.exists():
        return ""
    found = json.loads(stored.read_text(encoding="utf-8"))
    rows = [(row["run"], f"{row['estimated']:.2f} GB", f"{row['measured']:.2f} GB") for row in found["rows"]]
    return f"Held against the peak of the run itself (`{found['command']}`):\n\n{table(('', 'estimated', 'measured'), rows)}\n"


def recipe_pictures() -> dict[str, Path]:
    """Name of the file in the docs -> the picture."""
    found = {f"{path.stem}.png": path for path in sorted(RESULTS.glob("*.png"))}
    return found | {"pretrain_mini.png": RECIPES / "pretrain_mini" / "loss.png"}


def _page(name: str, path: Path, recipe: Any) -> str:
    from scfm.plans import header

    commands = "\n".join(header(path))
    body = path.read_text(encoding="utf-8").split("\n", len(header(path)))[-1].rstrip()
    return f"""# {name}

{recipe.title}.

```bash
{commands}
```

## Data

{recipe.expects.data[:1].upper()}{recipe.expects.data[1:]}.

{_columns(recipe)}
## Result

{_result(name)}
## The recipe

`scfm recipes copy {name}` copies it; any key can be set behind the command: `train.epochs=3`.

```yaml
{body}
```
"""


def _columns(recipe: Any) -> str:
    if not recipe.expects.obs:
        return ""
    rows = [
        (f"`{pattern.strip('{}')}`", expectation.what, "" if expectation.kind == "any" else expectation.kind)
        for pattern, expectation in recipe.expects.obs.items()
    ]
    return f"""Columns of `obs`, by the key that names them; a key that is null is not read:

{table(("key", "what the column holds", "kind"), rows)}

"""


def _result(name: str) -> str:
    if name == "pretrain_mini":
        evaluation = (RECIPES / name / "evaluation.md").read_text(encoding="utf-8").split("\n", 2)[-1].strip()
        return f"{_picture(name, 'Losses of pre-training')}\n{evaluation}\n"
    stored = RESULTS / f"{name}.json"
    if not stored.exists():
        return "Not measured.\n"
    found: Mapping[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
    columns = list(dict.fromkeys(key for row in found["rows"] for key in row))
    rows = [tuple(row.get(column, "") for column in columns) for row in found["rows"]]
    parts = [found["data"], found.get("note", ""), table(("", *columns[1:]), rows)]
    picture = _picture(name, "The measured result") if (RESULTS / f"{name}.png").exists() else ""
    source = f"Measured at commit `{found['commit']}` by `{found['command']}`."
    return "\n\n".join([*filter(None, parts), picture, source]) + "\n"


def _picture(name: str, alt: str) -> str:
    return f"```{{image}} {name}.png\n:alt: {alt}\n```\n"
