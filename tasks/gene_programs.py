"""Gene embeddings: neighbours, programmes, sets that stand apart, and encoders beside each other and beside expression itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scfm.errors import InputError, listing
from scfm.options import Device, Json, Layer, LoadOptions, Plot, Quiet, Result, Seed, load_encoder, read_adata, show
from scfm.results import TaskResult, provenance_of
from scfm.task import Task, require_capabilities

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scfm.encoder import CellEncoder

LEAST = 10
"""Genes that a set needs among those compared."""


@dataclass(frozen=True)
class GenePrograms(TaskResult):
    """Genes as encoders and expression see them.

    Parameters
    ----------
    table
        Long: metric, space (encoder or baseline), of (gene set, or the other space), value, low, high, null, p, fdr, n. Metrics:
        "auroc" of a probe for each set, "coherence" of programmes (mean correlation of their genes in the data), "cka" and "knn_overlap"
        of two spaces.
    programmes
        (n_genes, n_spaces) number of each gene's programme, 0 the largest.
    neighbours
        gene, space, rank, neighbour, cosine; of the genes asked for.
    """

    programmes: pd.DataFrame
    neighbours: pd.DataFrame

    def summary(self) -> str:
        """Programmes, sets, likeness and neighbours, a few lines each."""
        lines = [f"{len(self.programmes):,} genes"]
        lines += [f"{space}: {column.nunique()} programmes" for space, column in self.programmes.items()]
        for metric, part in self.table.groupby("metric", sort=False):
            lines.append(f"\n{metric}")
            lines.append(part.drop(columns="metric").to_string(index=False, float_format=lambda x: f"{x:.3f}"))
        if len(self.neighbours):
            lines.append("")
            for (gene, space), rows in self.neighbours.groupby(["gene", "space"], sort=False):
                lines.append(f"{gene}, {space}: {', '.join(rows.neighbour)}")
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """AUROC of every gene set in every space with random sets as a tick; without sets, the coherence or likeness instead."""
        import numpy as np

        from scfm.plotting import CATEGORIES, MARKERS, axes_of, saved

        metric = next((m for m in ("auroc", "coherence", "knn_overlap") if (self.table.metric == m).any()), None)
        if metric is None:
            raise InputError("there is nothing to draw.", "Pass sets=, data=, or two encoders.")
        part = self.table[self.table.metric == metric]
        spaces, sets = list(dict.fromkeys(part.space)), list(dict.fromkeys(part.of))
        ax = axes_of(ax, size=(6.5, 1.2 + 0.25 * len(spaces) * len(sets) + 0.3 * len(sets)))
        for i, space in enumerate(spaces):
            rows = part[part.space == space].set_index("of").reindex(sets)
            at = np.arange(len(sets))[::-1] + 0.7 * (0.5 - (i + 0.5) / len(spaces))
            ax.hlines(at, rows.low, rows.high, color=CATEGORIES[i], linewidth=1.5)
            ax.plot(rows.value, at, MARKERS[i], color=CATEGORIES[i], markersize=6, label=space)
            ax.plot(
                rows.null,
                at,
                "|",
                color="#333333",
                markersize=9,
                label="random genes" if i == len(spaces) - 1 else None,
            )
        ax.set_yticks(np.arange(len(sets))[::-1], [str(s) for s in sets])
        if metric == "auroc":
            ax.axvline(0.5, color="#333333", linestyle="--", linewidth=0.8)
        ax.set_xlabel(
            {"auroc": "AUROC of a logistic probe", "coherence": "mean correlation within programmes"}.get(
                metric, metric
            )
        )
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return saved(ax, save)


def genes(
    encoders: CellEncoder | Sequence[CellEncoder],
    data: AnnData | None = None,
    *,
    sets: Mapping[str, Sequence[str]] | None = None,
    query: Sequence[str] = (),
    names: Sequence[str] | None = None,
    most_genes: int = 2000,
    kind: str | None = None,
    k: int = 15,
    resolution: float = 1.0,
    draws: int = 20,
    layer: str | None = None,
    seed: int = 0,
) -> GenePrograms:
    """Look at the genes of one or more encoders, beside what expression alone says of them.

    Parameters
    ----------
    encoders
        With gene embeddings that need no data.
    data
        Counts; gives the baselines (correlation over cells, PCA loadings), the expression that random genes are matched by, and the
        coherence of programmes. None: no baseline.
    sets
        Name -> genes; how well each stands apart is measured where ten of them or more are compared.
    query
        Genes whose neighbours are listed.
    names
        Genes to compare; None: those of the data of highest variance that all encoders know (without data, those of the first encoder).
    most_genes
        Of these, so many at most.
    kind
        As for `CellEncoder.gene_embeddings`.
    k, resolution
        Neighbours of a gene in the graph and in the overlap; of Leiden.
    draws
        Times that random genes are drawn for a set, and genes left out for the intervals of likeness.
    layer
        Key of `layers` with the counts; None reads `X`.
    seed
        Of everything drawn.

    Returns
    -------
    GenePrograms

    Raises
    ------
    CapabilityError
        An encoder has no gene embeddings.
    GeneMatchError
        An encoder knows none of the genes.
    InputError
        Fewer genes are shared than are needed, a gene of `query` is not among them, or the data hold no counts.
    """
    import numpy as np
    import pandas as pd

    from scfm.gene_spaces import gene_programmes

    chosen = [encoders] if not isinstance(encoders, Sequence) else list(encoders)
    for encoder in chosen:
        require_capabilities(encoder, TASK)
    if len({encoder.name for encoder in chosen}) < len(chosen):
        raise InputError("two encoders have the same name.", "Compare different ones.")
    shared, spaces, expression = _spaces(chosen, data, names, most_genes, kind, layer)
    if len(shared) <= k + 1:
        raise InputError(
            f"{len(shared)} shared genes are too few for {k} neighbours.", "Pass a smaller k, or other data."
        )
    if lacking := sorted(set(query) - set(shared)):
        raise InputError(f"{listing(lacking)} is not among the {len(shared)} genes.", "Add them with names=.")
    programmes = pd.DataFrame(
        {name: gene_programmes(x, k=k, resolution=resolution, seed=seed) for name, x in spaces.items()},
        index=pd.Index(shared, dtype=object),
    )
    rows: list[dict[str, Any]] = []
    if data is not None:
        rows += _coherence(spaces["correlation"], programmes, draws, np.random.default_rng(seed))
    rows += _separability(spaces, shared, sets or {}, expression, draws, seed)
    rows += _likeness(spaces, k, draws, np.random.default_rng(seed))
    columns = ["metric", "space", "of", "value", "low", "high", "null", "p", "fdr", "n"]
    table = pd.DataFrame(rows, columns=columns)
    settings = dict(kind=kind, k=k, resolution=resolution, draws=draws, layer=layer, seed=seed, n_genes=len(shared))
    return GenePrograms(
        table,
        programmes,
        _neighbours(spaces, shared, query, k),
        provenance=provenance_of("genes", *chosen, **settings, sets=sorted(sets or {})),
    )


def _spaces(
    encoders: Sequence[CellEncoder],
    data: AnnData | None,
    names: Sequence[str] | None,
    most: int,
    kind: str | None,
    layer: str | None,
) -> tuple[list[str], dict[str, np.ndarray], np.ndarray | None]:
    """The shared genes, their vectors in every space, and their mean expression."""
    import numpy as np

    from scfm.gene_spaces import encoder_space, expression_spaces

    variance = expression = None
    if data is not None:
        wanted, variance, expression = _measured(data, layer)
    else:
        tokens = encoders[0].vocabulary
        wanted = [tokens.tokens[i] for i in tokens.genes]
    if names is not None:
        if data is not None and (absent := sorted(set(names) - set(wanted))):
            raise InputError(f"{listing(absent)} is not expressed in the data.")
        keep = {name: i for i, name in enumerate(wanted)}
        at = np.array([keep[n] for n in names]) if data is not None else None
        wanted = list(names)
        if at is not None and variance is not None and expression is not None:
            variance, expression = variance[at], expression[at]
    found = {encoder.name: encoder_space(encoder, wanted, kind=kind) for encoder in encoders}
    shared = np.flatnonzero(np.all([known for _, known in found.values()], axis=0))
    if len(shared) > most:
        order = np.argsort(-variance[shared], kind="stable") if variance is not None else np.arange(len(shared))
        shared = np.sort(shared[order[:most]])
    genes = [wanted[i] for i in shared]
    spaces = {name: vectors[shared] for name, (vectors, _) in found.items()}
    if data is not None and len(genes) > 1:
        spaces |= expression_spaces(data, genes, layer)
    return genes, spaces, None if expression is None else expression[shared]


def _measured(data: AnnData, layer: str | None) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the expressed genes, the variance of their log expression, and its mean."""
    import numpy as np
    from scipy import sparse

    from scfm.cells import Source, check_values

    source = Source(data, layer)
    everything = slice(0, source.shape[0])
    matrix = source.take(everything)
    check_values(matrix, "counts", source, everything, "genes")
    total = np.maximum(np.asarray(matrix.sum(axis=1)).reshape(-1), 1)
    logged = sparse.csr_matrix(sparse.diags(1e4 / total) @ matrix.astype(np.float64))
    logged.data = np.log1p(logged.data)
    mean = np.asarray(logged.mean(axis=0)).reshape(-1)
    variance = np.asarray(logged.multiply(logged).mean(axis=0)).reshape(-1) - mean**2
    expressed = np.flatnonzero(variance > 0)
    if not source.var.index.is_unique:
        raise InputError("var_names are repeated.", "Call adata.var_names_make_unique().")
    return [str(name) for name in source.var.index[expressed]], variance[expressed], mean[expressed]


def _separability(
    spaces: Mapping[str, np.ndarray],
    genes: list[str],
    sets: Mapping[str, Sequence[str]],
    expression: np.ndarray | None,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    import numpy as np

    from scfm.gene_spaces import centred_components, set_separability
    from scfm.perturbation.de import benjamini_hochberg
    from scfm.perturbation.shifts import permutation_p

    members = {name: np.isin(genes, list(own)) for name, own in sets.items()}
    if sets and not any(own.sum() >= LEAST for own in members.values()):
        raise InputError(f"no gene set has {LEAST} genes among the {len(genes)}.", "Are the names of the same kind?")
    rows = []
    for space, x in spaces.items():
        narrow = centred_components(x)
        mine = []
        for name, own in members.items():
            if own.sum() < LEAST:
                continue
            real, null = set_separability(narrow, own, expression, draws=draws, seed=seed)
            low, high = np.quantile(real, [0.025, 0.975])
            mine.append(
                {"metric": "auroc", "space": space, "of": name, "value": real.mean(), "low": low, "high": high}
                | {"null": null.mean(), "p": permutation_p(float(real.mean()), null), "n": int(own.sum())}
            )
        fdr = benjamini_hochberg(np.array([row["p"] for row in mine]))
        rows += [row | {"fdr": q} for row, q in zip(mine, fdr, strict=True)]
    return rows


def _coherence(
    profiles: np.ndarray, programmes: pd.DataFrame, draws: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Mean correlation over pairs of genes of one programme, and of programmes of the same sizes of random genes."""
    import numpy as np

    from scfm.perturbation.shifts import permutation_p

    correlation = profiles @ profiles.T

    def within(labels: np.ndarray, part: np.ndarray | slice = slice(None)) -> float:
        same = labels[part][:, None] == labels[part]
        np.fill_diagonal(same, False)
        return float(correlation[part][:, part][same].mean()) if same.any() else float("nan")

    rows = []
    for space, column in programmes.items():
        labels = column.to_numpy()
        null = np.array([within(rng.permutation(labels)) for _ in range(draws)])
        value = within(labels)
        low, high = np.quantile([within(labels, _left_out(len(labels), rng)) for _ in range(draws)], [0.025, 0.975])
        rows.append(
            {"metric": "coherence", "space": space, "of": "programmes", "value": value, "low": low, "high": high}
            | {"null": null.mean(), "p": permutation_p(value, null), "n": int(column.nunique())}
        )
    return rows


def _left_out(n: int, rng: np.random.Generator) -> np.ndarray:
    """80 % of the genes: no graph is built of genes drawn twice."""
    return rng.choice(n, max(4, int(0.8 * n)), replace=False)


def _likeness(spaces: Mapping[str, np.ndarray], k: int, draws: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """CKA and overlap of the nearest genes, for each two spaces; intervals over 80 % of the genes, drawn without repeats."""
    import numpy as np

    from scfm.metrics import bootstrap_mean
    from scfm.metrics.similarity import linear_cka, overlap_by_chance
    from scfm.neighbours import neighbours

    near = {name: neighbours(x - x.mean(axis=0), k=k, metric="cosine")[1] for name, x in spaces.items()}
    rows = []
    for first, second in combinations(spaces, 2):
        a, b = spaces[first], spaces[second]
        drawn = [linear_cka(a[part], b[part]) for part in (_left_out(len(a), rng) for _ in range(draws))]
        low, high = np.quantile(drawn, [0.025, 0.975])
        pair = {"space": first, "of": second, "p": np.nan, "fdr": np.nan, "n": len(a)}
        rows.append(pair | {"metric": "cka", "value": linear_cka(a, b), "low": low, "high": high, "null": 0.0})
        common = np.array([len(set(x) & set(y)) for x, y in zip(near[first], near[second], strict=True)])
        width = near[first].shape[1]
        overlap = bootstrap_mean(common / (2 * width - common))
        chance = overlap_by_chance(len(a), width)
        rows.append(
            pair
            | {
                "metric": "knn_overlap",
                "value": overlap.value,
                "low": overlap.low,
                "high": overlap.high,
                "null": chance,
            }
        )
    return rows


def _neighbours(spaces: Mapping[str, np.ndarray], genes: list[str], query: Sequence[str], k: int) -> pd.DataFrame:
    """The genes nearest to those asked for, by cosine, the mean gene taken away."""
    import numpy as np
    import pandas as pd

    from scfm.neighbours import neighbours

    made = []
    for space, x in spaces.items():
        if not query:
            break
        centred = x - x.mean(axis=0)
        rows = [genes.index(gene) for gene in query]
        distance, index = neighbours(centred, centred[rows], k=min(k + 1, len(genes)), metric="cosine")
        for gene, row, d, i in zip(query, rows, distance, index, strict=True):
            others = i != row
            for rank, (near, far) in enumerate(zip(i[others][:k], d[others][:k], strict=True), 1):
                made.append((gene, space, rank, genes[near], float(np.clip(1 - far, -1, 1))))
    table = pd.DataFrame(made, columns=["gene", "space", "rank", "neighbour", "cosine"])
    order = {gene: i for i, gene in enumerate(query)}
    return table.sort_values("gene", key=lambda g: g.map(order), kind="stable", ignore_index=True)


def command(
    models: Annotated[list[str], typer.Argument(help="Models with gene embeddings, named as for `scfm embed`.")],
    data: Annotated[
        Path | None, typer.Option(help="An .h5ad file or .zarr folder with counts: gives the baselines.")
    ] = None,
    sets: Annotated[Path | None, typer.Option(help="Gene sets, a .gmt file.")] = None,
    query: Annotated[str, typer.Option(help="Genes whose neighbours are listed, with commas between.")] = "",
    most_genes: Annotated[int, typer.Option(help="Most genes to compare.")] = 2000,
    k: Annotated[int, typer.Option("-k", help="Neighbours of a gene.")] = 15,
    resolution: Annotated[float, typer.Option(help="Of Leiden; higher gives more programmes.")] = 1.0,
    layer: Layer = None,
    load_option: LoadOptions = None,
    device: Device = "auto",
    seed: Seed = 0,
    out: Result = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Neighbours, programmes and sets of genes, beside expression."""
    from scfm.gene_spaces import read_gene_sets

    result = genes(
        [load_encoder(model, device=device, load_option=load_option) for model in models],
        read_adata(data) if data else None,
        sets=read_gene_sets(sets) if sets else None,
        query=[name.strip() for name in query.split(",") if name.strip()],
        most_genes=most_genes,
        k=k,
        resolution=resolution,
        layer=layer,
        seed=seed,
    )
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("genes", run=genes, command=command, needs=frozenset({"gene_embeddings"}))
