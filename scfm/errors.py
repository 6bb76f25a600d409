"""Every error scfm raises on purpose.

    ScfmError
    ├── InputError            the data are not what the model reads (also a ValueError)
    │   ├── GeneMatchError    too few features of the data are known to the model
    │   └── SpeciesError      the data are of a species the model was not trained on
    ├── CheckpointError       a checkpoint lacks, or has too many, files or tensors
    ├── DownloadError         a file could not be had from the hub, or is not the one the card names
    ├── UnknownModelError     no such model (also a LookupError)
    ├── CapabilityError       the encoder cannot do what was asked (also a TypeError)
    ├── ResumeError           the output on disk belongs to another run
    └── MissingExtraError     an optional dependency is not installed (also an ImportError)

A message has up to three parts, in this order: what was found, what is needed, what to type.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CapabilityError",
    "CheckpointError",
    "DownloadError",
    "GeneMatchError",
    "InputError",
    "MissingExtraError",
    "ResumeError",
    "ScfmError",
    "SpeciesError",
    "UnknownModelError",
    "listing",
]


class ScfmError(Exception):
    """Base of all errors raised by scfm.

    Parameters
    ----------
    found
        What was found, and what is needed instead.
    fix
        What to type; printed on a line of its own.
    """

    def __init__(self, found: str, fix: str | None = None) -> None:
        super().__init__(found if fix is None else f"{found}\n  {fix}")
        self.found = found
        self.fix = fix


class InputError(ScfmError, ValueError):
    """The data are not what the model reads."""


class GeneMatchError(InputError):
    """Too few features of the data are known to the model."""


class SpeciesError(InputError):
    """The data are of a species the model was not trained on."""


class CheckpointError(ScfmError):
    """A checkpoint lacks, or has too many, files or tensors."""


class DownloadError(ScfmError):
    """A file could not be had from the hub, or is not the one the card names."""


class UnknownModelError(ScfmError, LookupError):
    """No installed adapter answers to this name."""


class CapabilityError(ScfmError, TypeError):
    """The encoder cannot do what was asked."""


class ResumeError(ScfmError):
    """The output on disk was begun by another run: other data, model or settings."""


class MissingExtraError(ScfmError, ImportError):
    """An optional dependency is not installed."""


def listing(items: Iterable[object], limit: int = 8) -> str:
    """Join items for a message, e.g. ``'a', 'b' and 12 more``."""
    shown = [repr(item) if isinstance(item, str) else str(item) for item in items]
    rest = len(shown) - limit
    return ", ".join(shown) if rest <= 0 else f"{', '.join(shown[:limit])} and {rest} more"
