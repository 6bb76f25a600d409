"""Candidate links between cCREs and genes: attention between a gene's promoter and regions around it, against pairs as far apart.

Regions near each other are open together more often, so a pair is remarkable only among pairs as far apart. The null are pairs of regions
drawn on all chromosomes, in the same bin of distance, without the pairs that are tested. Links are candidates: neither score says which
region regulates which gene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scfm.errors import CapabilityError, InputError, listing
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
    from scfm.gene_activity import Genes

__all__ = ["TASK", "RegionLinks", "link_regions"]

_EDGES = (0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e9)  # bins of distance, base pairs


@dataclass(frozen=True)
class RegionLinks(TaskResult):
    """Candidate links.

    Parameters
    ----------
    table
        One row a pair, the most remarkable attention first: `gene`, `promoter` (region), `region`, `distance` (between the middles, base
        pairs), `cells` (that have a token of both), `attention` (mean over these cells, heads and layers of the weight times the number
        of tokens: 1 is uniform; both directions; NaN where the cells are fewer than `min_cells`), `coaccessibility` (Pearson correlation
        of open and closed over all cells); of both scores, `_p` (share of null pairs in the same bin of distance that score at least as
        high, with 1 added to both counts) and `_q` (Benjamini and Hochberg 1995).
    null
        Scores of the null pairs: `distance`, `cells`, `attention`, `coaccessibility`.
    """

    null: pd.DataFrame

    def summary(self) -> str:
        """How many pairs stand out, and the first ten."""
        lines = [f"{len(self.table):,} pairs of {self.table['gene'].nunique():,} genes, {len(self.null):,} null pairs"]
        for score in ("attention", "coaccessibility"):
            lines.append(f"q < 0.1 by {score}: {int((self.table[score + '_q'] < 0.1).sum()):,}")
        if missing := int(self.table["attention"].isna().sum()):
            lines.append(f"{missing:,} pairs are in too few cells' contexts to have an attention")
        shown = self.table.head(10)[
            ["gene", "region", "distance", "cells", "attention", "attention_p", "coaccessibility_p"]
        ]
        return "\n".join([*lines, shown.to_string(index=False, float_format=lambda x: f"{x:.3g}")])

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Attention of tested and null pairs over distance."""
        from scfm.plotting import CATEGORIES, axes_of, saved

        ax = axes_of(ax, size=(6.0, 3.6))
        ax.plot(
            self.null["distance"] / 1e3, self.null["attention"], ".", color="#bbbbbb", markersize=3, label="null pairs"
        )
        ax.plot(
            self.table["distance"] / 1e3,
            self.table["attention"],
            "o",
            color=CATEGORIES[0],
            markersize=4,
            label="promoter and region",
        )
        ax.set_xlabel("distance, kb")
        ax.set_ylabel("attention (1 is uniform)")
        ax.legend(frameon=False)
        return saved(ax, save)


def link_regions(
    encoder: CellEncoder,
    data: Data,
    gtf: Genes | str | PathLike[str] | None = None,
    *,
    genes: Sequence[str] | None = None,
    window: int = 250_000,
    upstream: int = 2000,
    min_cells: int = 10,
    null: int = 5000,
    layers: Sequence[int] | None = None,
    cells: int | None = 500,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    progress: bool | None = None,
    seed: int = 0,
) -> RegionLinks:
    """Score pairs of a gene's promoter and regions around it.

    Parameters
    ----------
    encoder
        With attention between regions.
    data
        Cells x peaks, an AnnData or a path; not changed. Pass the cells of one type to ask about that type.
    gtf
        Genes' coordinates: a GTF of the regions' genome build, e.g. GENCODE's, or what `Genes.read_gtf` made of one.
    genes
        Symbols or ids; None is all genes with an open promoter.
    window
        Farthest regions from the promoter, base pairs.
    upstream
        A promoter is so long before the start of transcription, and 500 base pairs behind it.
    min_cells
        Fewest cells in which both regions of a pair are open.
    null
        Random pairs.
    layers
        Of the attention; None is all.
    cells
        Use so many random cells at most; None is all.
    layer, gene_column, map_genes, progress
        As for `CellEncoder.embed`.
    seed
        Of cells and null pairs.

    Returns
    -------
    RegionLinks

    Raises
    ------
    CapabilityError
        The encoder has no attention, or reads genes.
    InputError
        No GTF is given, it is of another build, a gene is not in it, or no pair is open together in enough cells.
    """
    import numpy as np
    import pandas as pd

    from scfm.accessibility import region_counts
    from scfm.gene_activity import Genes, require_same_build

    require_capabilities(encoder, TASK)
    if encoder.vocabulary.ids != "region":
        raise CapabilityError(f"{encoder.name} reads genes, not genomic regions.", "Load an encoder of chromatin.")
    if gtf is None:
        raise InputError(
            "links need the coordinates of genes, and the gene tables that ship with scfm have none.",
            "Pass a GTF of the regions' genome build, e.g. gtf='gencode.v44.annotation.gtf.gz' from gencodegenes.org.",
        )
    annotation = gtf if isinstance(gtf, Genes) else Genes.read_gtf(gtf)
    counts = region_counts(encoder, data, layer=layer, gene_column=gene_column, map_genes=map_genes)
    rng = np.random.default_rng(seed)
    if cells is not None and cells < len(counts.cells):
        counts = counts.take(np.sort(rng.choice(len(counts.cells), cells, replace=False)))
    require_same_build(counts.regions, annotation, encoder.vocabulary.build)
    tested = _tested(counts, annotation, genes, window, upstream, min_cells)
    drawn = _null_pairs(counts, tested, window, min_cells, null, rng)
    pairs = pd.concat([tested, drawn], ignore_index=True)
    first, second = pairs["promoter"].to_numpy(), pairs["region"].to_numpy()
    pairs["attention"], seen = _attention(encoder, counts, first, second, layers, progress, seed)
    pairs["coaccessibility"] = _correlation(counts, first, second)
    pairs["cells"] = seen  # fewer than are open in both where cells are longer than the model's context
    pairs.loc[pairs["cells"] < min_cells, "attention"] = np.nan
    table, null_table = pairs.iloc[: len(tested)].copy(), pairs.iloc[len(tested) :]
    for score in ("attention", "coaccessibility"):
        table[score + "_p"], table[score + "_q"] = _significance(table, null_table, score)
    for column in ("promoter", "region"):
        table[column] = counts.names[table[column].to_numpy()]
    table = table.sort_values(["attention_p", "attention"], ascending=[True, False], ignore_index=True)
    settings = {
        "window": window,
        "upstream": upstream,
        "min_cells": min_cells,
        "null": null,
        "layers": layers,
        "seed": seed,
    }
    record = provenance_of("link_regions", encoder, gtf=annotation.source, cells=len(counts.cells), **settings)
    kept = ["distance", "cells", "attention", "coaccessibility"]
    return RegionLinks(table, null_table[kept].reset_index(drop=True), provenance=record)


def _tested(
    counts: RegionCounts, annotation: Genes, genes: Sequence[str] | None, window: int, upstream: int, min_cells: int
) -> pd.DataFrame:
    """Columns of promoters and of regions around them, with the gene and the distance."""
    import numpy as np
    import pandas as pd

    rows = np.arange(len(annotation))
    if genes is not None:
        found = {name: np.flatnonzero((annotation.symbols == name) | (annotation.ids == name)) for name in genes}
        if missing := [name for name, at in found.items() if not len(at)]:
            raise InputError(
                f"{listing(missing)} is not in {annotation.source}.", "Give symbols or ids as it spells them."
            )
        rows = np.unique(np.concatenate(list(found.values())))
    bodies, forward = annotation.bodies.take(rows), annotation.strand[rows] != "-"
    start = np.where(forward, bodies.start, bodies.end - 1)  # of transcription
    low = np.maximum(start - np.where(forward, upstream, 500), 0)
    high = start + np.where(forward, 500, upstream) + 1
    gene, promoter = counts.index.query(bodies.chrom, low, high)
    open_ = counts.opened[promoter] >= min_cells
    gene, promoter = gene[open_], promoter[open_]
    if not len(gene):
        raise InputError(
            f"no promoter of {len(rows):,} genes is open in {min_cells} cells.", "Lower min_cells, or pass more cells."
        )
    r = counts.regions
    middle = (r.start + r.end) // 2
    pair, region = counts.index.query(
        r.chrom[promoter], np.maximum(middle[promoter] - window, 0), middle[promoter] + window + 1
    )
    is_promoter = set(zip(gene.tolist(), promoter.tolist(), strict=True))
    kept = [(int(gene[i]), int(j)) not in is_promoter for i, j in zip(pair, region, strict=True)]
    pair, region = pair[kept], region[kept]
    table = pd.DataFrame(
        {
            "gene": annotation.symbols[rows][gene[pair]],
            "promoter": promoter[pair],
            "region": region,
            "distance": np.abs(middle[region] - middle[promoter[pair]]),
        }
    )
    table = table[_together(counts, table["promoter"].to_numpy(), region) >= min_cells]
    if not len(table):
        raise InputError(
            f"no promoter and region within {window:,} base pairs are open together in {min_cells} cells.",
            "Lower min_cells, widen window, or pass more cells.",
        )
    return table.reset_index(drop=True)


def _null_pairs(
    counts: RegionCounts, tested: pd.DataFrame, window: int, min_cells: int, number: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Random pairs of regions within the window that are open together often enough and are not tested."""
    import numpy as np
    import pandas as pd

    often = np.flatnonzero(counts.opened >= min_cells)
    r = counts.regions
    middle = (r.start + r.end) // 2
    first = often[rng.integers(0, len(often), 20 * number)]
    one, other = counts.index.query(r.chrom[first], np.maximum(middle[first] - window, 0), middle[first] + window + 1)
    order = rng.permutation(len(one))
    low, high = np.minimum(first[one], other)[order], np.maximum(first[one], other)[order]
    keys = low * len(counts.names) + high
    keys = keys[np.sort(np.unique(keys, return_index=True)[1])]  # each pair once, in random order
    a, b = tested["promoter"].to_numpy(), tested["region"].to_numpy()
    keys = keys[~np.isin(keys, np.minimum(a, b) * len(counts.names) + np.maximum(a, b))]
    low, high = keys // len(counts.names), keys % len(counts.names)
    far = (low != high) & (counts.opened[low] >= min_cells) & (counts.opened[high] >= min_cells)
    low, high = low[far], high[far]
    enough = _together(counts, low, high) >= min_cells
    low, high = low[enough][:number], high[enough][:number]
    if len(low) < 20:
        raise InputError(
            f"only {len(low)} other pairs within {window:,} base pairs are open together in {min_cells} cells; a null needs 20.",
            "Lower min_cells, name fewer genes, or pass more cells.",
        )
    return pd.DataFrame({"gene": "", "promoter": low, "region": high, "distance": np.abs(middle[low] - middle[high])})


def _together(counts: RegionCounts, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """In how many cells both regions of each pair are open (n_pairs,) int64."""
    import numpy as np

    open_ = (counts.matrix > 0).astype(np.float32).tocsc()
    found = [
        open_[:, first[at : at + 10_000]].multiply(open_[:, second[at : at + 10_000]]).sum(axis=0)
        for at in range(0, len(first), 10_000)
    ]
    return np.concatenate([np.asarray(part).reshape(-1) for part in found] or [np.zeros(0)]).astype(np.int64)


def _correlation(counts: RegionCounts, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation of open and closed over the cells (n_pairs,) float64."""
    import numpy as np

    share = counts.opened / len(counts.cells)
    spread = np.sqrt(share * (1 - share))
    both = _together(counts, first, second) / len(counts.cells)
    scale = spread[first] * spread[second]
    return np.divide(both - share[first] * share[second], scale, out=np.zeros(len(first)), where=scale > 0)


def _attention(
    encoder: CellEncoder,
    counts: RegionCounts,
    first: np.ndarray,
    second: np.ndarray,
    layers: Sequence[int] | None,
    progress: bool | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Attention between the regions of each pair, both directions, times the number of tokens; and in how many cells both have one."""
    import numpy as np
    import torch

    total, seen = np.zeros(len(first)), np.zeros(len(first), dtype=np.int64)
    a, b = counts.tokens[first], counts.tokens[second]
    place = np.full(len(encoder.vocabulary), -1, dtype=np.int64)
    batches = encoder.encode(
        counts.adata(), outputs=("attention",), attention_layers=layers, progress=progress, seed=seed
    )
    for _, tokens, encoded in batches:
        for row in range(len(tokens)):
            ids = tokens.cell(row)["ids"]
            place[ids] = np.arange(len(ids))
            here = np.flatnonzero((place[a] >= 0) & (place[b] >= 0))
            i, j = torch.from_numpy(place[a[here]]), torch.from_numpy(place[b[here]])
            place[ids] = -1
            if len(here):
                maps = [weights[row] for weights in encoded.attention.values()]  # (heads, t, t)
                weight = torch.stack([(m[:, i, j] + m[:, j, i]).mean(dim=0) / 2 for m in maps]).mean(dim=0)
                total[here] += weight.numpy() * len(ids)
                seen[here] += 1
    return np.divide(total, seen, out=np.full(len(first), np.nan), where=seen > 0), seen


def _significance(table: pd.DataFrame, null: pd.DataFrame, score: str) -> tuple[np.ndarray, np.ndarray]:
    """p among null pairs of the same bin of distance, and q over all pairs; NaN where a pair has no score or its bin no null pair."""
    import numpy as np
    from scipy.stats import false_discovery_control

    p = np.full(len(table), np.nan)
    bins, null_bins = (np.digitize(part["distance"], _EDGES) for part in (table, null))
    for one in np.unique(bins):
        background = np.sort(null.loc[null_bins == one, score].dropna().to_numpy())
        mine = np.flatnonzero((bins == one) & table[score].notna().to_numpy())
        if len(background):
            above = len(background) - np.searchsorted(background, table[score].to_numpy()[mine], side="left")
            p[mine] = (1 + above) / (1 + len(background))
    q = np.full(len(table), np.nan)
    if (finite := np.isfinite(p)).any():
        q[finite] = false_discovery_control(p[finite])
    return p, q


def command(
    model: Model,
    file: File,
    gtf: Annotated[Path, typer.Option(help="Genes' coordinates, of the regions' genome build.")],
    gene: Annotated[list[str] | None, typer.Option(help="Symbol or id; repeatable. Default: all.")] = None,
    window: Annotated[int, typer.Option(help="Farthest regions, base pairs.")] = 250_000,
    min_cells: Annotated[int, typer.Option(help="Fewest cells open in both regions.")] = 10,
    null: Annotated[int, typer.Option(help="Random pairs.")] = 5000,
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
    """Candidate links of regions and genes, by attention against pairs as far apart."""
    encoder = load_encoder(model, device=device, option=option, load_option=load_option)
    result = link_regions(
        encoder, file, gtf, genes=gene or None, window=window, min_cells=min_cells, null=null, cells=cells, layer=layer,
        gene_column=gene_column, map_genes=map_genes, progress=False if quiet else None, seed=seed,
    )  # fmt: skip
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("link_regions", run=link_regions, command=command, needs=frozenset({"embed", "attention"}))
