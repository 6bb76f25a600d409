"""In-silico knock-out of regions: how far a cell moves when a cCRE, or a set of them, is closed, beside random regions as often open.

A cell's shift is the cosine distance between its embedding with and without the regions; cells in which none of them is open do not move.
The null of a set are random sets of as many regions, each of which is open in about as many of the cells as the one it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Annotated

import typer

from scfm.errors import InputError, listing
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
    from matplotlib.axes import Axes
    from scipy import sparse

    from scfm.accessibility import RegionCounts
    from scfm.cells import Data
    from scfm.encoder import CellEncoder

__all__ = ["TASK", "Knockout", "knockout_regions"]

_ROWS = 4096  # changed cells embedded together


@dataclass(frozen=True)
class Knockout(TaskResult):
    """Shifts of the embedding.

    Parameters
    ----------
    table
        One row a set: `set`, `regions`, `cells_open` (cells in which any of them is open), `shift` (mean over all cells), `shift_open`
        (mean over those cells), `null_mean`, `null_sd`, `z`, `p` ((1 + null sets that shift at least as much) / (1 + null sets)) and `q`
        (Benjamini and Hochberg 1995, over the sets).
    cells
        (n_cells,) names.
    shift
        (n_cells, n_sets) float32 cosine distances.
    null
        (n_sets, n_null) mean shifts of the random sets.
    """

    cells: np.ndarray
    shift: np.ndarray
    null: np.ndarray

    def summary(self) -> str:
        """A line a set."""
        lines = [f"{len(self.cells):,} cells, {self.null.shape[1]} random sets each"]
        width = max(len(str(name)) for name in self.table["set"])
        for row in self.table.itertuples():
            lines.append(
                f"  {row.set:<{width}}  shift {row.shift:.2e} (random {row.null_mean:.2e}, z {row.z:+.1f}), p {row.p:.3g}, "
                f"q {row.q:.3g}; open in {row.cells_open:,} cells"
            )
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Shift of each set as a point on the range of its random sets."""
        import numpy as np

        from scfm.plotting import CATEGORIES, axes_of, saved

        ax = axes_of(ax, size=(6.0, 1.0 + 0.3 * len(self.table)))
        at = np.arange(len(self.table))[::-1]
        low, middle, high = np.quantile(self.null, [0.025, 0.5, 0.975], axis=1)
        ax.hlines(at, low, high, color="#999999", linewidth=6, label="random sets, 95 %")
        ax.plot(middle, at, "|", color="#333333", markersize=9)
        ax.plot(self.table["shift"], at, "o", color=CATEGORIES[5], label="this set")
        ax.set_yticks(at, self.table["set"])
        ax.set_xlabel("mean cosine distance moved")
        ax.legend(frameon=False, loc="best")
        return saved(ax, save)


def knockout_regions(
    encoder: CellEncoder,
    data: Data,
    regions: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    null: int = 100,
    pool: int = 200,
    cells: int | None = 500,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    progress: bool | None = None,
    seed: int = 0,
) -> Knockout:
    """Close regions in silico and measure how far cells move.

    Parameters
    ----------
    encoder
        Any encoder whose vocabulary is of regions, e.g. a fitted `lsi` as the plain rival.
    data
        Cells x peaks, an AnnData or a path; not changed. Pass the cells of one type to ask about that type.
    regions
        Name of a set -> its regions, ``chrom:start-end``; or regions, each a set of its own. All of the encoder's regions that they overlap
        are closed together.
    null
        Random sets for each set; the smallest p is 1 / (1 + null).
    pool
        For each region, its stand-ins are drawn among so many regions that are open in the nearest numbers of cells.
    cells
        Use so many random cells at most; None is all.
    layer, gene_column, map_genes, progress
        As for `CellEncoder.embed`.
    seed
        Of cells and random sets.

    Returns
    -------
    Knockout

    Raises
    ------
    CapabilityError
        The encoder reads genes.
    InputError
        A set overlaps no region of the encoder, or is open in none of the cells.
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import false_discovery_control

    from scfm.accessibility import region_counts

    require_capabilities(encoder, TASK)
    if null < 1 or pool < 1:
        raise InputError(f"null={null}, pool={pool}; each must be at least 1.")
    sets = dict(regions) if isinstance(regions, Mapping) else {str(name): [str(name)] for name in regions}
    if not sets:
        raise InputError(
            "there are no regions to knock out.", "Pass regions=['chr1:100-200'], or sets of them by name."
        )
    counts = region_counts(encoder, data, layer=layer, gene_column=gene_column, map_genes=map_genes)
    rng = np.random.default_rng(seed)
    if cells is not None and cells < len(counts.cells):
        counts = counts.take(np.sort(rng.choice(len(counts.cells), cells, replace=False)))
    columns = {name: counts.columns(wanted) for name, wanted in sets.items()}
    if closed := [name for name, at in columns.items() if not counts.opened[at].any()]:
        raise InputError(f"{listing(closed)} is open in none of the {len(counts.cells):,} cells.", "Pass more cells.")
    with_all = _embedded(encoder, counts, counts.matrix, progress, seed)
    shifts = np.zeros((len(counts.cells), len(sets)), dtype=np.float32)
    nulls = np.zeros((len(sets), null))
    rows = []
    for i, (name, at) in enumerate(columns.items()):
        drawn = [_stand_ins(counts.opened, at, pool, rng) for _ in range(null)]
        moved = _shifts(encoder, counts, with_all, [at, *drawn], seed)
        shifts[:, i], nulls[i] = moved[0], [one.mean() for one in moved[1:]]
        affected = moved[0][_affected(counts.matrix, at)]
        observed, spread = float(moved[0].mean()), float(nulls[i].std(ddof=1)) if null > 1 else np.nan
        z = (observed - nulls[i].mean()) / spread if spread > 0 else np.nan
        p = (1 + int((nulls[i] >= observed).sum())) / (1 + null)
        rows.append(
            (name, len(at), len(affected), observed, float(affected.mean()), float(nulls[i].mean()), spread, z, p)
        )
    names = ["set", "regions", "cells_open", "shift", "shift_open", "null_mean", "null_sd", "z", "p"]
    table = pd.DataFrame(rows, columns=names)
    table["q"] = false_discovery_control(table["p"].to_numpy())
    settings = {"sets": {name: list(wanted) for name, wanted in sets.items()}, "null": null, "pool": pool, "seed": seed}
    record = provenance_of("knockout_regions", encoder, cells=len(counts.cells), map_genes=map_genes, **settings)
    return Knockout(table, counts.cells, shifts, nulls, provenance=record)


def _embedded(
    encoder: CellEncoder, counts: RegionCounts, matrix: sparse.csr_matrix, progress: bool | None, seed: int
) -> np.ndarray:
    return encoder.embed(counts.adata(matrix), empty_cells="embed", progress=progress, seed=seed)


def _affected(matrix: sparse.csr_matrix, columns: np.ndarray) -> np.ndarray:
    """Rows with an entry in these columns."""
    import numpy as np

    return np.flatnonzero(np.diff(matrix[:, columns].indptr))


def _stand_ins(opened: np.ndarray, columns: np.ndarray, pool: int, rng: np.random.Generator) -> np.ndarray:
    """For each region another, distinct one, among the `pool` that are open in the nearest numbers of cells."""
    import numpy as np

    others = np.setdiff1d(np.flatnonzero(opened), columns)
    others = rng.permutation(others)  # those as often open come in random order
    others = others[np.argsort(opened[others], kind="stable")]
    if len(others) < len(columns):
        raise InputError(f"{len(others)} other regions are open, fewer than the {len(columns)} of the set.")
    free = np.ones(len(others), dtype=bool)
    drawn = []
    for column in columns[opened[columns] > 0]:
        middle = int(np.searchsorted(opened[others], opened[column]))
        low = max(0, min(middle - pool // 2, len(others) - pool))
        near = low + np.flatnonzero(free[low : low + pool])
        if not len(near):
            near = np.flatnonzero(free)
        one = int(rng.choice(near))
        free[one] = False
        drawn.append(others[one])
    return np.array(drawn, dtype=np.int64)


def _shifts(
    encoder: CellEncoder, counts: RegionCounts, whole: np.ndarray, sets: Sequence[np.ndarray], seed: int
) -> list[np.ndarray]:
    """Of each set of columns, how far every cell moves without them, (n_cells,) float64 each; only cells that have any are computed."""
    import numpy as np
    from scipy import sparse

    moved = [np.zeros(len(whole)) for _ in sets]
    waiting: list[tuple[int, np.ndarray, sparse.csr_matrix]] = []

    def flush() -> None:
        changed = _embedded(encoder, counts, sparse.vstack([m for *_, m in waiting], format="csr"), False, seed)
        start = 0
        for number, rows, _ in waiting:
            moved[number][rows] = _cosine_distance(whole[rows], changed[start : start + len(rows)])
            start += len(rows)
        waiting.clear()

    for number, columns in enumerate(sets):
        rows = _affected(counts.matrix, columns)
        if len(rows):
            waiting.append((number, rows, _without(counts.matrix[rows], columns)))
        if sum(len(rows) for _, rows, _ in waiting) >= _ROWS:
            flush()
    if waiting:
        flush()
    return moved


def _without(matrix: sparse.csr_matrix, columns: np.ndarray) -> sparse.csr_matrix:
    import numpy as np

    gone = np.zeros(matrix.shape[1], dtype=bool)
    gone[columns] = True
    matrix.data[gone[matrix.indices]] = 0
    matrix.eliminate_zeros()
    return matrix


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of each pair of rows, float64; 1 where one of the two is all zeros."""
    import numpy as np

    a, b = a.astype(np.float64), b.astype(np.float64)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)


def command(
    model: Model,
    file: File,
    region: Annotated[list[str], typer.Option(help="chrom:start-end, or NAME=chrom:start-end,...; repeatable.")],
    null: Annotated[int, typer.Option(help="Random sets for each set.")] = 100,
    cells: Annotated[int, typer.Option(help="Use so many random cells at most.")] = 500,
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
    """Close regions in silico: how far cells move, beside random regions."""
    sets = {}
    for text in region:
        name, equals, members = text.partition("=")
        sets[name] = members.split(",") if equals else [text]
    encoder = load_encoder(model, device=device, option=option, load_option=load_option)
    result = knockout_regions(
        encoder, file, sets, null=null, cells=cells, layer=layer, gene_column=gene_column, map_genes=map_genes,
        progress=False if quiet else None, seed=seed,
    )  # fmt: skip
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("knockout_regions", run=knockout_regions, command=command)
