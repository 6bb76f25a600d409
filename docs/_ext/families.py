"""What the generated pages say about each built-in adapter: its cards, its class, and what the parity tests measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "docs" / "parity.json"
SPEED = ROOT / "docs" / "speed.json"


@dataclass(frozen=True)
class Family:
    """One built-in adapter with what the pages say about it."""

    name: str
    adapter: Any

    @cached_property
    def cards(self) -> list[Any]:
        """Cards, the default first."""
        return sorted(self.adapter.cards, key=lambda card: (not card.default, card.name))

    @cached_property
    def cls(self) -> type:
        """The adapter class."""
        return self.adapter.load_class()

    @property
    def capabilities(self) -> list[str]:
        """In the order in which they are declared."""
        from scfm.encoder import Capability

        return [c.value for c in Capability if c in self.cls.capabilities]  # type: ignore[attr-defined]

    @property
    def own(self) -> bool:
        """Ours, so that there is no original code to compare with."""
        return all(card.code == "scfm" for card in self.cards)

    @cached_property
    def fixtures(self) -> dict[str, dict[str, float]]:
        """Parity fixture -> recorded array -> largest difference, as measured."""
        return {name: arrays for name, arrays in measured().items() if family_of(name) == self.name}

    @property
    def largest_difference(self) -> str:
        """Over all recorded arrays."""
        arrays = [value for fixture in self.fixtures.values() for value in fixture.values()]
        if not arrays:
            return "has no original" if self.own else "not measured yet"
        return f"{difference(max(arrays))} ({len(arrays)} arrays)"


def families() -> list[Family]:
    """Built-in adapters, in the order of their names."""
    from scfm.registry import adapters

    built_in = {name: a for name, a in adapters().items() if a.entry_point.value.startswith("scfm.adapters.")}
    return [Family(name, adapter) for name, adapter in built_in.items() if adapter.cards]


def measured() -> dict[str, dict[str, float]]:
    """What the parity tests measured (`SCFM_PARITY_TABLE=docs/parity.json pytest tests/parity`)."""
    return json.loads(PARITY.read_text(encoding="utf-8")) if PARITY.exists() else {}


def cells_a_second() -> dict[str, float]:
    """Name of a card -> cells a second, as measured (`python benchmarks/models.py`)."""
    return json.loads(SPEED.read_text(encoding="utf-8"))["cells_a_second"] if SPEED.exists() else {}


def family_of(fixture: str) -> str | None:
    """The family whose name a fixture's name begins with; the longest counts."""
    from scfm.registry import adapters

    names = [name for name in adapters() if fixture == name or fixture.startswith((f"{name}_", f"{name}-"))]
    return max(names, key=len, default=None)


# Words


def difference(value: float) -> str:
    """A difference as the tables show it."""
    return "exact" if value == 0 else f"{value:.0e}"


def millions(parameters: int | None) -> str:
    """Number of parameters in words."""
    if parameters is None:
        return ""
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e6 else f"{parameters:,}"


def rate(cells: float | None) -> str:
    """Cells a second as the tables show them."""
    if cells is None:
        return ""
    return f"{cells:,.0f}" if cells >= 10 else f"{cells:.1g}" if cells < 0.1 else f"{cells:.1f}"


def sizes(cards: Sequence[Any]) -> str:
    """Smallest and largest number of parameters of several cards."""
    known = sorted({card.parameters for card in cards if card.parameters})
    if len(known) < 2 or millions(known[0]) == millions(known[-1]):
        return millions(known[0]) if known else ""
    return f"{millions(known[0]).removesuffix(' M')} to {millions(known[-1])}"


def short_licence(card: Any) -> str:
    """First words of a licence, with a mark where it restricts use."""
    text = re.split(r"[:;,(]", card.weights_licence)[0].strip()
    return f"**{text}, restricted**" if card.restricted else text


def few(items: Iterable[str], most: int = 3) -> str:
    """The first items, and how many more there are."""
    found = list(items)
    return ", ".join(found) if len(found) <= most + 1 else f"{', '.join(found[:most])} and {len(found) - most} more"


def unique(items: Iterable[str]) -> list[str]:
    """Each item once, in order."""
    return list(dict.fromkeys(items))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def paper_link(paper: str) -> str:
    """A link for a DOI or arXiv id."""
    if paper == "unverified":
        return paper
    if paper.lower().startswith("arxiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper[6:]})"
    return f"[doi:{paper}](https://doi.org/{paper})" if paper.startswith("10.") else paper


def code_link(code: str) -> str:
    """A link where the code is at an address."""
    return f"<{code}>" if code.startswith("http") else code
