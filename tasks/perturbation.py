"""In silico perturbation of any encoder: which genes move cells, more than genes of similar expression do, and towards which state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from scfm.errors import GeneMatchError, InputError, listing
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
from scfm.results import TaskResult, provenance_of
from scfm.task import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scfm.cells import Values
    from scfm.encoder import CellEncoder
    from scfm.in_silico import Change, Effects, Kind, Level
    from scfm.reading import Reading

Genes = Literal["all"] | Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class InSilico(TaskResult):
    """What perturbations did to cells.

    Parameters
    ----------
    table
        One row a perturbation: perturbation, kind, n (cells), effect (mean of 1 - cosine of the cell's embeddings before and after), low,
        high, null (mean effect of random genes of similar expression), p, fdr; `gene_effect` where states of genes were compared; for
        goal states "goal shift", "goal p", "goal fdr" and the same of the alternatives.
    cells
        One row a perturbed cell: cell, perturbation, cosine, gene_cosine and the shifts.
    affected
        One row a perturbation and another gene: effect (mean over cells of 1 - cosine of the gene's states) and n; None unless asked for.
    """

    cells: pd.DataFrame
    affected: pd.DataFrame | None = None

    def summary(self) -> str:
        """The strongest perturbations, beside the null."""
        settings = self.provenance["settings"]
        shown = self.table.head(15)
        columns = [c for c in shown if c not in ("kind",)]
        lines = [
            f"{settings['kind']} in {settings['n_cells']:,} cells, in the {settings['level']}; effect = 1 - cosine before and after",
            shown[columns].to_string(index=False, float_format=lambda x: f"{x:.4g}"),
        ]
        if len(self.table) > len(shown):
            lines.append(f"... {len(self.table) - len(shown):,} more")
        if "fdr" in self.table:
            lines.append(
                f"{int((self.table.fdr < 0.05).sum())} of {len(self.table)} move cells more than genes of similar expression at FDR 0.05"
            )
        return "\n".join(lines)

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Effects of the strongest perturbations with intervals over cells, and of genes of similar expression beside them."""
        import numpy as np

        from scfm.plotting import CATEGORIES, axes_of, saved

        top = self.table.head(20)
        ax = axes_of(ax, size=(6.5, 1.2 + 0.3 * len(top)))
        at = np.arange(len(top))[::-1]
        ax.hlines(at, top.low, top.high, color=CATEGORIES[0], linewidth=1.5)
        ax.plot(top.effect, at, "o", color=CATEGORIES[0], markersize=6, label="perturbed")
        ax.plot(
            top.null, at, "|", color="#333333", markersize=11, markeredgewidth=2, label="genes of similar expression"
        )
        ax.set_yticks(at, top.perturbation)
        ax.set_xlim(left=0)
        ax.set_xlabel(f"{self.provenance['settings']['kind']}: 1 - cosine of cell embeddings")
        ax.legend(frameon=False, fontsize=8, loc="lower right")
        return saved(ax, save)


def perturb(
    encoder: CellEncoder,
    data: AnnData | str | PathLike[str],
    genes: Genes,
    *,
    kind: Kind = "knock-out",
    factor: float | None = None,
    states: str | None = None,
    start: str | None = None,
    goal: str | None = None,
    alternatives: Sequence[str] = (),
    null: int = 20,
    gene_effects: bool = False,
    most_cells: int | None = None,
    level: Level | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: Values | None = None,
    hidden_layer: int | None = None,
    pooling: str | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> InSilico:
    """Perturb genes of cells in silico and measure how far the cells' embeddings move.

    Parameters
    ----------
    encoder
        Any whose cells do not see each other; used as is.
    data
        Cells in the values the encoder reads; an AnnData or a path. Not changed.
    genes
        Names, or lists of names that are perturbed together ("A+B" is one). "all": every gene of each cell, one at a time.
    kind
        "knock-out": the gene is not expressed. "knock-down", "over-express": its values times `factor`. These change cells that express
        all of the genes. "activate": the gene has `factor` times the cell's highest value, in cells that lack it too; for rank
        tokenizers it comes first.
    factor
        0.5 for "knock-down", 2 for "over-express", 1 for "activate" by default.
    states, start, goal, alternatives
        Column of `obs` and values in it: cells of `start` are perturbed, and moved towards the mean embedding of `goal` or not.
    null
        Random genes (or groups) of similar mean expression that each perturbation is compared with; 0 leaves p-values out. The least p is
        1 / (null + 1). With "all", the other perturbed genes of similar expression are the null.
    gene_effects
        Compare the states of the other genes too, where the network gives them.
    most_cells
        Perturb so many cells at most, drawn at random.
    level
        "values" or "ranks"; by default in the ranked list where the tokenizer has one and the kind allows it.
    layer, gene_column, map_genes, values, hidden_layer, pooling, progress
        As for `CellEncoder.embed`.
    seed
        Of the null, the drawn cells, and random tokenization.

    Returns
    -------
    InSilico

    Raises
    ------
    GeneMatchError
        A gene is unknown to the encoder.
    InputError
        No cell expresses a gene, or a state or an argument does not exist.
    CapabilityError
        The encoder's cells see each other.
    """
    import numpy as np

    from scfm.in_silico import FACTORS, KINDS, level_of
    from scfm.reading import read

    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is not known.", f"Pass {listing(KINDS)}.")
    factor = FACTORS[kind] if factor is None else factor
    if (kind == "knock-down" and not 0 <= factor < 1) or (kind in ("over-express", "activate") and not factor > 0):
        raise InputError(f"factor={factor} is no {kind}.", f"The default is {FACTORS[kind]}.")
    if null < 0 or (most_cells is not None and most_cells < 1):
        raise InputError(f"null={null} and most_cells={most_cells}; both are counts.")
    reads: dict[str, Any] = dict(layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)
    vectors = _states(encoder, data, states, goal, alternatives, reads, hidden_layer, pooling, progress, seed)
    level = level or level_of(encoder, kind)
    with closing(read(encoder, data, **reads)) as reading:
        rng = np.random.default_rng(seed)
        cells = _chosen(reading, states, start, most_cells, rng)
        work = _Work(encoder, reading, cells, level, kind, factor, rng, seed)
        options: dict[str, Any] = dict(states=vectors, gene_states=gene_effects, affected=gene_effects, level=level)
        options |= dict(pooling=pooling, hidden_layer=hidden_layer, progress=progress, seed=seed)
        tested, effects, nulls = (
            work.all(options) if isinstance(genes, str) and genes == "all" else work.named(genes, null, options)
        )
        names = reading.parts[0].source.obs.index
    settings: dict[str, Any] = dict(
        kind=kind, factor=factor, level=level, null=null, states=states, start=start, goal=goal, seed=seed
    )
    settings |= dict(
        alternatives=list(alternatives), pooling=pooling, hidden_layer=hidden_layer, n_cells=len(cells), **reads
    )
    table, by_cell, affected = _tables(
        tested, effects, nulls, kind, names, encoder, work.labels, list(vectors), gene_effects
    )
    return InSilico(table, by_cell, affected, provenance=provenance_of("perturb", encoder, **settings))


def _chosen(
    reading: Reading, states: str | None, start: str | None, most: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Positions of the cells to perturb, ascending."""
    import numpy as np

    source = reading.parts[0].source
    cells = np.arange(source.shape[0])
    if states is not None:
        if start is None:
            raise InputError("states= is given, start= is not.", "Name the state whose cells are perturbed.")
        cells = np.flatnonzero((source.obs[states].astype(str) == start).to_numpy())
        if not len(cells):
            raise InputError(f"no cell is {start!r} in obs[{states!r}].")
    if most is not None and len(cells) > most:
        cells = np.sort(rng.choice(cells, most, replace=False))
    return cells


def _states(
    encoder: CellEncoder,
    data: Any,
    states: str | None,
    goal: str | None,
    alternatives: Sequence[str],
    reads: dict[str, Any],
    hidden_layer: int | None,
    pooling: str | None,
    progress: bool | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Mean embedding of the goal, first, and of each alternative."""
    import numpy as np

    from scfm.cells import Source

    if states is None:
        if goal is not None or alternatives:
            raise InputError("goal= is given, states= is not.", "Name the column of obs that holds the states.")
        return {}
    if goal is None:
        raise InputError("states= is given, goal= is not.", "Name the state that cells are to move to.")
    source = Source(data, reads["layer"])
    try:
        source.require_obs([states], "Pass states= as it is called there.")
        labels = source.obs[states].astype(str).to_numpy()
    finally:
        source.close()
    if missing := [name for name in (goal, *alternatives) if name not in set(labels)]:
        raise InputError(f"obs[{states!r}] has no {listing(missing)}; it has {listing(sorted(set(labels)))}.")
    options: dict[str, Any] = dict(hidden_layer=hidden_layer, pooling=pooling, progress=progress, seed=seed)
    embedding = encoder.embed(data, **reads, **options)
    return {name: np.nanmean(embedding[labels == name].astype(np.float64), axis=0) for name in (goal, *alternatives)}


@dataclass(frozen=True)
class _Work:
    """Which changes are made, and their effects."""

    encoder: CellEncoder
    reading: Reading
    cells: np.ndarray
    level: Level
    kind: Kind
    factor: float
    rng: np.random.Generator
    seed: int

    @property
    def labels(self) -> dict[int, str]:
        """Token id -> what the data call the gene."""
        import numpy as np

        part = self.reading.parts[0]
        known = np.flatnonzero(part.alignment.tokens >= 0)
        names = part.source.var.index
        return {int(part.alignment.tokens[i]): str(names[i]) for i in known[::-1]}

    def run(self, changes: list[Change], pairs: tuple[np.ndarray, np.ndarray], options: dict[str, Any]) -> Effects:
        """Effects of so many cells at a time."""
        import numpy as np

        from scfm.cells import BLOCK_ROWS
        from scfm.in_silico import Effects, effects_of

        starts = [*np.searchsorted(pairs[0], self.cells[::BLOCK_ROWS]).tolist(), len(pairs[0])]
        parts = []
        for a, b in pairwise(starts):
            if b > a:
                some = (pairs[0][a:b], pairs[1][a:b])
                parts.append(effects_of(self.encoder, self.reading, changes, some, **options))
        return Effects.joined(parts)

    def all(self, options: dict[str, Any]) -> tuple[list[Change], Effects, dict[int, np.ndarray] | None]:
        """Every gene of each cell."""
        from scfm.in_silico import expressed_changes

        changes, pairs = expressed_changes(
            self.encoder, self.reading, self.cells, level=self.level, kind=self.kind, factor=self.factor, seed=self.seed
        )
        return changes, self.run(changes, pairs, options), self._neighbours(changes)

    def _neighbours(self, changes: list[Change]) -> dict[int, np.ndarray]:
        """For each gene the perturbed genes of closest expression, as positions in `changes`."""
        import numpy as np

        from scfm.perturbation.shifts import matched_genes

        mean = self._means()[[change.genes[0] for change in changes]]
        return {i: matched_genes(mean, i, 50, np.random.default_rng(0), near=50) for i in range(len(changes))}

    def _means(self) -> np.ndarray:
        """Mean expression of every token over the cells."""
        import numpy as np

        from scfm.in_silico import genes_in

        _, gene, value = genes_in(self.encoder, self.reading, self.cells, level="values")
        return np.bincount(gene, weights=value, minlength=len(self.encoder.vocabulary)) / len(self.cells)

    def named(
        self, genes: Any, null: int, options: dict[str, Any]
    ) -> tuple[list[Change], Effects, dict[int, np.ndarray] | None]:
        """The changes that were asked for, and behind them those of the null."""
        import numpy as np

        from scfm.in_silico import Change, changed_cells, genes_in
        from scfm.perturbation.shifts import matched_genes

        groups = self._groups(genes)
        changes = [Change(group, self.kind, self.factor) for group in groups]
        nulls: dict[int, np.ndarray] | None = None
        row, gene, _ = genes_in(self.encoder, self.reading, self.cells, level=self.level, seed=self.seed)
        if null:
            mean = self._means()
            mean[np.setdiff1d(np.arange(len(mean)), gene)] = 0  # genes behind the cut are in no list
            nulls, asked = {}, sorted({g for group in groups for g in group})
            for i, group in enumerate(groups):
                drawn = [matched_genes(mean, g, null, self.rng, but=asked) for g in group]
                mates = list(zip(*(d.tolist() for d in drawn), strict=False))
                nulls[i] = np.arange(len(changes), len(changes) + len(mates))
                changes += [Change(tuple(m), self.kind, self.factor) for m in mates]
        pairs = changed_cells(changes, self.cells, row, gene, len(self.encoder.vocabulary))
        reached = set(np.unique(pairs[1]).tolist())
        if none := [i for i in range(len(groups)) if i not in reached]:
            labels = self.labels
            names = ["+".join(labels.get(g, "?") for g in groups[i]) for i in none]
            raise InputError(
                f"no cell expresses {listing(names)}" + (" within the context." if self.level == "ranks" else "."),
                "Pass kind='activate' to switch genes on, or other cells.",
            )
        effects = self.run(changes, pairs, options)
        return changes[: len(groups)], effects, nulls

    def _groups(self, genes: Any) -> list[tuple[int, ...]]:
        """Token ids of each perturbation.

        Raises
        ------
        GeneMatchError
            The data or the encoder lack a gene.
        """
        import numpy as np

        from scfm.genes import gene_ids

        wanted = [genes] if isinstance(genes, str) else list(genes)
        groups = [tuple(g.split("+")) if isinstance(g, str) else tuple(g) for g in wanted]
        if not groups or not all(groups):
            raise InputError("genes is empty.", "Name some, or pass 'all'.")
        own = {name: token for token, name in self.labels.items()}
        flat = sorted({gene for group in groups for gene in group})
        ids = {g: own.get(g, int(i)) for g, i in zip(flat, gene_ids(self.encoder.vocabulary, flat), strict=True)}
        if unknown := [gene for gene, i in ids.items() if i < 0]:
            raise GeneMatchError(
                f"{self.encoder.name} does not know {listing(unknown)}.",
                "Name genes as the data do, or as the model does.",
            )
        made = [tuple(ids[gene] for gene in group) for group in groups]
        absent = np.setdiff1d([i for group in made for i in group], list(self.labels))
        if len(absent) and self.kind == "activate" and self.level == "values":
            missing = [gene for gene, i in ids.items() if i in absent]
            raise GeneMatchError(f"the data have no column for {listing(missing)}, so that it can't be activated.")
        return made


def _tables(
    tested: list[Change],
    effects: Effects,
    nulls: dict[int, np.ndarray] | None,
    kind: str,
    cells: pd.Index,
    encoder: CellEncoder,
    labels: dict[int, str],
    states: list[str],
    gene_effects: bool,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]:
    import numpy as np
    import pandas as pd

    from scfm.metrics import bootstrap_mean
    from scfm.perturbation.de import benjamini_hochberg
    from scfm.perturbation.shifts import goal_state_shift, permutation_p

    def called(ids: tuple[int, ...]) -> str:
        return "+".join(labels.get(i, encoder.vocabulary.tokens[i]) for i in ids)

    names = np.array([called(change.genes) for change in tested], dtype=object)
    everything = effects.change.max(initial=-1) + 1
    effect = 1 - effects.cosine
    counts = np.bincount(effects.change, minlength=everything)
    means = np.divide(
        np.bincount(effects.change, weights=effect, minlength=everything),
        counts,
        out=np.full(len(counts), np.nan),
        where=counts > 0,
    )
    rows = []
    order = np.argsort(effects.change, kind="stable")
    at = np.searchsorted(effects.change[order], np.arange(len(tested) + 1))
    for i, name in enumerate(names):
        mine = order[at[i] : at[i + 1]]
        estimate = bootstrap_mean(effect[mine], resamples=200)
        row = {"perturbation": name, "kind": kind, "n": len(mine), "effect": estimate.value}
        row |= {"low": estimate.low, "high": estimate.high} if len(mine) > 1 else {"low": np.nan, "high": np.nan}
        others = means[nulls[i][nulls[i] < len(means)]] if nulls is not None else np.zeros(0)
        row["null"] = float(np.nanmean(others)) if np.isfinite(others).any() else np.nan
        row["p"] = permutation_p(means[i], others)
        if gene_effects:
            row["gene_effect"] = float(1 - np.nanmean(effects.gene_cosine[mine])) if len(mine) else np.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    table.insert(list(table).index("p") + 1, "fdr", benjamini_hochberg(table["p"].to_numpy()))
    own = effects.change < len(tested)
    by_cell = pd.DataFrame(
        {
            "cell": np.asarray(cells[effects.cell[own]], dtype=object),
            "perturbation": names[effects.change[own]],
            "cosine": effects.cosine[own],
            "gene_cosine": effects.gene_cosine[own],
            **{f"{state} shift": effects.shifts[state][own] for state in states},
        }
    )
    if states:
        shifts = {state: effects.shifts[state][own] for state in states}
        table = table.merge(goal_state_shift(shifts, names[effects.change[own]]).drop(columns="n"), on="perturbation")
        table = table.sort_values(["significant", f"{states[0]} shift"], ascending=False, ignore_index=True)
    else:
        table = table.sort_values("effect", ascending=False, ignore_index=True)
    return table, by_cell, _affected(effects, own, names, called) if gene_effects else None


def _affected(effects: Effects, own: np.ndarray, names: np.ndarray, called: Any) -> pd.DataFrame:
    """Mean effect of every perturbation on every other gene, strongest first within a perturbation."""
    import numpy as np
    import pandas as pd

    row, gene, cosine = effects.affected
    kept = own[row]
    table = pd.DataFrame(
        {"perturbation": names[effects.change[row[kept]]], "gene": gene[kept], "effect": 1 - cosine[kept]}
    )
    grouped = table.groupby(["perturbation", "gene"], sort=False).effect.agg(effect="mean", n="size").reset_index()
    grouped["gene"] = np.array([called((int(i),)) for i in grouped["gene"]], dtype=object)
    return grouped.sort_values(["perturbation", "effect"], ascending=[True, False], ignore_index=True)


def predict_expression(encoder: CellEncoder, control: AnnData, conditions: Sequence[str], **reading: Any) -> AnnData:
    """Expression of control cells under conditions, by an encoder that predicts it.

    Parameters
    ----------
    encoder
        One that was fine-tuned for responses, or whose network generates expression.
    control
        Unperturbed cells, raw counts.
    conditions
        Genes joined with "+".
    reading
        gene_column, map_genes: as for `CellEncoder.embed`.

    Returns
    -------
    AnnData
        As `scfm.perturbation.response` makes it.

    Raises
    ------
    CapabilityError
        The encoder, or this checkpoint of it, predicts no expression.
    """
    from scfm.in_silico import ExpressionGenerator
    from scfm.perturbation import ResponsePredictor

    if isinstance(encoder, ResponsePredictor):
        return encoder.predict_response(control, list(conditions), **reading)
    return ExpressionGenerator(encoder, **reading).predict_response(control, list(conditions))


def command(
    model: Model,
    data: File,
    genes: Annotated[
        str,
        typer.Option("--genes", "-g", help="Names separated by commas; A+B is a pair; all: each gene of each cell."),
    ],
    kind: Annotated[str, typer.Option(help="knock-out, knock-down, over-express or activate.")] = "knock-out",
    factor: Annotated[float | None, typer.Option(help="What values are multiplied by.")] = None,
    states: Annotated[str | None, typer.Option(help="Column of obs with states of cells.")] = None,
    start: Annotated[str | None, typer.Option(help="State of the cells to perturb.")] = None,
    goal: Annotated[str | None, typer.Option(help="State that cells are to move to.")] = None,
    alternatives: Annotated[list[str] | None, typer.Option("--alternative", help="Another state; repeatable.")] = None,
    null: Annotated[int, typer.Option(help="Random genes of similar expression for each perturbation.")] = 20,
    gene_effects: Annotated[bool, typer.Option("--gene-effects", help="Also effects on the other genes.")] = False,
    most_cells: Annotated[int | None, typer.Option(help="Perturb so many cells at most.")] = None,
    expression: Annotated[
        Path | None,
        typer.Option(help="Predict expression instead, for models that generate it, and write it to this .h5ad."),
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    load_option: LoadOptions = None,
    option: TokenizerOptions = None,
    device: Device = "auto",
    seed: Seed = 0,
    out: Result = None,
    plot: Plot = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perturb genes in silico, and see which move cells."""
    encoder = load_encoder(model, device=device, option=option, load_option=load_option)
    names: Any = "all" if genes == "all" else [name.strip() for name in genes.split(",") if name.strip()]
    if expression is not None:
        cells = read_adata(data)
        made = predict_expression(encoder, cells, names, gene_column=gene_column, map_genes=map_genes)
        made.write_h5ad(expression)
        return
    result = perturb(
        encoder,
        data,
        names,
        kind=kind,  # type: ignore[arg-type]
        factor=factor,
        states=states,
        start=start,
        goal=goal,
        alternatives=tuple(alternatives or ()),
        null=null,
        gene_effects=gene_effects,
        most_cells=most_cells,
        layer=layer,
        gene_column=gene_column,
        map_genes=map_genes,
        values=values,  # type: ignore[arg-type]
        progress=False if quiet else None,
        seed=seed,
    )
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("perturb", run=perturb, command=command)
