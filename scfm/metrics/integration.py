"""All scores of one embedding across batches, in one list: biology kept, batches mixed, guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scfm.clustering import fuzzy_graph, kmeans, leiden
from scfm.metrics.agreement import ami, ari, cluster_f1, nmi
from scfm.metrics.batch_effect import batch_leakage, pcr, pcr_comparison
from scfm.metrics.entries import Entry
from scfm.metrics.graphs import graph_connectivity, knn_purity, purities
from scfm.metrics.guards import Overmixing, overmixing
from scfm.metrics.isolated import isolated_f1, isolated_silhouette
from scfm.metrics.mixing import clisi, ilisi, ilisi_ceiling, kbet
from scfm.metrics.scores import Score, group_means, levels
from scfm.metrics.silhouette import bras, silhouette_batch, silhouette_label, stratified_rows
from scfm.metrics.trajectory import trajectory_spearman, trajectory_tau
from scfm.metrics.transfer import leave_one_batch_out
from scfm.neighbours import neighbours

__all__ = ["BATCH", "BIO", "Scored", "composite", "integration_scores", "subsampled"]

BIO = ("NMI k-means", "ARI k-means", "silhouette label", "cLISI", "isolated silhouette")
"""Members of the biological part of the overall score (as in scib-metrics' benchmark)."""
BATCH = ("BRAS", "iLISI", "kBET", "graph connectivity A", "PCR comparison")
"""Members of its batch part."""
SILHOUETTE_CELLS = 20_000
LEAKAGE_CELLS = 5_000
WIDE = 90
"""Neighbours, the cell itself counted, of which all metrics take the nearest."""
RESOLUTIONS = tuple(round(0.2 * i, 1) for i in range(1, 11))


@dataclass(frozen=True)
class Scored:
    """All scores of one embedding.

    Parameters
    ----------
    entries
        Metric -> entry.
    indices
        (n_cells, k) nearest other cells.
    mixed
        Purity of labels against the embedding without integration; None without labels or such an embedding.
    """

    entries: dict[str, Entry]
    indices: np.ndarray
    mixed: Overmixing | None


def integration_scores(
    embedding: np.ndarray,
    batch: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    before: np.ndarray | None = None,
    before_indices: np.ndarray | None = None,
    donors: np.ndarray | None = None,
    pseudotime: np.ndarray | None = None,
    lineages: np.ndarray | None = None,
    clusters: Literal["kmeans", "both"] = "both",
    leakage: bool = True,
    k: int = 15,
    seed: int = 0,
) -> Scored:
    """Every metric of integration; those that need what is not given are there, NaN, with the reason.

    Parameters
    ----------
    embedding
        (n_cells, dim).
    batch
        (n_cells,).
    labels
        (n_cells,) cell types.
    before, before_indices
        (n_cells, dim) embedding of the same cells without integration, and its neighbours.
    donors
        (n_cells,) for the folds of the leakage.
    pseudotime, lineages
        (n_cells,) reference of the trajectory scores.
    clusters
        "kmeans", or also Leiden ("both"; needs the extra `analysis`).
    leakage
        Train classifiers of batch (the slowest part).
    k
        Neighbours of graph connectivity, purity, transfer and trajectory.
    seed
        Of clusters, folds and subsamples.
    """
    z = np.asarray(embedding, dtype=np.float64)
    n = len(z)
    distances, indices = neighbours(z, k=min(WIDE, n) - 1)
    entries = _batch(z, batch, labels, distances, indices, before)
    mixed = None
    if labels is None:
        for name in (*BIO, "graph connectivity A"):
            entries[name] = Entry("batch" if name in BATCH else "bio", Score(np.nan, "", n, "no labels are given"))
    else:
        entries |= _labels(z, batch, labels, distances, indices, k, seed)
        entries |= _clusters(z, batch, labels, distances[:, : k - 1], indices[:, : k - 1], clusters, seed)
        if before_indices is not None:
            mixed = overmixing(before_indices, indices, labels, k=min(k, n - 1))
            entries["overmixing"] = Entry("guard", _overmixing(mixed, before_indices, indices, labels, min(k, n - 1)))
    if pseudotime is not None:
        for name, metric in (("trajectory tau", trajectory_tau), ("trajectory Spearman", trajectory_spearman)):
            entries[name] = Entry("bio", metric(pseudotime, distances, indices, lineages=lineages, k=k))
    if leakage:
        rows = stratified_rows(batch, batch, most=LEAKAGE_CELLS, seed=seed)
        kinds: tuple[Literal["linear", "mlp"], ...] = ("linear", "mlp")
        for kind in kinds:
            score = batch_leakage(
                z[rows],
                batch[rows],
                donors=None if donors is None else donors[rows],
                classifier=kind,
                seed=seed,
            )
            entries[f"batch leakage {kind}"] = Entry("guard", _spread(score, rows, n), better="lower")
    return Scored(entries, indices, mixed)


def _batch(
    z: np.ndarray,
    batch: np.ndarray,
    labels: np.ndarray | None,
    distances: np.ndarray,
    indices: np.ndarray,
    before: np.ndarray | None,
) -> dict[str, Entry]:
    mixing, ceiling = ilisi(distances, batch, indices, k=WIDE), ilisi_ceiling(batch)
    undefined = Score(np.nan, "", len(z), "no labels are given")
    rows = stratified_rows(batch if labels is None else labels, batch, most=SILHOUETTE_CELLS)
    scores = {
        "BRAS": undefined if labels is None else _spread(bras(z[rows], labels[rows], batch[rows]), rows, len(z)),
        "iLISI": mixing,
        "kBET": kbet(batch, indices),
        "PCR comparison": Score(np.nan, "", len(z), "no embedding without integration is given")
        if before is None
        else pcr_comparison(before, z, batch),
        "iLISI / ceiling": _scaled(mixing, ceiling),
    }
    if labels is not None:
        scores["silhouette batch"] = _spread(silhouette_batch(z[rows], labels[rows], batch[rows]), rows, len(z))
    entries = {name: Entry("batch", score) for name, score in scores.items()}
    entries["PCR"] = Entry("batch", pcr(z, batch), better="lower")
    convention = "iLISI of batches of these sizes, perfectly mixed"
    reason = "" if np.isfinite(ceiling) else "one batch only"
    entries["iLISI ceiling"] = Entry("guard", Score(ceiling, convention, len(z), reason))
    return entries


def _labels(
    z: np.ndarray,
    batch: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
    indices: np.ndarray,
    k: int,
    seed: int,
) -> dict[str, Entry]:
    n = len(z)
    rows = stratified_rows(labels, batch, most=SILHOUETTE_CELLS, seed=seed)
    entries = {
        "silhouette label": Entry("bio", _spread(silhouette_label(z[rows], labels[rows]), rows, n)),
        "cLISI": Entry("bio", clisi(distances, labels, indices, k=WIDE)),
        "isolated silhouette": Entry("bio", _spread(isolated_silhouette(z[rows], labels[rows], batch[rows]), rows, n)),
        "k-NN purity micro": Entry("bio", knn_purity(indices, labels, k=k)),
        "k-NN purity macro": Entry("bio", knn_purity(indices, labels, k=k, average="macro")),
    }
    for name, score in leave_one_batch_out(z, labels, batch, k=k).items():
        if name != "recall":  # of the labels, pooled over batches: in the strata of no other score
            entries[f"transfer {name}"] = Entry("bio", score)
    conventions: tuple[Literal["A", "B"], ...] = ("A", "B")
    for convention in conventions:

        def connectivity(chosen: np.ndarray, convention: Literal["A", "B"] = convention) -> float:
            near = subsampled(indices, chosen, k - 1)
            return graph_connectivity(near, labels[chosen], k=k, convention=convention).value

        entries[f"graph connectivity {convention}"] = Entry(
            "batch",
            graph_connectivity(indices, labels, k=k, convention=convention),
            subsample=connectivity,
        )
    return entries


def _clusters(
    z: np.ndarray,
    batch: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
    indices: np.ndarray,
    which: Literal["kmeans", "both"],
    seed: int,
) -> dict[str, Entry]:
    count = len(np.unique(labels))
    means = kmeans(z, count, seed=seed)
    name = f"k-means, k = {count} labels"
    scores = {"NMI k-means": nmi(labels, means, convention=name), "ARI k-means": ari(labels, means, convention=name)}
    scores["AMI k-means"] = ami(labels, means, convention=name)
    scores["cluster F1"] = cluster_f1(labels, means, convention=f"best cluster of each label, {name}")
    if which == "both":
        graph = fuzzy_graph(distances, indices)
        made = {resolution: leiden(graph, resolution=resolution, seed=seed) for resolution in RESOLUTIONS}
        best = max(made, key=lambda resolution: nmi(labels, made[resolution]).value if count > 1 else 0)
        graph_name = f"Leiden, UMAP weights, k {indices.shape[1] + 1} with itself"
        for title, resolution, how in (
            ("Leiden best", best, f"best NMI of resolutions 0.2 to 2.0 (an oracle): {best}"),
            ("Leiden 1.0", 1.0, "resolution 1.0"),
        ):
            convention = f"{graph_name}, {how}"
            scores[f"NMI {title}"] = nmi(labels, made[resolution], convention=convention)
            scores[f"ARI {title}"] = ari(labels, made[resolution], convention=convention)
        scores["isolated F1"] = isolated_f1(labels, batch, list(made.values()))
    return {name: Entry("bio", score) for name, score in scores.items()}


def composite(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Means of the biological and the batch members, and 0.6 bio + 0.4 batch (Luecken et al. 2022); NaN if a member is.

    The numbers are not scaled between embeddings. Graph connectivity is held fixed in the resampling.
    """

    def of(names: tuple[str, ...], group: Literal["bio", "batch"]) -> Score:
        parts = [entries[name].score for name in names]
        convention = f"mean of {', '.join(names)}"
        n = parts[0].n
        missing = [
            f"{name}: {part.reason}" for name, part in zip(names, parts, strict=True) if not np.isfinite(part.value)
        ]
        if missing:
            return Score(np.nan, convention, n, "; ".join(missing))

        def resample(rows: np.ndarray) -> float:
            return float(np.mean([part.value if part.resample is None else part.resample(rows) for part in parts]))

        return Score(float(np.mean([part.value for part in parts])), convention, n, resample=resample)

    bio, batch = of(BIO, "bio"), of(BATCH, "batch")
    convention = "0.6 bio + 0.4 batch, unscaled"
    reason = "; ".join(part.reason for part in (bio, batch) if part.reason)
    overall = Score(0.6 * bio.value + 0.4 * batch.value, convention, bio.n, reason)
    one, two = bio.resample, batch.resample
    if one is not None and two is not None:
        overall = replace(overall, resample=lambda rows: 0.6 * one(rows) + 0.4 * two(rows))
    return {"bio": Entry("overall", bio), "batch": Entry("overall", batch), "overall": Entry("overall", overall)}


def subsampled(indices: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other cells among some of the cells (n_rows, k), numbered within them; exact, from wider lists of all cells.

    Parameters
    ----------
    indices
        (n_cells, wide) nearest other cells among all.
    rows
        The cells that stay, each once.
    k
        Neighbours; fewer where the lists have too few cells that stay.
    """
    number = np.full(len(indices), -1)
    number[rows] = np.arange(len(rows))
    near = number[indices[rows]]  # (n_rows, wide), -1: gone
    k = min(k, int((near >= 0).sum(axis=1).min()))
    first = np.argsort(near < 0, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(near, first, axis=1)


def _overmixing(mixed: Overmixing, before: np.ndarray, after: np.ndarray, labels: np.ndarray, k: int) -> Score:
    """The lowest ratio of purities."""
    names, codes = levels(labels, len(labels))
    pure = [purities(near, labels, k=k) for near in (before, after)]

    def statistic(rows: np.ndarray) -> float:
        one, other = (group_means(each[rows], codes[rows], len(names)) for each in pure)
        ratios = np.divide(other, one, out=np.full(len(names), np.nan), where=one > 0)
        return float(np.nanmin(ratios)) if np.isfinite(ratios).any() else np.nan

    value = statistic(np.arange(len(labels)))
    convention = f"lowest purity of a label / that without integration, k {k}; below 0.8 is overmixed"
    reason = "" if np.isfinite(value) else "no label is pure without integration"
    return Score(value, convention, len(labels), reason, mixed.ratios, statistic)


def _scaled(score: Score, ceiling: float) -> Score:
    convention = f"iLISI / {ceiling:.4f}, its value for perfectly mixed batches of these sizes"
    resample = score.resample
    return replace(
        score,
        value=score.value / ceiling,
        convention=convention,
        strata={},
        resample=None if resample is None else lambda rows: resample(rows) / ceiling,
    )


def _spread(score: Score, rows: np.ndarray, n: int) -> Score:
    """A score of some of the cells as one that is resampled with all of them."""
    if len(rows) == n:
        return score
    number = np.full(n, -1)
    number[rows] = np.arange(len(rows))
    own = score.resample

    def resample(drawn: np.ndarray) -> float:
        assert own is not None
        inside = number[drawn]
        return own(inside[inside >= 0])

    return replace(
        score,
        convention=f"{score.convention}; on {len(rows):,} of {n:,} cells, stratified",
        resample=None if own is None else resample,
    )
