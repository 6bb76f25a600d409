"""Gene regulatory networks from any encoder with attention, with correlation, trees and chance in the same table."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    ValuesOption,
    load_encoder,
    read_adata,
    show,
)
from scfm.results import provenance_of
from scfm.task import Task, require_capabilities

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

    from scfm.cells import Values
    from scfm.encoder import CellEncoder
    from scfm.grn.result import GRN
    from scfm.grn.scores import Genes

__all__ = ["TASK", "grn"]

DIRECTIONS = ("key", "query", "both")


def grn(
    encoder: CellEncoder,
    adata: AnnData,
    *,
    tfs: Sequence[str] | str | PathLike[str] | None = None,
    genes: int | Sequence[str] = 1000,
    methods: Sequence[str] | None = None,
    direction: str = "key",
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    contrast: tuple[str, str, str] | None = None,
    permutations: int = 100,
    truth: pd.DataFrame | str | PathLike[str] | None = None,
    confidence: Sequence[str] | None = None,
    top: int | None = None,
    layers: Sequence[int] | None = None,
    trees: int = 100,
    bins: int = 10,
    min_cells: int = 10,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Values | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> GRN:
    """Score which transcription factors regulate which genes, from an encoder and by plain methods.

    Parameters
    ----------
    encoder
        With attention or gene embeddings, as the methods need.
    adata
        Cells x genes, in the values the encoder reads. Not changed.
    tfs
        Transcription factors: symbols, or a file with one a line. None is the list that ships for human and mouse
        (`scfm.grn.transcription_factors`).
    genes
        How many of the most variable genes to score as targets, besides the transcription factors; or their symbols.
    methods
        Among "attention", "attention_rank", "attention_qk" (see `scfm.grn.readout`), "gene_embedding" (cosine), "pearson", "spearman"
        (absolute correlation of log-normalised expression), "trees" (GENIE3-style forests; slow) and "random". None is "attention",
        "gene_embedding", "spearman" and "random", without those the encoder or a contrast can't give.
    direction
        In attention maps, rows are queries (what is influenced) and columns keys (what influences). "key" takes the regulator as key and
        the target as query, "query" the other way round, "both" gives both.
    groupby
        Column of `obs`, e.g. the cell type: each group has a network of its own.
    groups
        Those of its values to use; None is all.
    contrast
        (column of `obs`, perturbed, control), e.g. ("condition", "stim", "ctrl"): scores are the size of the difference between the two,
        the sign its direction, and p comes from shuffling the cells' labels within a group. Without it, p comes from shuffling genes among
        those of similar mean expression.
    permutations
        Shuffles of the labels.
    truth, confidence
        Known edges to compare with, see `scfm.grn.read_edges`.
    top
        Keep so many edges of each group and method in the table; None is all. Rank, q and agreement are of all.
    layers
        Of the attention; None is the last for "attention_rank" and all for the others.
    trees
        Trees for each gene of the method "trees".
    bins
        Bins of mean expression within which genes are shuffled.
    min_cells
        Fewest cells of a group, and fewest that express a gene.
    layer, gene_column, map_genes, values, progress, seed
        As for `CellEncoder.embed`.

    Returns
    -------
    GRN
        Edges, their agreement with known ones, and how they were made.

    Raises
    ------
    InputError
        No transcription factor is among the genes, a group has too few cells, an argument is not known.
    SpeciesError
        Transcription factors and genes are of different species.
    CapabilityError
        The encoder can't give a method, or reads no genes.
    """
    import pandas as pd

    from scfm.grn.cells import group_cells
    from scfm.grn.genes import read_edges
    from scfm.grn.result import GRN, agreement, edge_table
    from scfm.grn.scores import score_difference, score_edges
    from scfm.metrics.edges import candidate_edges

    require_capabilities(encoder, TASK)
    chosen_methods = _methods(encoder, methods, contrast)
    if direction not in DIRECTIONS:
        raise InputError(f"direction={direction!r} is not known.", f"Pass one of {listing(DIRECTIONS)}.")
    known = None if truth is None else read_edges(truth, confidence=confidence)
    cells = group_cells(adata, groupby, groups, contrast, min_cells)
    used = adata[sorted(i for rows in cells.values() for i in rows)]
    reading: dict[str, Any] = dict(layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)
    chosen, expression = _chosen_genes(encoder, used, tfs, genes, min_cells, reading)
    if known is not None:
        candidate_edges(
            chosen.names[chosen.regulators].tolist(), chosen.names.tolist(), known
        )  # refuses before the work
    position: dict[str, int] = {name: i for i, name in enumerate(used.obs_names)}
    frames, compared = [], []
    for group, rows in cells.items():
        own = adata[rows]
        x = expression[[position[name] for name in own.obs_names]].toarray()
        shared: dict[str, Any] = dict(reading=reading, layers=layers, progress=progress, seed=seed)
        for method in chosen_methods:
            if contrast is None:
                found = score_edges(encoder, own, x, chosen, method, trees=trees, bins=bins, **shared)
            else:
                perturbed = (own.obs[contrast[0]].astype(str) == contrast[1]).to_numpy()
                found = score_difference(
                    encoder, own, x, chosen, method, perturbed=perturbed, permutations=permutations, **shared
                )
            for scored in found:
                if scored.direction and direction not in (scored.direction, "both"):
                    continue
                frames.append(edge_table(scored, chosen, group, top))
                if known is not None:
                    compared.append(agreement(scored, chosen, group, known, seed))
    return GRN(
        pd.concat(frames, ignore_index=True),
        pd.concat(compared, ignore_index=True) if compared else pd.DataFrame(),
        tuple(chosen.names[chosen.regulators]),
        tuple(chosen.names),
        provenance=provenance_of(
            "grn", encoder, tfs="shipped" if tfs is None else str(tfs) if isinstance(tfs, str | PathLike) else list(tfs),
            genes=genes if isinstance(genes, int) else list(genes), methods=chosen_methods, direction=direction, groupby=groupby,
            contrast=contrast, cells={name: len(rows) for name, rows in cells.items()}, permutations=permutations,
            truth=str(truth) if isinstance(truth, str | PathLike) else None if truth is None else "DataFrame",
            confidence=confidence, layers=layers, trees=trees, bins=bins, min_cells=min_cells, seed=seed, **reading,
        ),
    )  # fmt: skip


def _methods(encoder: CellEncoder, methods: Sequence[str] | None, contrast: Any) -> list[str]:
    """Those asked for, if the encoder can give them; by default those that it can."""
    from scfm.encoder import Capability
    from scfm.grn.readout import RECIPES
    from scfm.grn.scores import CORRELATIONS, METHODS

    needs: dict[str, Capability] = {
        **dict.fromkeys(RECIPES, Capability.ATTENTION),
        "gene_embedding": Capability.GENE_EMBEDDINGS,
    }
    if methods is None:
        usual = ["attention", "gene_embedding", "spearman", "random"]
        usual = [name for name in usual if name not in needs or needs[name] in encoder.capabilities]
        return usual if contrast is None else [name for name in usual if name in (*RECIPES, *CORRELATIONS)]
    chosen = [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    if not chosen or (unknown := [name for name in chosen if name not in METHODS]):
        raise InputError(
            f"methods={listing(unknown) if chosen else '[]'} is not known.", f"There are {listing(METHODS, 20)}."
        )
    encoder.require(*(needs[name] for name in chosen if name in needs))
    return chosen


def _chosen_genes(
    encoder: CellEncoder, adata: AnnData, tfs: Any, genes: int | Sequence[str], min_cells: int, reading: dict[str, Any]
) -> tuple[Genes, sparse.csr_matrix]:
    """The genes to score, and their log-normalised expression (n_cells, n_genes)."""
    import numpy as np

    from scfm.cells import describe_values
    from scfm.genes import feature_names
    from scfm.grn.genes import choose_genes, gene_symbols, log_normalised, regulators_among
    from scfm.grn.scores import Genes
    from scfm.reading import read

    if encoder.vocabulary.ids == "region":
        raise CapabilityError(f"{encoder.name} reads regions of the genome; a network is among genes.")
    opened = read(encoder, adata, **reading)
    source, tokens = opened.parts[0].source, opened.parts[0].alignment.tokens
    names = gene_symbols(feature_names(source.var, reading["gene_column"]))
    first = np.zeros(len(names), bool)
    first[np.unique(names.astype(str), return_index=True)[1]] = True
    first_token = np.zeros(len(names), bool)
    first_token[np.unique(tokens, return_index=True)[1]] = True
    matrix = source.take(slice(0, source.shape[0]))
    expression = log_normalised(matrix, counts=describe_values(matrix) == "counts")
    regulators = regulators_among(names, tfs)
    columns = choose_genes(
        expression, names, regulators, (tokens >= 0) & first & first_token, genes=genes, min_cells=min_cells
    )
    chosen = Genes(names[columns], tokens[columns], np.flatnonzero(regulators[columns]))
    return chosen, expression[:, columns].tocsr()


def command(
    model: Model,
    file: File,
    tfs: Annotated[
        Path | None,
        typer.Option(help="Transcription factors, one symbol a line. Default: the list shipped for the species."),
    ] = None,
    genes: Annotated[int, typer.Option(help="Most variable genes to score as targets.")] = 1000,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="attention, attention_rank, attention_qk, gene_embedding, pearson, spearman, trees or random; repeatable."
        ),
    ] = None,
    direction: Annotated[str, typer.Option(help="In attention, the regulator is the key, the query, or both.")] = "key",
    groupby: Annotated[str | None, typer.Option(help="Column of obs; a network for each of its values.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only this value of --groupby; repeatable.")] = None,
    contrast: Annotated[
        tuple[str, str, str] | None,
        typer.Option(help="COLUMN PERTURBED CONTROL: score differences between conditions."),
    ] = None,
    permutations: Annotated[int, typer.Option(help="Shuffles of the conditions.")] = 100,
    truth: Annotated[
        Path | None, typer.Option(help="Known edges to compare with: CSV or TSV with source and target.")
    ] = None,
    confidence: Annotated[
        list[str] | None, typer.Option(help="Only known edges of this confidence; repeatable.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Keep so many edges of each group and method. Default: all.")] = None,
    min_cells: Annotated[int, typer.Option(help="Fewest cells of a group, and that express a gene.")] = 10,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    option: TokenizerOptions = None,
    load_option: LoadOptions = None,
    device: Device = "auto",
    seed: Seed = 0,
    out: Result = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the first method's best 1,000 edges as GraphML.")] = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score which transcription factors regulate which genes."""
    encoder = load_encoder(model, device=device, option=option, load_option=load_option)
    result = grn(
        encoder, read_adata(file), tfs=tfs, genes=genes, methods=method or None, direction=direction, groupby=groupby,
        groups=group or None, contrast=contrast, permutations=permutations, truth=truth, confidence=confidence or None, top=top,
        min_cells=min_cells, layer=layer, gene_column=gene_column, map_genes=map_genes, values=values,  # type: ignore[arg-type]
        progress=False if quiet else None, seed=seed,
    )  # fmt: skip
    if graphml is not None:
        result.to_graphml(graphml)
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("grn", run=grn, command=command)
