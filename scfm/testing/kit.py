"""The register of checks, and `check_encoder`, which runs them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.testing.example import example_data

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "CHECKS",
    "TOLERANCE",
    "Check",
    "ConformanceError",
    "applicable",
    "check",
    "check_encoder",
    "check_of_cells_alone",
]

Check = Callable[[CellEncoder, "AnnData"], None]

TOLERANCE = 2e-6
"""Largest difference, relative to the largest value of the embedding, between computing a cell in one batch and in another.

Not 0, because a matrix product sums in an order that depends on the shapes of both matrices. Measured on a CPU over batches of 1, 3 and 8
cells: at most 8.4e-7 among the small checkpoints of tests/parity, and 4.7e-7 for twelve layers of width 512. A cell that sees its
neighbours (an unmasked padding token, a batch statistic, a shared random stream) moves by orders of magnitude more. What involves no change
of shapes is compared bit for bit.
"""


class ConformanceError(AssertionError):
    """An encoder breaks a promise; the message says which and what was found."""


CHECKS: dict[str, Check] = {}
"""Every check by name."""

ALONE: set[str] = set()
"""Checks that a cell's embedding is its own: not for models whose cells see each other."""


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def check_of_cells_alone(function: Check) -> Check:
    ALONE.add(function.__name__)
    return check(function)


def applicable(encoder: CellEncoder) -> list[str]:
    """Names of the checks that apply to an encoder.

    Where the card states ``input.sees_other_cells``, cells of one group influence each other by design: the checks that a cell does not
    depend on others are left out, and `group_mates` takes their place.
    """
    left_out = ALONE if encoder.card.input.sees_other_cells else {"group_mates"}
    return [name for name in CHECKS if name not in left_out]


def check_encoder(encoder: CellEncoder, *, data: AnnData | None = None, checks: Collection[str] | None = None) -> None:
    """Check that an encoder keeps the promises of the interface.

    Parameters
    ----------
    encoder
        As loaded, or with fresh weights; it is not changed. Its adapter must be installed (entry point), since it is saved and loaded.
    data
        At least four cells, none of them empty, in the unit the model reads; `example_data` by default.
    checks
        Names in `CHECKS`; all that apply by default.

    Raises
    ------
    ConformanceError
        Listing every check that failed, with what was found.
    """
    unknown = sorted(set(checks or ()) - set(CHECKS))
    if unknown:
        raise InputError(f"there are no checks {listing(unknown)}.", f"There are {listing(CHECKS, 100)}.")
    if data is None:
        data = example_data(encoder)
    failures: dict[str, Exception] = {}
    for name in applicable(encoder) if checks is None else checks:
        try:
            CHECKS[name](encoder, data)
        except Exception as error:  # an encoder that breaks a promise may raise anything
            failures[name] = error
    if failures:
        lines = [
            f"{name}: {error if isinstance(error, ConformanceError) else f'raised {type(error).__name__}: {error}'}"
            for name, error in failures.items()
        ]
        raise ConformanceError("\n  ".join([f"{encoder.name} fails {len(failures)} checks.", *lines])) from next(
            iter(failures.values())
        )
