"""Search: which cells of a large reference are like these? By an index on disk, or directly.

scfm query atlas.index --build atlas.h5ad --model mini      # once
scfm query atlas.index cells.h5ad --model mini -k 15
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from scfm.errors import InputError, listing
from scfm.options import (
    Device,
    GeneColumn,
    Json,
    Layer,
    MapGenes,
    Plot,
    Quiet,
    Result,
    Seed,
    ValuesOption,
    load_encoder,
    show,
)
from scfm.results import TaskResult, provenance_of
from scfm.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scfm.cells import Data
    from scfm.encoder import CellEncoder
    from scfm.index import CellIndex

__all__ = ["TASK", "SimilarCells", "query"]

MOST_VALUES = 100
"""Categories above which a column is not summed up."""


@dataclass(frozen=True)
class SimilarCells(TaskResult):
    """Cells of a reference that are like the query's.

    Parameters
    ----------
    table
        One row a query cell and neighbour: `cell`, `rank` from 1, `similar` (name), `row` (in the reference), `distance`, and the columns
        of the reference's obs.
    composition
        `column`, `value`, `share` (of all neighbours), `low`, `high` (95 %, query cells resampled), `reference` (share of the value in the
        reference, what chance would give).
    """

    composition: pd.DataFrame

    def summary(self) -> str:
        """How near the neighbours are, and what they are, beside the reference."""
        first = self.table[self.table["rank"] == 1]["distance"]
        cells, k = len(first), int(self.table["rank"].max()) if len(self.table) else 0
        settings = self.provenance["settings"]
        lines = [
            f"{cells:,} cells, {k} neighbours each among {settings['reference_cells']:,}; "
            f"{settings['metric']} distance to the nearest: median {first.median():.4f}, most {first.max():.4f}"
        ]
        if settings.get("recall") is not None:
            lines.append(
                f"The index finds {100 * settings['recall']:.1f} % of exact neighbours (measured when it was built)."
            )
        for column in dict.fromkeys(self.composition["column"]):
            rows = self.composition[self.composition["column"] == column]
            lines.append(f"{column}: share among neighbours [95 % interval], in the reference")
            width = max(len(value) for value in rows["value"].head(8))
            for value, *numbers in rows[["value", "share", "low", "high", "reference"]].head(8).to_numpy().tolist():
                share, low, high, chance = numbers
                lines.append(f"  {value:<{width}}  {share:.3f} [{low:.3f}, {high:.3f}]  {chance:.3f}")
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Bars of what the neighbours are, in the first column of categories, with the reference's shares as marks.

        Parameters
        ----------
        ax, save
            As for every result.
        """
        from scfm.metrics import Estimate
        from scfm.plotting import axes_of, bars, saved

        if not len(self.composition):
            raise InputError("no column of the reference has categories to draw.", "Pass columns= with one.")
        column = self.composition["column"].iloc[0]
        rows = self.composition[self.composition["column"] == column].head(20)
        ax = axes_of(ax, size=(6.0, 1.2 + 0.3 * len(rows)))
        estimates = [Estimate(*numbers) for numbers in rows[["share", "low", "high"]].to_numpy(float).tolist()]
        bars(ax, rows["value"].tolist(), estimates, label=f"share of {column} among the neighbours")
        ax.plot(
            rows["reference"], np.arange(len(rows))[::-1], "|", color="black", markersize=14, label="in the reference"
        )
        ax.legend(frameon=False, loc="lower right")
        return saved(ax, save)


def query(
    reference: CellIndex | str | PathLike[str] | AnnData,
    cells: Data,
    *,
    encoder: CellEncoder,
    k: int = 15,
    columns: Sequence[str] | None = None,
    metric: Literal["cosine", "euclidean"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> SimilarCells:
    """Find the cells of a reference that are like the query's.

    Parameters
    ----------
    reference
        A `scfm.index.CellIndex` or its folder (memory stays small whatever its size); or cells to search directly, as AnnData.
    cells
        Query cells: AnnData, path, or a list of them.
    encoder
        That of the index; another is refused. For AnnData any that is not fitted anew on each data set.
    k
        Neighbours of each cell.
    columns
        Of the reference's obs, to be returned; None is all.
    metric
        "cosine" (None) or "euclidean" for AnnData; an index has its own.
    resamples
        Bootstrap samples of the composition.
    seed
        Of the encoder and the resamples.
    options
        Of `CellEncoder.embed`.

    Returns
    -------
    SimilarCells

    Raises
    ------
    InputError
        The encoder is not that of the index, a column is missing, or query cells have no embedding.
    """
    from scfm.cells import close_all, open_sources
    from scfm.index import CellIndex, encoder_identity
    from scfm.neighbours import neighbours

    settings = dict(options or {})
    index = CellIndex.open(reference) if isinstance(reference, str | PathLike) else reference
    if isinstance(index, CellIndex):
        if metric not in (None, index.record["metric"]):
            raise InputError(f"the index compares by {index.record['metric']}, not {metric}.", "Leave out metric=.")
        index.check(encoder, settings)
        metric = index.record["metric"]
    else:
        encoder_identity(encoder, settings)  # refuses what is fitted anew on each data set
        metric = metric or "cosine"
        if missing := [name for name in columns or () if name not in index.obs]:
            raise InputError(f"obs of the reference has no column {listing(missing)}.", "Pass other columns=.")
    vectors = encoder.embed(cells, seed=seed, **settings)
    if isinstance(index, CellIndex):
        distances, rows = index.search(vectors, k)
        known, size, recall = index.obs(rows.reshape(-1), columns), len(index), index.record["recall"]["recall"]
        shares = {str(name): index.shares(str(name)) for name in known}
    else:
        distances, rows = neighbours(encoder.embed(index, seed=seed, **settings), vectors, k, metric=metric)
        known = index.obs.iloc[rows.reshape(-1)][list(index.obs.columns if columns is None else columns)]
        size, recall, shares = index.n_obs, None, {str(name): _shares(index.obs[name]) for name in known}
    sources = open_sources(cells)
    try:
        names = [str(name) for source in sources for name in source.obs.index]
    finally:
        close_all(sources)
    record = provenance_of(
        "query",
        encoder,
        reference_cells=size,
        index=str(index.path) if isinstance(index, CellIndex) else None,
        recall=recall,
        metric=metric,
        k=k,
        columns=list(known.columns),
        resamples=resamples,
        seed=seed,
        options=settings,
    )
    table = _table(names, rows, distances, known)
    return SimilarCells(table, _composition(known, shares, len(names), k, resamples, seed), provenance=record)


def _table(names: list[str], rows: np.ndarray, distances: np.ndarray, known: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    n, k = rows.shape
    own = {
        "cell": np.repeat(np.array(names, dtype=object), k),
        "rank": np.tile(np.arange(1, k + 1), n),
        "similar": known.index.astype(str).to_numpy(),
        "row": rows.reshape(-1),
        "distance": distances.reshape(-1),
    }
    kept = {str(name) if name not in own else f"reference_{name}": known[name].to_numpy() for name in known}
    return pd.DataFrame({**own, **kept})


def _shares(column: pd.Series) -> dict[str, float]:
    if column.dtype.kind in "fiu":
        return {}
    return {str(value): share for value, share in (column.value_counts() / len(column)).items()}


def _composition(
    known: pd.DataFrame, shares: Mapping[str, Mapping[str, float]], n: int, k: int, resamples: int, seed: int
) -> pd.DataFrame:
    """Shares of categories among all neighbours, with intervals over query cells; the largest first."""
    import pandas as pd

    from scfm.metrics.estimates import bootstrap_all

    rows = []
    for name in known:
        reference = shares[str(name)]
        if not 0 < len(reference) <= MOST_VALUES:
            continue
        values = known[name].astype(object).where(known[name].notna(), None).to_numpy().reshape(n, k)
        present = sorted({str(value) for value in values.reshape(-1) if value is not None})
        each = np.stack([(values.astype(str) == value).mean(axis=1) for value in present], axis=1)  # (n, values)
        found = bootstrap_all(lambda drawn, each=each: each[drawn].mean(axis=0), n, resamples=resamples, seed=seed)  # type: ignore[misc]
        part = [
            (str(name), value, of.value, of.low, of.high, reference.get(value, 0.0))
            for value, of in zip(present, found, strict=True)
        ]
        rows += sorted(part, key=lambda row: -row[2])
    return pd.DataFrame(rows, columns=["column", "value", "share", "low", "high", "reference"])


def command(
    index: Annotated[Path, typer.Argument(help="Folder of the index.")],
    cells: Annotated[Path | None, typer.Argument(help="Query cells: an .h5ad file or .zarr folder.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Encoder: a name, a folder, or org/repo. Default: that of the index.")
    ] = None,
    build: Annotated[
        list[Path] | None, typer.Option(help="Make the index from this .h5ad or .zarr first; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours of each cell.")] = 15,
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="Column of the reference's obs; repeatable.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Of a new index: cosine or euclidean.")] = "cosine",
    threads: Annotated[int, typer.Option(help="Of building; above 1 the graph differs from run to run.")] = 1,
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
    """Find the cells of a large reference that are like these, by an index on disk."""
    from scfm.index import CellIndex

    if cells is None and not build:
        raise typer.BadParameter("name query cells, or a reference with --build", param_hint="CELLS")
    if build and model is None:
        raise typer.BadParameter("an index is made by an encoder: --model NAME", param_hint="--model")
    name = CellIndex.open(index).record["encoder"]["model"] if model is None else model
    encoder = load_encoder(name, device=device)
    options = dict(
        layer=layer, gene_column=gene_column, map_genes=map_genes, values=values, progress=False if quiet else None
    )
    if build:
        if metric not in ("cosine", "euclidean"):
            raise typer.BadParameter(f"{metric!r} is neither cosine nor euclidean", param_hint="--metric")
        made = CellIndex.build(
            index,
            encoder,
            list(map(str, build)),
            columns=columns,
            metric="euclidean" if metric == "euclidean" else "cosine",
            threads=threads,
            options=options,
            seed=seed,
        )
        if not quiet and not as_json:
            found = made.record["recall"]
            typer.echo(
                f"{made.path}: {len(made):,} cells by {name}; finds {100 * found['recall']:.1f} % of {found['k']} neighbours"
            )
    if cells is not None:
        result = query(index, str(cells), encoder=encoder, k=k, columns=columns, seed=seed, options=options)
        show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("query", run=query, command=command)
