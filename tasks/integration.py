"""Integration: are batches mixed and cell types kept in an embedding? Every score with its convention, interval and plain rivals.

scfm integrate mini cells.h5ad --batch donor --labels cell_type
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from scfm._lazy import optional
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
    from scfm.metrics.integration import Scored

__all__ = ["TASK", "Integration", "integrate"]

RANDOM = "random"


@dataclass(frozen=True)
class Integration(TaskResult):
    """Scores of integration.

    Parameters
    ----------
    table
        One row a score: `encoder`, `metric`, `group` (overall, bio, batch, guard), `value`, `low`, `high` (95 %), `unit` (what was
        resampled: groups, cells, or subsamples), `better` (higher or lower), `convention`, `n` cells, `reason` where undefined.
    differences
        `encoder`, `metric`, `value`, `low`, `high`, `unit`: score - that of the baseline on the same resamples.
    strata
        `encoder`, `metric`, `stratum`, `value`: the scores within labels, batches or lineages.
    baselines
        Names of the rows that are plain rivals.
    members
        Metrics of the parts "bio" and "batch" of the overall score.
    notes
        What deserves a look: overmixed and rare labels, cells left out, donors in several batches.
    embeddings
        Name -> (n_cells, dim), for `umap`; not in the JSON.
    obs
        Batch and labels of these cells; not in the JSON.
    """

    differences: pd.DataFrame
    strata: pd.DataFrame
    baselines: tuple[str, ...]
    members: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    embeddings: dict[str, np.ndarray]
    obs: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """All fields but `embeddings` and `obs`."""
        small = {f.name for f in fields(self)} - {"embeddings", "obs"}
        return {name: value for name, value in _light(self).items() if name in small | {"kind"}}

    def wide(self, column: str = "value") -> pd.DataFrame:
        """One row an embedding, one column a metric."""
        order = list(dict.fromkeys(self.table["metric"]))
        names = list(dict.fromkeys(self.table["encoder"]))
        return self.table.pivot(index="encoder", columns="metric", values=column).loc[names, order]

    def summary(self) -> str:
        """Bio, batch and overall of each embedding; where the plain rival is ahead; notes."""
        defined = self.wide()["overall"].notna().any()
        shown = ["bio", "batch", "overall"] if defined else ["iLISI", "kBET", "PCR comparison"]  # which need no labels
        wide, low, high = (self.wide(column)[shown] for column in ("value", "low", "high"))
        width = max(9, *(len(name) for name in wide.index))
        lines = [f"{'':<{width}}  {shown[0]:^22}  {shown[1]:^22}  {shown[2]:^22}".rstrip()]
        for name, *parts in zip(wide.index, wide.to_numpy(), low.to_numpy(), high.to_numpy(), strict=True):
            cells = [_interval(*map(float, each)) for each in zip(*parts, strict=True)]
            lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:<22}" for cell in cells))
        lines[1:] = [line.rstrip() for line in lines[1:]]
        lines.append("[95 % interval]" + ("  overall = 0.6 bio + 0.4 batch" if defined else ""))
        undefined = self.table[(self.table["metric"] == "overall") & self.table["value"].isna()]
        if len(undefined):
            lines.append(f"overall is not defined: {undefined['reason'].iloc[0]}")
        lines += [*self._against_baseline(), *self.notes]
        return "\n".join(lines)

    def _against_baseline(self) -> list[str]:
        if not self.baselines or self.baselines[0] == RANDOM:
            return []
        rival, lines = self.baselines[0], []
        overall = self.differences[self.differences["metric"] == "overall"].dropna(subset=["value"])
        for name, value, low, high in overall[["encoder", "value", "low", "high"]].to_numpy().tolist():
            if name in self.baselines:
                continue
            verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
            lines.append(f"{name} is {verdict} {rival}: {_interval(value, low, high, sign=True)} overall")
        return lines

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """A table of the members of the overall score: area and darkness of a dot are the score, bars are the means.

        Parameters
        ----------
        ax, save
            As for every result.
        """
        from scfm.plotting import saved, score_table

        wide = self.wide()
        groups = {part: list(self.members[part]) for part in ("bio", "batch")}
        groups["overall"] = ["bio", "batch", "overall"]
        return saved(score_table(wide, groups, bars="overall", baselines=self.baselines, ax=ax), save)

    def umap(self, encoder: str | None = None, *, save: str | PathLike[str] | None = None, seed: int = 0) -> list[Axes]:
        """UMAP of one embedding, coloured by batch and by label.

        Parameters
        ----------
        encoder
            Name in the table; None is the first.
        save
            Also write the figure to this file.
        seed
            Of UMAP.
        """
        from scfm.plotting import category_panels, saved, umap_coordinates

        name = next(iter(self.embeddings)) if encoder is None else encoder
        if name not in self.embeddings:
            raise InputError(f"there is no embedding {name!r}.", f"There are {', '.join(self.embeddings)}.")
        places = umap_coordinates(self.embeddings[name], seed=seed)
        axes = category_panels(places, {str(title): self.obs[title].to_numpy(str) for title in self.obs}, title=name)
        saved(axes[0], save)
        return axes


def _light(result: Integration) -> dict[str, Any]:
    from dataclasses import replace

    return TaskResult.to_dict(replace(result, embeddings={}, obs=result.table.iloc[:0]))


def _interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    if not np.isfinite(value):
        return "undefined"
    shown = f"{value:+.3f}" if sign else f"{value:.3f}"
    return shown if not np.isfinite(low) else f"{shown} [{low:.3f}, {high:.3f}]"


def integrate(
    embeddings: EmbeddingSource | Sequence[EmbeddingSource] | Mapping[str, EmbeddingSource],
    adata: AnnData,
    *,
    batch: str,
    labels: str | None = None,
    donors: str | None = None,
    pseudotime: str | None = None,
    lineages: str | None = None,
    ignore: Sequence[str] = (),
    correct: Literal["harmony"] | None = None,
    baseline: EmbeddingSource | None = "pca",
    clusters: Literal["both", "kmeans"] = "both",
    leakage: bool = True,
    k: int = 15,
    resamples: int = 1000,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Integration:
    """Score how well embeddings mix batches and keep cell types, beside a plain baseline and random numbers.

    Parameters
    ----------
    embeddings
        An encoder, the name of a model, a key of ``adata.obsm``, an array (n_cells, dim); several of these; or a dict that names them.
    adata
        Cells; never changed.
    batch
        Column of `obs` whose values should be mixed: library, platform, study.
    labels
        Column of `obs` with cell types; None: only what needs none is scored, and there is no overall score.
    donors
        Column of `obs`: whole donors (or studies) are resampled for the intervals and held out for the leakage. Without it, or with
        fewer than five, intervals are of cells and describe these cells only.
    pseudotime, lineages
        Columns of `obs`: a reference course (NaN for cells outside), and the branch of each cell.
    ignore
        Labels that are none, e.g. "unassigned"; their cells, and those without a label, are left out.
    correct
        "harmony" adds each embedding corrected by Harmony (extra `harmony`; GPL-3).
    baseline
        What to stand beside the embeddings, and "before" of PCR comparison and overmixing; None: nothing, and PCR comparison is
        undefined.
    clusters
        Cluster by k-means and Leiden ("both"), or by k-means alone.
    leakage
        Train classifiers that tell the batch.
    k
        Neighbours of graph connectivity (with the cell itself), purity, transfer (without).
    resamples
        Bootstrap samples of the intervals.
    seed
        Of encoders, clusters, folds, resamples and the random embedding.
    options
        Of `CellEncoder.embed`, e.g. ``{"layer": "counts"}``.

    Returns
    -------
    Integration

    Raises
    ------
    InputError
        A column is missing or has no values, there are too few cells, or an embedding is of other cells.
    MissingExtraError
        Harmony, or Leiden (``clusters="kmeans"`` needs none), is not installed.
    """
    from scfm.embeddings import embeddings_of, obs_values
    from scfm.metrics import random_embedding
    from scfm.metrics.entries import entry_tables
    from scfm.metrics.integration import BATCH, BIO, composite

    if correct not in (None, "harmony"):
        raise InputError(f"correct={correct!r} is not known.", "Pass 'harmony' or None.")
    keep = _labelled(adata, labels, ignore)
    found = embeddings_of(_with_baseline(embeddings, baseline), adata, options=options, keep=keep, seed=seed)
    rows, arrays = found.rows, dict(found.arrays)
    groups = obs_values(adata, batch, rows=rows, purpose="batch=")
    types = None if labels is None else obs_values(adata, labels, rows=rows, purpose="labels=")
    who = None if donors is None else obs_values(adata, donors, rows=rows, purpose="donors=")
    if len(rows) < k + 1:
        raise InputError(
            f"{len(rows)} cells are left, k={k} neighbours are asked for.", "Pass more cells or a smaller k."
        )
    rival = None if baseline is None else list(arrays)[-1]
    plain: tuple[str, ...] = () if rival is None else (rival,)
    if correct:
        arrays = _corrected(arrays, groups, seed)
        plain = tuple(name for name in arrays if rival is not None and name in (rival, f"{rival} + {correct}"))
        arrays = {name: arrays[name] for name in (*[a for a in arrays if a not in plain], *plain)}
    arrays[RANDOM] = random_embedding(len(rows), 50, seed=seed)
    course = None if pseudotime is None else _numbers(adata, pseudotime)[rows]
    branches = None if lineages is None else adata.obs[lineages].astype(str).to_numpy(str)[rows]
    settings: dict[str, Any] = dict(
        donors=None if who is None or donors == batch else who,
        pseudotime=course,
        lineages=branches,
        clusters=clusters,
        leakage=leakage,
        k=k,
        seed=seed,
    )
    scored = _scored(arrays, rival, groups, types, settings)
    entries = {name: {**composite(one.entries), **one.entries} for name, one in scored.items()}
    table, differences, strata = entry_tables(entries, rival=rival, donors=who, resamples=resamples, seed=seed)
    record = provenance_of(
        "integrate",
        *found.encoders,
        embeddings=list(arrays),
        batch=batch,
        labels=labels,
        donors=donors,
        pseudotime=pseudotime,
        lineages=lineages,
        ignore=list(ignore),
        correct=correct,
        clusters=clusters,
        leakage=leakage,
        k=k,
        resamples=resamples,
        seed=seed,
        cells=len(rows),
        options=dict(options or {}),
    )
    obs = adata.obs.iloc[rows][[batch, *([labels] if labels else [])]]
    notes = _notes(adata.n_obs - int(keep.sum()), found.left_out, scored, groups, who) + _below_floor(table)
    return Integration(
        table,
        differences,
        strata,
        (*plain, RANDOM),
        {"bio": BIO, "batch": BATCH},
        notes,
        arrays,
        obs,
        provenance=record,
    )


def _labelled(adata: AnnData, labels: str | None, ignore: Sequence[str]) -> np.ndarray:
    """Which cells have a label that counts (n_cells,) bool."""
    if labels is None or labels not in adata.obs:  # whose absence is told where it is read
        return np.ones(adata.n_obs, dtype=bool)
    column = adata.obs[labels]
    return (column.notna() & ~column.astype(str).isin(ignore)).to_numpy()


def _numbers(adata: AnnData, key: str) -> np.ndarray:
    if key not in adata.obs or adata.obs[key].dtype.kind not in "fiu":
        raise InputError(f"obs has no column {key!r} with numbers.", "Name the column with pseudotime=.")
    return adata.obs[key].to_numpy(np.float64)


def _with_baseline(embeddings: Any, baseline: EmbeddingSource | None) -> Any:
    from scfm.embeddings import named_sources

    named = named_sources(embeddings)
    if baseline is not None:
        (name, source), *_ = named_sources(baseline).items()
        named.pop(name, None)  # asked for twice: it stands at the end
        named[name] = source
    if RANDOM in named:
        raise InputError(f"an embedding is called {RANDOM!r}, the name of the floor.", "Pass a dict with another name.")
    return named


def _corrected(arrays: dict[str, np.ndarray], batch: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    harmonypy = optional("harmonypy", extra="harmony", purpose="Harmony")
    import pandas as pd

    meta, found = pd.DataFrame({"batch": batch}), {}
    for name, z in arrays.items():
        found[name] = z
        run = harmonypy.run_harmony(z.astype(np.float64), meta, "batch", random_state=seed, verbose=False, ncores=1)
        fixed = np.asarray(run.Z_corr)
        found[f"{name} + harmony"] = fixed if fixed.shape == z.shape else fixed.T
    return found


def _scored(
    arrays: dict[str, np.ndarray],
    rival: str | None,
    batch: np.ndarray,
    labels: np.ndarray | None,
    settings: dict[str, Any],
) -> dict[str, Scored]:
    from scfm.metrics.integration import integration_scores

    scored: dict[str, Scored] = {}
    before = None if rival is None else arrays[rival]
    if rival is not None:  # first, since the others are compared with it
        scored[rival] = integration_scores(arrays[rival], batch, labels, before=before, **settings)
    near = None if rival is None else scored[rival].indices
    for name, z in arrays.items():
        if name != rival:
            scored[name] = integration_scores(z, batch, labels, before=before, before_indices=near, **settings)
    return {name: scored[name] for name in arrays}


def _notes(
    unlabelled: int, without: dict[str, int], scored: dict[str, Scored], batch: np.ndarray, donors: np.ndarray | None
) -> tuple[str, ...]:
    notes = []
    if unlabelled:
        notes.append(f"{unlabelled} cells without a label that counts were left out.")
    for name, count in without.items():
        notes.append(f"{count} cells without an embedding by {name} were left out of all.")
    if donors is None or len(np.unique(donors)) < 5:
        given = "no donors are given" if donors is None else f"{len(np.unique(donors))} donors are too few to resample"
        notes.append(f"Intervals are of cells and describe these cells only: {given}.")
    if donors is not None:
        spread = sum(len(np.unique(batch[donors == donor])) > 1 for donor in np.unique(donors))
        if spread:
            notes.append(f"{spread} donors are in several batches: label transfer between these batches is flattered.")
    for name, one in scored.items():
        if one.mixed is not None and one.mixed.flagged and name != RANDOM:
            shown = ", ".join(f"{label} {one.mixed.ratios[label]:.2f}" for label in one.mixed.flagged)
            notes.append(f"{name} overmixes labels (purity against the baseline's below 0.8): {shown}.")
    rare = next((one.mixed.rare for one in scored.values() if one.mixed is not None), ())
    if rare:
        notes.append(f"Rare labels (below 1 % or 50 cells), whose scores say little: {', '.join(rare)}.")
    return tuple(notes)


def _below_floor(table: pd.DataFrame) -> tuple[str, ...]:
    overall = table[table["metric"] == "overall"].set_index("encoder")["value"]
    below = [str(name) for name, value in overall.items() if name != RANDOM and value <= overall[RANDOM]]
    if not below:
        return ()
    return (f"Not above random numbers overall, whose batches are mixed for nothing: {', '.join(below)}.",)


def command(
    embedding: Annotated[
        list[str], typer.Argument(help="Names of models, or keys of obsm; several stand side by side.")
    ],
    adata: File,
    batch: Annotated[str, typer.Option(help="Column of obs whose values should be mixed.")],
    labels: Annotated[str | None, typer.Option(help="Column of obs with cell types.")] = None,
    donors: Annotated[str | None, typer.Option(help="Column of obs; donors are resampled for the intervals.")] = None,
    pseudotime: Annotated[str | None, typer.Option(help="Column of obs with a reference course.")] = None,
    lineages: Annotated[str | None, typer.Option(help="Column of obs with the branch of each cell.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Label that is none, e.g. unassigned; repeatable.")] = None,
    correct: Annotated[str | None, typer.Option(help="'harmony': also score the embeddings corrected by it.")] = None,
    baseline: Annotated[
        str, typer.Option(help="What stands beside; a model or key of obsm, 'none' for nothing.")
    ] = "pca",
    clusters: Annotated[str, typer.Option(help="both (k-means and Leiden) or kmeans.")] = "both",
    leakage: Annotated[bool, typer.Option(help="Train classifiers that tell the batch.")] = True,
    umap: Annotated[
        str | None, typer.Option(help="Write UMAPs by batch and label of the first embedding here.")
    ] = None,
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
    """Score how well embeddings mix batches and keep cell types."""
    from scfm.embeddings import named_on

    if correct not in (None, "harmony"):
        raise typer.BadParameter(f"{correct!r} is not known; pass harmony", param_hint="--correct")
    if clusters not in ("both", "kmeans"):
        raise typer.BadParameter(f"{clusters!r} is neither both nor kmeans", param_hint="--clusters")
    cells = read_adata(adata)
    result = integrate(
        named_on(embedding, cells, device=device),
        cells,
        batch=batch,
        labels=labels,
        donors=donors,
        pseudotime=pseudotime,
        lineages=lineages,
        ignore=ignore or (),
        correct="harmony" if correct else None,
        baseline=None if baseline == "none" else baseline,
        clusters="both" if clusters == "both" else "kmeans",
        leakage=leakage,
        seed=seed,
        options=dict(
            layer=layer, gene_column=gene_column, map_genes=map_genes, values=values, progress=False if quiet else None
        ),
    )
    if umap is not None:
        result.umap(save=umap)
    show(result, out=out, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("integrate", run=integrate, command=command)
