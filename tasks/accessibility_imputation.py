"""Accessibility that a decoder expects where a cell's counts are silent, tested on open regions that were hidden from it.

Of every cell some open regions are hidden. Each method then scores the hidden regions against regions in which the cell has no count and
which are open in other cells. A count that was missed by chance is a wrong "closed" one: no method can reach 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scfm.errors import InputError
from scfm.options import (
    Device,
    File,
    GeneColumn,
    Json,
    Layer,
    LoadOptions,
    MapGenes,
    Model,
    Plot,
    Quiet,
    Result,
    Seed,
    TokenizerOptions,
    load_encoder,
    show,
)
from scfm.results import TaskResult, provenance_of
from scfm.task import Task, require_capabilities

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

    from scfm.accessibility import RegionCounts
    from scfm.cells import Data
    from scfm.encoder import CellEncoder

__all__ = ["TASK", "Imputation", "impute"]

METHODS = ("decoder", "k-NN smoothing", "region mean", "random")


@dataclass(frozen=True)
class Imputation(TaskResult):
    """Imputed accessibility.

    Parameters
    ----------
    table
        One row a score: `metric` ("AUROC", "AUPRC", means over cells), `method`, `value`, `low`, `high`, `cells`. "random" is what random
        numbers reach (the mean of AUPRC over cells with few hidden regions lies above the share of these regions).
    cells
        (n_cells,) names.
    regions
        (n_regions,) names of the imputed regions.
    imputed
        (n_cells, n_regions) float32 in (0, 1): the decoder's logits through a sigmoid. Where authors weigh open regions up in training
        (EpiAgent by 100), these rank regions and are no probabilities.
    """

    cells: np.ndarray
    regions: np.ndarray
    imputed: np.ndarray

    def summary(self) -> str:
        """Scores of the decoder and of both baselines."""
        lines = [f"{len(self.cells):,} cells, {len(self.regions):,} regions imputed"]
        for metric, part in self.table.groupby("metric", sort=False):
            lines.append(f"{metric} of hidden open regions:")
            lines += [f"  {row.method:<16}{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in part.itertuples()]
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Bars of the AUROC of each method."""
        from scfm.metrics import Estimate
        from scfm.plotting import axes_of, bars, saved

        rows = self.table[self.table["metric"] == "AUROC"]
        ax = axes_of(ax, size=(5.5, 2.2))
        numbers = rows[["value", "low", "high"]].to_numpy(dtype=float).tolist()
        estimates = [Estimate(value, low, high) for value, low, high in numbers]
        bars(ax, rows["method"].tolist(), estimates, label="AUROC of hidden open regions", baseline=0.5)
        return saved(ax, save)


def impute(
    encoder: CellEncoder,
    data: Data,
    *,
    regions: Sequence[str] | None = None,
    top: int = 2000,
    hidden: float = 0.1,
    closed: int = 10,
    k: int = 15,
    neighbours: str | CellEncoder = "lsi",
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    progress: bool | None = None,
    seed: int = 0,
) -> Imputation:
    """Impute the accessibility of regions with an encoder's decoder, beside plain methods.

    Parameters
    ----------
    encoder
        With the capability "accessibility".
    data
        Cells x peaks, an AnnData or a path; not changed.
    regions
        Regions to impute, ``chrom:start-end``; those of the encoder that they overlap are given. None gives the `top` most often open ones.
    top
        How many, without `regions`.
    hidden
        Share of each cell's open regions that are hidden for the scores.
    closed
        Regions without a count that stand against each hidden one, drawn among those open in any cell.
    k
        Neighbours of the smoothing.
    neighbours
        Encoder, or its name, in whose embedding neighbours are looked for; one that is not fitted is fitted on the data without the hidden
        regions.
    layer, gene_column, map_genes, progress
        As for `CellEncoder.embed`.
    seed
        Of what is hidden and drawn.

    Returns
    -------
    Imputation
        Scores of "decoder" (sees a cell's other regions), "k-NN smoothing" ((open neighbours + region mean) / (k + 1)) and "region mean"
        (share of the other cells in which the region is open; the same order in every cell), and "random" numbers.

    Raises
    ------
    CapabilityError
        The encoder has no decoder of accessibility.
    InputError
        `hidden`, `closed` or `k` are out of range, or the cells have too few open regions.
    """
    import numpy as np

    from scfm.accessibility import region_counts

    require_capabilities(encoder, TASK)
    if not 0 < hidden < 1:
        raise InputError(f"hidden={hidden}; it is a share above 0 and below 1.")
    if closed < 1 or k < 1 or top < 1:
        raise InputError(f"closed={closed}, k={k}, top={top}; each must be at least 1.")
    counts = region_counts(encoder, data, layer=layer, gene_column=gene_column, map_genes=map_genes)
    if len(counts.cells) <= k:
        raise InputError(f"{len(counts.cells)} cells, k={k}.", "Pass fewer neighbours, or more cells.")
    chosen = (
        np.sort(np.argsort(-counts.opened, kind="stable")[: min(top, int((counts.opened > 0).sum()))])
        if regions is None
        else counts.columns(regions)
    )
    imputed = np.full((len(counts.cells), len(chosen)), np.nan, dtype=np.float32)
    for rows, logits in _decoded(encoder, counts.adata(), progress, seed):
        imputed[rows] = 1 / (1 + np.exp(-logits[:, chosen]))
    table = _scores(encoder, counts, hidden, closed, k, neighbours, progress, seed)
    finder = neighbours if isinstance(neighbours, str) else neighbours.name
    settings = {"hidden": hidden, "closed": closed, "k": k, "neighbours": finder, "seed": seed}
    return Imputation(
        table,
        counts.cells,
        counts.names[chosen],
        imputed,
        provenance=provenance_of("impute", encoder, map_genes=map_genes, **settings),
    )


def _decoded(encoder: CellEncoder, adata: Any, progress: bool | None, seed: int) -> Any:
    """Rows and logits (b, n_regions), batch by batch."""
    for rows, _, encoded in encoder.encode(adata, outputs=("accessibility",), progress=progress, seed=seed):
        yield rows, encoded.heads["accessibility"].numpy()


def _scores(
    encoder: CellEncoder,
    counts: RegionCounts,
    hidden: float,
    closed: int,
    k: int,
    neighbours: str | CellEncoder,
    progress: bool | None,
    seed: int,
) -> pd.DataFrame:
    import numpy as np
    import pandas as pd
    from scipy import sparse

    from scfm.loading import load
    from scfm.metrics import bootstrap_mean
    from scfm.metrics.classification import auroc, average_precision
    from scfm.neighbours import neighbours as nearest

    rng = np.random.default_rng(seed)
    matrix = counts.matrix
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    hide = rng.random(len(row)) < hidden
    seen = np.bincount(row[~hide], minlength=matrix.shape[0])
    hide &= seen[row] > 0  # a cell keeps at least one region
    if not hide.any():
        raise InputError("no open region could be hidden.", "Pass more cells, or a larger hidden=.")
    rest = matrix.copy()
    rest.data = np.where(hide, 0, rest.data)
    rest.eliminate_zeros()
    cell, column, truth = _pairs(matrix, row, hide, np.flatnonzero(counts.opened), closed, rng)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(cell)) + 1, [len(cell)]])
    at = np.full(matrix.shape[0], -1)
    at[cell[starts[:-1]]] = np.arange(len(starts) - 1)
    binary = (rest > 0).astype(np.float32)
    open_in = np.asarray(binary.sum(axis=0)).reshape(-1)
    known = np.flatnonzero(np.diff(rest.indptr))  # cells without any region have no neighbours
    finder = load(neighbours, device="cpu") if isinstance(neighbours, str) else neighbours
    embedding = finder.embed(counts.take(known).adata(rest[known]), progress=False)
    near = known[nearest(embedding, k=k)[1]]
    own_row = np.full(matrix.shape[0], -1)
    own_row[known] = np.arange(len(known))
    scores = {name: np.zeros(len(cell), dtype=np.float64) for name in METHODS}
    scores["random"][:] = rng.random(len(cell))
    scores["region mean"][:] = open_in[column] / max(len(known) - 1, 1)
    for rows, logits in _decoded(encoder, counts.adata(rest), progress, seed):
        for i, one in enumerate(rows):
            if at[one] >= 0:
                here = slice(starts[at[one]], starts[at[one] + 1])
                scores["decoder"][here] = logits[i, column[here]]
                open_near = sparse.csr_matrix(binary[near[own_row[one]]].sum(axis=0))[0, column[here]].toarray()[0]
                scores["k-NN smoothing"][here] = (open_near + scores["region mean"][here]) / (k + 1)
    lines = []
    for metric, function in (("AUROC", auroc), ("AUPRC", average_precision)):
        for name, score in scores.items():
            spans = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
            mean = bootstrap_mean(np.array([function(truth[a:b], score[a:b]) for a, b in spans]), seed=seed)
            lines.append((metric, name, mean.value, mean.low, mean.high, len(starts) - 1))
    return pd.DataFrame(lines, columns=["metric", "method", "value", "low", "high", "cells"])


def _pairs(
    matrix: Any, row: np.ndarray, hide: np.ndarray, eligible: np.ndarray, closed: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, columns and truth of the hidden regions and of regions without a count, by cell (n_pairs,)."""
    import numpy as np

    cells, columns, truths = [], [], []
    for one in np.unique(row[hide]).tolist():
        span = slice(matrix.indptr[one], matrix.indptr[one + 1])
        away = matrix.indices[span][hide[span]]
        silent = np.setdiff1d(eligible, matrix.indices[span], assume_unique=True)
        if not len(silent):
            continue
        drawn = rng.choice(silent, min(closed * len(away), len(silent)), replace=False)
        columns += [away, drawn]
        truths += [np.ones(len(away), bool), np.zeros(len(drawn), bool)]
        cells.append(np.full(len(away) + len(drawn), one))
    if not cells:
        raise InputError("every cell is open in all regions.", "Scores need regions without a count.")
    return np.concatenate(cells), np.concatenate(columns), np.concatenate(truths)


def command(
    model: Model,
    file: File,
    region: Annotated[list[str] | None, typer.Option(help="Region to impute, chrom:start-end; repeatable.")] = None,
    top: Annotated[int, typer.Option(help="Without --region: impute the so many most often open ones.")] = 2000,
    hidden: Annotated[float, typer.Option(help="Share of open regions hidden for the scores.")] = 0.1,
    k: Annotated[int, typer.Option(help="Neighbours of the k-NN baseline.")] = 15,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    option: TokenizerOptions = None,
    load_option: LoadOptions = None,
    device: Device = "auto",
    seed: Seed = 0,
    out: Result = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Impute accessibility with a decoder, scored on hidden open regions."""
    encoder = load_encoder(model, device=device, option=option, load_option=load_option)
    result = impute(
        encoder, file, regions=region or None, top=top, hidden=hidden, k=k, layer=layer, gene_column=gene_column,
        map_genes=map_genes, progress=False if quiet else None, seed=seed,
    )  # fmt: skip
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("impute", run=impute, command=command, needs=frozenset({"embed", "accessibility"}))
