"""Names -> cards -> adapter classes, found through the entry points `scfm.adapters`.

Built-in models and plugins come through the same door. Cards are TOML files beside the class and are read without importing it,
so that listing models needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scfm.cards import ModelCard
from scfm.errors import ScfmError, UnknownModelError, listing

if TYPE_CHECKING:
    from scfm.checkpoint import Checkpoint
    from scfm.encoder import Capability, CellEncoder

__all__ = ["GROUP", "Adapter", "able_to", "adapters", "cards", "find", "recognize"]

GROUP = "scfm.adapters"


@dataclass(frozen=True)
class Adapter:
    """One installed adapter family."""

    family: str
    entry_point: EntryPoint
    folder: Path
    cards: tuple[ModelCard, ...]
    problem: str | None = None
    """Why its package or cards can't be read; such an adapter is listed without cards."""

    @property
    def distribution(self) -> str:
        """Name of the installed package that provides it."""
        return self.entry_point.dist.name if self.entry_point.dist else "?"

    @property
    def default_card(self) -> ModelCard:
        """The variant meant when only the family is named."""
        chosen = [card for card in self.cards if card.default or card.name == self.family]
        return (chosen or list(self.cards))[0]

    def load_class(self) -> type[CellEncoder]:
        """Import the adapter class; an error is blamed on its distribution."""
        try:
            return self.entry_point.load()
        except Exception as error:  # a plugin's code may fail in any way
            raise ScfmError(
                f"adapter {self.family!r} of the package {self.distribution!r} can't be imported: {type(error).__name__}: {error}",
                f"Repair or remove it: pip install --upgrade {self.distribution}",
            ) from error


def _read(family: str, entry_point: EntryPoint) -> Adapter:
    """An adapter with its cards. A broken plugin must not hide the others: its problem is noted, and told when it is asked for."""
    folder = Path()
    try:
        spec = find_spec(entry_point.module)  # imports the parent packages
        if spec is None or spec.origin is None:
            return Adapter(family, entry_point, folder, (), f"there is no module {entry_point.module}")
        folder = Path(spec.origin).parent
        own = tuple(ModelCard.read(path) for path in sorted((folder / "cards").glob("*.toml")))
    except Exception as error:  # a plugin's code may fail in any way
        return Adapter(family, entry_point, folder, (), f"{type(error).__name__}: {error}")
    return Adapter(family, entry_point, folder, own)


@cache
def adapters() -> dict[str, Adapter]:
    """Installed adapters by family name.

    Two packages that claim one family are both listed under ``package:family`` and the plain name is refused by `find`.
    """
    by_family: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=GROUP):
        by_family.setdefault(entry_point.name, []).append(entry_point)
    found = {}
    for family, claims in sorted(by_family.items()):
        for entry_point in claims:
            adapter = _read(family, entry_point)
            found[family if len(claims) == 1 else f"{adapter.distribution}:{family}"] = adapter
    return found


def cards() -> list[ModelCard]:
    """Cards of all installed models, defaults first within a family."""
    return [
        card
        for adapter in adapters().values()
        for card in sorted(adapter.cards, key=lambda card: (not card.default, card.name))
    ]


def find(name: str) -> tuple[Adapter, ModelCard | None]:
    """Look a model up by its card's name or its family's.

    Raises
    ------
    UnknownModelError
        With the nearest names.
    """
    known = adapters()
    if name in known:
        adapter = known[name]
        return adapter, adapter.default_card if adapter.cards else None
    matches = {
        f"{adapter.distribution}:{card.name}": (adapter, card)
        for adapter in known.values()
        for card in adapter.cards
        if name in (card.name, *card.aliases, f"{adapter.distribution}:{card.name}")
    }
    claims = sorted({*matches, *(key for key in known if key.endswith(f":{name}"))})
    if len(claims) > 1:
        raise UnknownModelError(f"{len(claims)} packages provide a model {name!r}.", f"Say which: {listing(claims)}.")
    if matches:
        return next(iter(matches.values()))
    names = sorted({*known, *(name for card in cards() for name in (card.name, *card.aliases))})
    near = get_close_matches(name, names, n=3)
    hint = f" Did you mean {listing(near)}?" if near else ""
    raise UnknownModelError(
        f"no model {name!r}.{hint} {len(names)} names are installed.",
        "List them with `scfm models`; a folder or a hub repository is given as ./folder or org/repo.",
    )


def able_to(capability: Capability) -> list[str]:
    """Names of the adapters with a capability; those that can't be imported are left out."""
    able = []
    for name, adapter in adapters().items():
        try:
            if capability in adapter.load_class().capabilities:
                able.append(name)
        except ScfmError:
            continue
    return able


def recognize(checkpoint: Checkpoint) -> Adapter:
    """The adapter that can read a checkpoint folder.

    Raises
    ------
    UnknownModelError
        No adapter recognises it, or several do.
    """
    known = adapters()
    if checkpoint.saved_by is not None:
        return find(checkpoint.saved_by)[0]
    claims, broken = [], []
    for adapter in known.values():
        try:
            if adapter.load_class().recognizes(checkpoint):
                claims.append(adapter)
        except Exception as error:  # a broken plugin must not hide the others
            broken.append(f"{adapter.family}: {error}")
    if len(claims) == 1:
        return claims[0]
    if claims:
        names = listing(adapter.family for adapter in claims)
        raise UnknownModelError(f"several adapters recognise {checkpoint.folder}: {names}.", "Pass adapter=<name>.")
    raise UnknownModelError(
        f"no installed adapter recognises {checkpoint.folder} (files: {listing(checkpoint.files())})."
        + (f" Adapters that could not be asked: {listing(broken)}." if broken else ""),
        "Pass adapter=<name> to see what that adapter finds missing; `scfm models` lists the names.",
    )
