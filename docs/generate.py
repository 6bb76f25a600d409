"""Pages and tables that are made from the code: model pages from cards, command and API reference, the README's model table.

python docs/generate.py             # writes docs/generated/
python docs/generate.py --readme    # rewrites the model table in README.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from families import families, few, short_licence, sizes, table, unique  # noqa: E402
from model_pages import family_page, models_page  # noqa: E402
from recipe_pages import memory_table, recipe_pages, recipe_pictures  # noqa: E402
from reference_pages import api_pages, cli_page, error_tree, exit_codes  # noqa: E402

README = HERE.parent / "README.md"
BEGIN, END = "<!-- models: written by docs/generate.py --readme -->", "<!-- models end -->"
PICTURE = HERE / "images" / "demo_umap.png"


def readme_table() -> str:
    """One row a family."""
    rows = []
    for f in families():
        extra = [name.replace("_", " ") for name in f.capabilities if name != "embed"]
        rows.append(
            (
                f"[{f.name}](adapters/{f.name})",
                str(len(f.cards)),
                ", ".join(unique(m for card in f.cards for m in card.modality)),
                few(unique(s for card in f.cards for s in card.species)),
                sizes(f.cards),
                ", ".join(extra),
                ", ".join(unique(short_licence(card) for card in f.cards)),
                f.largest_difference,
            )
        )
    head = (
        "model",
        "variants",
        "data",
        "species",
        "parameters",
        "can, beside embed",
        "licence of the weights",
        "largest difference",
    )
    return table(head, rows)


def readme_text(text: str) -> str:
    """README with the current table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{after}"


def demo_picture() -> str:
    """The picture of the demo, once it has been drawn."""
    if not PICTURE.exists():
        return ""
    alt = "Two UMAPs of 983 blood cells: their cell types, and where the transferred label is wrong"
    return f"```{{image}} images/{PICTURE.name}\n:alt: {alt}\n```\n"


def write(path: Path, text: str) -> None:
    """Write a page if it differs: Sphinx reads only what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_all(folder: Path) -> None:
    """Write every generated page, and remove pages of models that are gone."""
    found = families()
    pages = {
        "models.md": models_page(found),
        "cli.inc": cli_page(),
        "error_tree.inc": error_tree(),
        "exit_codes.inc": exit_codes(),
        "demo_picture.inc": demo_picture(),
        "recipe_memory.inc": memory_table(),
    }
    pages |= {f"models/{f.name}.md": family_page(f) for f in found}
    api = api_pages()
    pages["api.md"] = api.pop("index")
    pages |= {f"api/{module}.md": text for module, text in api.items()}
    recipes = recipe_pages()
    pages["recipes.md"] = recipes.pop("index")
    pages |= {f"recipes/{name}.md": text for name, text in recipes.items()}
    for path in (*folder.rglob("*.md"), *folder.rglob("*.inc")):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
    for name, text in pages.items():
        write(folder / name, text)
    for name, picture in recipe_pictures().items():
        (folder / "recipes" / name).write_bytes(picture.read_bytes())


def main(arguments: Sequence[str]) -> None:
    """Write the pages, or with --readme the README's table."""
    if list(arguments) == ["--readme"]:
        write(README, readme_text(README.read_text(encoding="utf-8")))
    elif not arguments:
        write_all(HERE / "generated")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
