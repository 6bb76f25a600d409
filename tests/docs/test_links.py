"""Every file that the documentation, the README and their companions refer to exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]
LINK = re.compile(
    r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)|^```\{(?:include|literalinclude|image)\} (\S+)|<img[^>]+src=\"([^\"]+)\"",
    re.MULTILINE,
)
GENERATED = re.compile(r"^generated/")


def without_code(text: str) -> str:
    """The page without the content of its code blocks; the first line of a directive stays."""
    return re.sub(r"^(```[^\n]*\n).*?^```$", r"\1", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[str]:
    for match in LINK.finditer(without_code(page.read_text(encoding="utf-8"))):
        target = next(group for group in match.groups() if group)
        if not re.match(r"[a-z]+:", target) and not GENERATED.match(target):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    broken = [target for target in links(page) if not (page.parent / target).exists()]
    assert not broken


def test_every_page_is_in_the_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {line for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for line in block.split("\n")}
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= listed
