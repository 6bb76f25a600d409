"""Comparison: do encoders see the same cells alike? CKA, shared neighbours, Procrustes, and the labels that each carries.

scfm compare mini pca X_scvi cells.h5ad --labels cell_type --batch donor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from scfm.errors import InputError
from scfm.options import (
    Device,
    File,
    GeneColumn,
    Json,
    Layer,
    MapGenes,
    Plot,
    Quiet,
    Result,
    Seed,
    ValuesOption,
    read_adata,
    show,
)
from scfm.results import TaskResult, provenance_of
from scfm.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scfm.embeddings import EmbeddingSource
    from scfm.metrics import Estimate, Score

__all__ = ["TASK", "Comparison", "compare"]

Statistic = Callable[[np.ndarray], float]
KEPT = 0.8
"""Share of the cells in each subsample."""
PERMUTATIONS = 5
"""Of the cells of one embedding, for what chance gives."""
LEAST = 20
"""Cells of a label, below which it has no CKA of its own."""
PAIRED = ("CKA", "neighbours shared", "Procrustes")


@dataclass(frozen=True)
class Comparison(TaskResult):
    """How alike embeddings are.

    Parameters
    ----------
    table
        One row a number: `metric`, `encoder`, `other` (of pairs), `value`, `low`, `high` (95 %), `unit` (what was resampled), `chance`
        (the same with the cells, or labels, of one side exchanged at random), `convention`.
    types
        The same within each label: `label`, `cells`, `metric`, `encoder`, `other`, `value`; empty without labels.
    notes
        What deserves a look.
    """

    types: pd.DataFrame
    notes: tuple[str, ...]

    def matrix(self, metric: str) -> pd.DataFrame:
        """A metric of pairs as a square table, 1 on the diagonal.

        Parameters
        ----------
        metric
            "CKA", "neighbours shared" or "Procrustes".
        """
        import pandas as pd

        rows = self.table[self.table["metric"] == metric]
        if metric not in PAIRED:
            raise InputError(f"{metric!r} is no metric of pairs.", f"Pass one of {', '.join(PAIRED)}.")
        names = list(dict.fromkeys([*rows["encoder"], *rows["other"]]))
        square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
        for one, other, value in rows[["encoder", "other", "value"]].to_numpy().tolist():
            square.loc[one, other] = square.loc[other, one] = value
        return square

    def summary(self) -> str:
        """Every pair and every encoder, with intervals and chance."""
        width = max(len(name) for name in self._titles())
        lines = []
        for metric in dict.fromkeys(self.table["metric"]):
            rows = self.table[self.table["metric"] == metric]
            lines.append(f"{metric}   ({rows['convention'].iloc[0]})")
            for title, (value, low, high, chance) in zip(
                self._titles(metric), rows[["value", "low", "high", "chance"]].to_numpy(float).tolist(), strict=True
            ):
                shown = "undefined" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
                lines.append(f"  {title:<{width}}  {shown:<22}  chance {chance:.3f}")
        return "\n".join([*lines, *self.notes])

    def _titles(self, metric: str | None = None) -> list[str]:
        rows = self.table if metric is None else self.table[self.table["metric"] == metric]
        return [
            one if not other else f"{one} / {other}" for one, other in zip(rows["encoder"], rows["other"], strict=True)
        ]

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Squares of the three metrics of pairs and bars of the label transfer; in given axes only the first square.

        Parameters
        ----------
        ax, save
            As for every result.
        """
        from scfm.metrics import Estimate
        from scfm.plotting import bars, panels, saved, square

        if ax is not None:
            return saved(square(ax, self.matrix("CKA"), title="CKA"), save)
        rows = self.table[self.table["metric"] == "transfer macro F1"]
        axes = panels(len(PAIRED) + bool(len(rows)), size=(3.4, 3.0))
        for one, metric in zip(axes, PAIRED, strict=False):
            square(one, self.matrix(metric), title=metric)
        if len(rows):
            estimates = [Estimate(*numbers) for numbers in rows[["value", "low", "high"]].to_numpy(float).tolist()]
            chance = float(rows["chance"].mean())
            bars(axes[-1], rows["encoder"].tolist(), estimates, label="label transfer, macro F1", baseline=chance)
        return saved(axes[0], save)


def compare(
    embeddings: Sequence[EmbeddingSource] | Mapping[str, EmbeddingSource],
    adata: AnnData,
    *,
    labels: str | None = None,
    batch: str | None = None,
    donors: str | None = None,
    baseline: EmbeddingSource | None = "pca",
    k: int = 15,
    resamples: int = 1000,
    subsamples: int = 100,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compare what encoders make of the same cells.

    Parameters
    ----------
    embeddings
        Encoders, names of models, keys of ``adata.obsm`` or arrays (n_cells, dim); or a dict that names them.
    adata
        Cells; never changed.
    labels
        Column of `obs` with cell types: adds the transfer of labels and everything within each type.
    batch
        Column of `obs`: labels are carried to each batch from the others. Without it each cell is labelled by all others, among them
        those of its donor, which flatters every encoder.
    donors
        Column of `obs`: whole donors are resampled where there are five.
    baseline
        What stands beside; None is nothing.
    k
        Neighbours.
    resamples, subsamples
        Bootstrap samples of what is made of cells' parts; subsamples (80 %, without replacement) of CKA and Procrustes.
    seed
        Of encoders, resamples and permutations.
    options
        Of `CellEncoder.embed`.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        There are fewer than two embeddings or too few cells, or a column is missing.
    """
    from scfm.embeddings import embeddings_of, named_sources, obs_values

    named = named_sources(embeddings) if baseline is None else {**named_sources(embeddings), **named_sources(baseline)}
    if len(named) < 2:
        raise InputError(f"only {', '.join(named)} is given; two embeddings are compared.", "Pass another beside it.")
    found = embeddings_of(named, adata, options=options, seed=seed)
    n = len(found.rows)
    if n <= k + 1:
        raise InputError(f"{n} cells are left, k={k} neighbours are asked for.", "Pass more cells or a smaller k.")

    def column(key: str | None, name: str) -> np.ndarray | None:
        return None if key is None else obs_values(adata, key, rows=found.rows, purpose=f"{name}=")

    y, b, who = column(labels, "labels"), column(batch, "batch"), column(donors, "donors")
    spaces = _Spaces(found.arrays, k, seed)
    rows, types = spaces.pairs(who, y, resamples, subsamples)
    if y is not None:
        more, more_types = spaces.transfer(y, b, who, resamples)
        rows, types = rows + more, types + more_types
    notes = [
        f"{count} cells without an embedding by {name} were left out of all." for name, count in found.left_out.items()
    ]
    if y is not None and b is None:
        notes.append(
            "Labels were carried between cells of one donor too, for no batch= is given: that flatters every encoder."
        )
    if who is None or len(np.unique(who)) < 5:
        notes.append("Intervals are of cells and describe these cells only.")
    import pandas as pd

    columns = ["metric", "encoder", "other", "value", "low", "high", "unit", "chance", "convention"]
    return Comparison(
        pd.DataFrame(rows, columns=columns),
        pd.DataFrame(types, columns=["label", "cells", "metric", "encoder", "other", "value"]),
        tuple(notes),
        provenance=provenance_of(
            "compare",
            *found.encoders,
            embeddings=list(found.arrays),
            labels=labels,
            batch=batch,
            donors=donors,
            k=k,
            resamples=resamples,
            subsamples=subsamples,
            seed=seed,
            cells=n,
            options=dict(options or {}),
        ),
    )


class _Spaces:
    """Embeddings of the same cells, with their neighbours."""

    def __init__(self, arrays: dict[str, np.ndarray], k: int, seed: int) -> None:
        from scfm.neighbours import neighbours

        self.arrays = {name: np.asarray(z, dtype=np.float64) for name, z in arrays.items()}
        self.near = {name: neighbours(z, k=k)[1] for name, z in self.arrays.items()}
        self.k, self.seed = k, seed
        self.n = len(next(iter(arrays.values())))

    def pairs(
        self, donors: np.ndarray | None, labels: np.ndarray | None, resamples: int, subsamples: int
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Rows of the metrics of pairs, over all cells and within labels."""
        from scfm.metrics import bootstrap, linear_cka, neighbourhood_overlap, overlap_by_chance, procrustes_similarity
        from scfm.metrics.scores import mean_of_groups

        rows: list[tuple[Any, ...]] = []
        types: list[tuple[Any, ...]] = []
        kinds = [] if labels is None else [(name, np.flatnonzero(labels == name)) for name in np.unique(labels)]
        both: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], str]] = {
            "CKA": (linear_cka, "linear, debiased; 1 is equal up to rotation and scale"),
            "Procrustes": (procrustes_similarity, "1 - disparity; rises with the dimensions"),
        }
        shared = f"mean Jaccard of the {self.k} nearest cells, Euclidean"
        for one, other in combinations(self.arrays, 2):
            x, y = self.arrays[one], self.arrays[other]
            jaccard = neighbourhood_overlap(self.near[one], self.near[other], k=self.k)
            mean = mean_of_groups(jaccard, np.zeros(self.n, dtype=np.int64))
            of = bootstrap(mean, self.n, groups=donors, resamples=resamples, seed=self.seed)
            chance = overlap_by_chance(self.n, self.k)
            rows.append(("neighbours shared", one, other, of.value, of.low, of.high, of.unit, chance, shared))
            for metric, (function, convention) in both.items():
                of, chance = self._subsampled(function, x, y, subsamples)
                rows.append((metric, one, other, of.value, of.low, of.high, of.unit, chance, convention))
            for label, cells in kinds:
                part = (label, len(cells))
                types.append((*part, "neighbours shared", one, other, float(jaccard[cells].mean())))
                if len(cells) >= LEAST:
                    types.append((*part, "CKA", one, other, linear_cka(x[cells], y[cells])))
        order = {metric: i for i, metric in enumerate(PAIRED)}
        return sorted(rows, key=lambda row: order[row[0]]), types

    def _subsampled(
        self, function: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray, subsamples: int
    ) -> tuple[Estimate, float]:
        from scfm.metrics.estimates import from_subsamples

        rng = np.random.default_rng(self.seed)
        draws = []
        for _ in range(subsamples):
            cells = np.sort(rng.permutation(self.n)[: round(KEPT * self.n)])
            draws.append(function(x[cells], y[cells]))
        chance = float(np.mean([function(x, y[rng.permutation(self.n)]) for _ in range(PERMUTATIONS)]))
        return from_subsamples(function(x, y), np.array(draws), kept=KEPT), chance

    def transfer(
        self, labels: np.ndarray, batch: np.ndarray | None, donors: np.ndarray | None, resamples: int
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Rows of the label transfer of each encoder, over all cells and within labels."""
        from scfm.metrics import bootstrap, leave_one_batch_out, leave_one_cell_out

        def scores(name: str, of: np.ndarray) -> dict[str, Score]:
            if batch is None:
                return leave_one_cell_out(self.near[name], of, k=self.k)
            return leave_one_batch_out(self.arrays[name], of, batch, k=self.k)

        rows, types, macro = [], [], {}
        mixed = np.random.default_rng(self.seed).permutation(labels)
        for name in self.arrays:
            found, chance = scores(name, labels), scores(name, mixed)
            for metric in ("accuracy", "macro F1"):
                score = found[metric]
                of = score.interval(donors, resamples=resamples, seed=self.seed)
                numbers = (of.value, of.low, of.high, of.unit, chance[metric].value)
                rows.append((f"transfer {metric}", name, "", *numbers, score.convention or score.reason))
            macro[name] = found["macro F1"].resample
            for label, value in found["recall"].strata.items():
                types.append((label, int((labels == label).sum()), "transfer recall", name, "", value))
        for one, other in combinations(macro, 2):
            first, second = macro[one], macro[other]
            if first is not None and second is not None:

                def change(chosen: np.ndarray, first: Statistic = first, second: Statistic = second) -> float:
                    return first(chosen) - second(chosen)

                of = bootstrap(change, self.n, groups=donors, resamples=resamples, seed=self.seed)
                convention = "first - second, on the same resamples"
                row = ("transfer macro F1 apart", one, other, of.value, of.low, of.high, of.unit, 0.0, convention)
                rows.append(row)
        return sorted(rows, key=lambda row: row[0]), types


def command(
    embedding: Annotated[list[str], typer.Argument(help="Names of models, or keys of obsm.")],
    adata: File,
    labels: Annotated[str | None, typer.Option(help="Column of obs with cell types.")] = None,
    batch: Annotated[str | None, typer.Option(help="Column of obs; labels are carried between its values.")] = None,
    donors: Annotated[str | None, typer.Option(help="Column of obs; donors are resampled for the intervals.")] = None,
    baseline: Annotated[
        str, typer.Option(help="What stands beside; a model or key of obsm, 'none' for nothing.")
    ] = "pca",
    k: Annotated[int, typer.Option("-k", help="Neighbours.")] = 15,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    device: Device = "auto",
    seed: Seed = 0,
    out: Result = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare what encoders make of the same cells."""
    from scfm.embeddings import named_on

    cells = read_adata(adata)
    result = compare(
        named_on(embedding, cells, device=device),
        cells,
        labels=labels,
        batch=batch,
        donors=donors,
        baseline=None if baseline == "none" else baseline,
        k=k,
        seed=seed,
        options=dict(
            layer=layer, gene_column=gene_column, map_genes=map_genes, values=values, progress=False if quiet else None
        ),
    )
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("compare", run=compare, command=command)
