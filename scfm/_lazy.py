"""Imports of optional dependencies, with the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from scfm.errors import MissingExtraError

__all__ = ["optional"]


def optional(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` that names the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(f"{purpose} needs {package}.", f"pip install 'scfm-sdk[{extra}]'") from error
