"""What produced a result: written next to every embedding, enough to make it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["UNS_KEY", "attach", "fingerprint", "plain", "versions"]

UNS_KEY = "scfm"


@cache
def _version(distribution: str) -> str:
    return version(distribution)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {package: _version(name) for package, name in (("scfm", "scfm-sdk"), ("torch", "torch"), ("numpy", "numpy"))}


def plain(value: Any) -> Any:
    """A value as JSON and h5ad can hold it: dataclasses and mappings to dicts, sequences to lists, None left out of dicts."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value


def fingerprint(record: Mapping[str, Any]) -> str:
    """sha256 of a record's canonical JSON."""
    return hashlib.sha256(json.dumps(plain(record), sort_keys=True).encode()).hexdigest()


def attach(adata: AnnData, key: str, record: Mapping[str, Any]) -> None:
    """Store a record in ``adata.uns["scfm"][key]`` as JSON text (h5ad can't hold every nesting)."""
    adata.uns[UNS_KEY] = {**adata.uns.get(UNS_KEY, {}), key: json.dumps(plain(record), indent=1)}
