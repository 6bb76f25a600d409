"""Names of conditions: genes joined with "+"; the control's name stands where nothing is perturbed ("KLF1", "KLF1+ctrl", "KLF1+MAP2K6")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["Key", "genes_of", "one_hot", "order_of", "panel_genes", "sums_of_genes"]

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


def one_hot(keys: Sequence[Key], control: str) -> dict[str, np.ndarray]:
    """A vector (n_genes,) for each gene that these conditions perturb: 1 in its own place."""
    names = panel_genes((condition for _, condition in keys), control)
    return dict(zip(names, np.eye(len(names)), strict=True))


def sums_of_genes(conditions: Sequence[str], table: Mapping[str, np.ndarray], control: str) -> np.ndarray:
    """The sum of the vectors of each condition's genes (n_conditions, d); genes without one are left out, NaN where none has one."""
    rows = np.full((len(conditions), len(next(iter(table.values()))) if table else 1), np.nan)
    for row, condition in zip(rows, conditions, strict=True):
        if known := [table[gene] for gene in genes_of(condition, control) if gene in table]:
            row[:] = np.sum(known, axis=0)
    return rows
