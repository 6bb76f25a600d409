"""Imports of optional dependencies, with the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from scfm.errors import MissingExtraError

__all__ = ["optional", "require"]


def optional(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` that names the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(module, extra, purpose) from error


def require(module: str, *, extra: str, purpose: str) -> None:
    """Raise `MissingExtraError` unless the module is installed; it is not imported."""
    if find_spec(module) is None:
        raise _missing(module, extra, purpose)


def _missing(module: str, extra: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(f"{purpose} needs {module.partition('.')[0]}.", f"pip install 'scfm-sdk[{extra}]'")
