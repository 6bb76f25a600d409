"""A perturbation screen as pseudobulk profiles, from which responses are learnt: what was summed, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.errors import InputError, listing
from scfm.perturbation.conditions import Key
from scfm.perturbation.de import top_non_dropout, welch_scores
from scfm.perturbation.pseudobulk import TARGET_SUM, Profiles, group_sums, log_profiles

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["Screen", "gene_screen", "screen_parts"]

CELLS_TARGET = 1e4
"""Counts a cell is scaled to before the log, for the test that ranks genes."""


@dataclass(frozen=True)
class Screen:
    """Pseudobulk profiles of a perturbation screen.

    Parameters
    ----------
    profiles
        Of every (context, condition), the controls among them.
    sums
        (n_rows, n_genes) float64 summed counts behind them.
    top
        Columns of the 20 genes that differ most from the control in the cells (GEARS's `top_non_dropout_de_20`), of every key with two
        cells or more.
    context
        Column of `obs` with the context: cell line, donor.
    """

    profiles: Profiles
    sums: np.ndarray
    top: Mapping[Key, np.ndarray]
    context: str

    @property
    def keys(self) -> tuple[Key, ...]:
        """(context, condition) of every treatment."""
        return self.profiles.perturbed

    def describe(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Columns of `obs` that say what the conditions are."""
        return {}

    def examples(self, keys: Sequence[Key] | None = None) -> AnnData:
        """Examples to train on: the control's summed counts in `X`, the condition in `obs`.

        What the control became is in the screen, where the objective finds it.

        Parameters
        ----------
        keys
            (context, condition) of each; all treatments by default.
        """
        import anndata
        import pandas as pd
        from scipy import sparse

        keys = self.keys if keys is None else keys
        self.profiles.rows(keys)
        rows = self.profiles.rows([(context, self.profiles.control) for context, _ in keys])
        obs = {self.context: [context for context, _ in keys], "condition": [name for _, name in keys]}
        return anndata.AnnData(
            X=sparse.csr_matrix(self.sums[rows].astype(np.float32)),
            obs=pd.DataFrame({**obs, **self.describe(keys)}, index=[" | ".join(filter(None, key)) for key in keys]),
            var=pd.DataFrame(index=self.profiles.genes.astype(str)),
        )

    def controls(self) -> AnnData:
        """The summed counts of each context's untreated cells, a row each, for `predict_response`."""
        import anndata
        import pandas as pd
        from scipy import sparse

        contexts = sorted({context for context, _ in self.keys})
        rows = self.profiles.rows([(context, self.profiles.control) for context in contexts])
        return anndata.AnnData(
            X=sparse.csr_matrix(self.sums[rows].astype(np.float32)),
            obs=pd.DataFrame({self.context: contexts}, index=contexts),
            var=pd.DataFrame(index=self.profiles.genes.astype(str)),
        )


def screen_parts(
    matrix: Any, keys: Sequence[Key], genes: Any, *, control: str, min_cells: int, target_sum: float
) -> tuple[Profiles, np.ndarray, dict[Key, np.ndarray]]:
    """Profiles, sums and top genes of cells; conditions of fewer than `min_cells` are left out, controls are not.

    Parameters
    ----------
    matrix
        (n_cells, n_genes) counts, CSR.
    keys
        (context, condition) of every cell.
    """
    count: dict[Key, int] = {}
    for key in keys:
        count[key] = count.get(key, 0) + 1
    kept = sorted(key for key, n in count.items() if n >= min_cells or key[1] == control)
    if not any(name != control for _, name in kept):
        raise InputError(
            f"no condition has {min_cells} cells in a context; the most is {max(count.values())}.", "Lower min_cells."
        )
    number = {key: i for i, key in enumerate(kept)}
    codes = np.array([number.get(key, -1) for key in keys], dtype=np.int64)
    sums = group_sums(matrix, codes, len(kept))
    cells = np.array([count[key] for key in kept], dtype=np.int64)
    names = np.asarray(genes, dtype=object)
    profiles = Profiles(names, tuple(kept), log_profiles(sums, target_sum), cells, control, target_sum)
    return profiles, sums, _top_genes(matrix, codes, kept, control)


def _top_genes(matrix: Any, codes: np.ndarray, keys: Sequence[Key], control: str) -> dict[Key, np.ndarray]:
    """The 20 genes that differ most from the context's control, by Welch's t on log1p CP10k of the cells."""

    def cells(row: int) -> np.ndarray:
        part = matrix[np.flatnonzero(codes == row)].toarray().astype(np.float64)
        return np.log1p(CELLS_TARGET * part / part.sum(axis=1, keepdims=True).clip(min=1))

    found = {}
    for at, (context, name) in enumerate(keys):
        if name != control:
            continue
        untreated = cells(at)
        for row, key in enumerate(keys):
            if key[0] != context or row == at or min(len(untreated), int((codes == row).sum())) < 2:
                continue
            own = cells(row)
            found[key] = top_non_dropout(welch_scores(own, untreated), own.mean(axis=0), untreated.mean(axis=0))
    return found


def gene_screen(
    adata: AnnData,
    *,
    condition: str = "condition",
    control: str = "ctrl",
    context: str | None = None,
    min_cells: int = 1,
    layer: str | None = None,
    gene_column: str | None = None,
    target_sum: float = TARGET_SUM,
) -> Screen:
    """Pseudobulk profiles of cells in which genes were perturbed.

    Parameters
    ----------
    adata
        Raw counts in `X` or `layer`; not changed.
    condition
        Column of `obs`: "KLF1", or "KLF1+MAP2K6" for several genes.
    control
        Name of the control condition there.
    context
        Column of `obs` with the cell line or donor; None: one.
    min_cells
        Conditions with fewer cells in a context are left out.
    layer
        Key of `layers`; None reads `X`.
    gene_column
        Column of `var` with the genes' names; None reads `var_names`.
    target_sum
        Counts a profile is scaled to.

    Raises
    ------
    InputError
        A column or the control is missing, or the matrix holds no counts.
    """
    from scfm.cells import Source, check_values
    from scfm.genes import feature_names

    source = Source(adata, layer)
    columns = [condition, *([context] if context else [])]
    source.require_obs(columns, "Pass condition= and context= as they are called there.")
    if source.obs[columns].isna().to_numpy().any():
        raise InputError(f"obs[{columns}] has missing values.", "Remove these cells.")
    names = source.obs[condition].astype(str)
    if control not in set(names):
        raise InputError(
            f"obs[{condition!r}] has no {control!r}; it has {listing(sorted(set(names)))}.", "Pass control=."
        )
    matrix = source.take(slice(0, source.shape[0]))
    check_values(matrix, "counts", source, slice(0, source.shape[0]), "a screen")
    contexts: pd.Series | list[str] = source.obs[context].astype(str) if context else [""] * len(names)
    parts = screen_parts(
        matrix,
        list(zip(contexts, names, strict=True)),
        feature_names(source.var, gene_column),
        control=control,
        min_cells=min_cells,
        target_sum=target_sum,
    )
    return Screen(*parts, context or "context")
