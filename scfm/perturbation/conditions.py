"""Names of conditions: genes joined with "+"; the control's name stands where nothing is perturbed ("KLF1", "KLF1+ctrl", "KLF1+MAP2K6")."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Key", "genes_of", "order_of", "panel_genes"]

Key = tuple[str, str]
"""A context (cell line, donor; "" where there is one only) and a condition."""


def genes_of(condition: str, control: str) -> tuple[str, ...]:
    """The perturbed genes of a condition, in its order; none for the control.

    >>> genes_of("KLF1+ctrl", "ctrl"), genes_of("KLF1+MAP2K6", "ctrl"), genes_of("ctrl", "ctrl")
    (('KLF1',), ('KLF1', 'MAP2K6'), ())
    """
    return tuple(part for part in condition.split("+") if part != control)


def order_of(condition: str, control: str) -> int:
    """How many genes a condition perturbs."""
    return len(genes_of(condition, control))


def panel_genes(conditions: Iterable[str], control: str) -> tuple[str, ...]:
    """All perturbed genes, sorted."""
    return tuple(sorted({gene for condition in conditions for gene in genes_of(condition, control)}))
