"""Label transfer among cells that took no part in training: mini, its untrained weights, the components it started from, and PCA.

Query cells take the label of most of their 15 nearest reference cells (cosine). Intervals are 95 % bootstrap percentiles over query cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

import scfm
from scfm.adapters.pca import PCA
from scfm.encoder import CellEncoder

__all__ = ["Benchmark", "benchmarks", "evaluate", "macro_f1", "markdown", "transfer"]

NEIGHBOURS = 15
RESAMPLES = 1000
FEWEST = 5  # cells of a label; rarer ones are left out

Embed = Callable[[ad.AnnData, ad.AnnData], tuple[np.ndarray, np.ndarray]]
"""(reference, query) -> their embeddings."""


@dataclass(frozen=True)
class Benchmark:
    """A labelled data set and its ways to be divided.

    Parameters
    ----------
    name
        For the table.
    cells
        Counts.
    labels
        (n_cells,) str.
    rounds
        Each a list of (reference, query) positions; within a round every cell is queried at most once.
    """

    name: str
    cells: ad.AnnData
    labels: np.ndarray
    rounds: list[list[tuple[np.ndarray, np.ndarray]]]


def benchmarks(data: Path, *, seeds: int = 3) -> Iterator[Benchmark]:
    """The held-out data sets."""
    cells, labels = _labelled(ad.read_h5ad(data / "pbmc_3tech/pbmc_3tech.h5ad"))
    chemistry = cells.obs["batch"].astype(str).to_numpy()
    for query in np.unique(chemistry):
        division = (np.flatnonzero(chemistry != query), np.flatnonzero(chemistry == query))
        yield Benchmark(f"pbmc_3tech, query {query}", cells, labels, [[division]])
    cells, labels = _labelled(ad.read_h5ad(data / "pdac_a/pdac_a_indrop.h5ad"))
    yield Benchmark("pdac_a", cells, labels, [_halves(labels, seed) for seed in range(seeds)])
    cells, labels = _labelled(ad.read_h5ad(data / "pbmc3k/pbmc3k_1000.h5ad"))
    yield Benchmark("pbmc3k_1000", cells, labels, [_halves(labels, seed) for seed in range(seeds)])
    few = [[_first(reference, query, 100) for reference, query in _halves(labels, seed)] for seed in range(seeds)]
    yield Benchmark("pbmc3k_1000, 100 reference cells", cells, labels, few)
    panel = np.sort(np.random.default_rng(0).choice(cells.n_vars, 1000, replace=False))
    halves = [_halves(labels, seed) for seed in range(seeds)]
    yield Benchmark("pbmc3k_1000, 1,000 random genes", cells[:, panel].copy(), labels, halves)


def _labelled(cells: ad.AnnData) -> tuple[ad.AnnData, np.ndarray]:
    """Without unlabelled cells and labels of fewer than `FEWEST` cells."""
    labels = cells.obs["cell_type"].astype(str)
    kept = ((labels != "unlabelled") & (labels.groupby(labels).transform("size") >= FEWEST)).to_numpy()
    return cells[kept].copy(), labels[kept].to_numpy()


def _halves(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each half as the reference of the other."""
    return list(StratifiedKFold(2, shuffle=True, random_state=seed).split(labels, labels))


def _first(reference: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.default_rng(0).permutation(reference)[:count]
    return np.sort(chosen), query


def frozen(encoder: CellEncoder, *, hidden_layer: int | None = None) -> Embed:
    """An encoder as it is."""

    def embed(reference: ad.AnnData, query: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
        return _embed(encoder, reference, hidden_layer), _embed(encoder, query, hidden_layer)

    return embed


def fitted_pca(reference: ad.AnnData, query: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """50 components of 2,000 variable genes, fitted on the reference."""
    pca = scfm.load("pca")
    assert isinstance(pca, PCA)
    encoder = pca.fit(reference)
    return _embed(encoder, reference), _embed(encoder, query)


def _embed(encoder: CellEncoder, cells: ad.AnnData, hidden_layer: int | None = None) -> np.ndarray:
    return encoder.embed(cells, empty_cells="embed", hidden_layer=hidden_layer, progress=False)


def transfer(benchmark: Benchmark, embed: Embed, *, refit: bool) -> np.ndarray:
    """Labels given to the cells in each round (n_rounds, n_cells) object; None where a cell was no query.

    Parameters
    ----------
    refit
        The embedding depends on the reference; otherwise all cells are embedded once.
    """
    given = np.full((len(benchmark.rounds), len(benchmark.labels)), None, dtype=object)
    once = None if refit else embed(benchmark.cells, benchmark.cells[:1])[0]
    for row, divisions in enumerate(benchmark.rounds):
        for reference, query in divisions:
            if once is None:
                x, y = embed(benchmark.cells[reference].copy(), benchmark.cells[query].copy())
            else:
                x, y = once[reference], once[query]
            votes = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(x, benchmark.labels[reference])
            given[row, query] = votes.predict(y)
    return given


def evaluate(
    models: dict[str, tuple[Embed, bool]], data: Path, *, against: str = "pca", seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy and macro-F1 of every model on every benchmark, with intervals.

    Parameters
    ----------
    models
        Name -> (embedding, whether it is fitted on the reference).
    data
        Folder of the data sets.
    against
        Model that the others' paired difference in accuracy is taken to.

    Returns
    -------
    list
        One record a benchmark and model; intervals are (value, low, high).
    """
    records = []
    for benchmark in benchmarks(data):
        labels, truth = np.unique(benchmark.labels, return_inverse=True)
        given = {name: transfer(benchmark, embed, refit=refit) for name, (embed, refit) in models.items()}
        queried = given[against][0] != None  # noqa: E711 - elementwise
        truth = truth[queried]
        codes = {name: np.searchsorted(labels, rounds[:, queried].astype(str)) for name, rounds in given.items()}
        resamples = np.random.default_rng(seed).integers(0, len(truth), (RESAMPLES, len(truth)))
        for name, rounds in codes.items():
            right = (rounds == truth).mean(axis=0)  # (n_queries,) share of the rounds
            ahead = right - (codes[against] == truth).mean(axis=0)
            f1 = [macro_f1(truth[rows], rounds[:, rows]) for rows in resamples]
            record: dict[str, Any] = {
                "benchmark": benchmark.name,
                "cells": len(truth),
                "labels": len(np.unique(truth)),
                "model": name,
                "accuracy": _interval(right.mean(), right[resamples].mean(axis=1)),
                "macro_f1": _interval(macro_f1(truth, rounds), np.array(f1)),
            }
            if name != against:
                record[f"accuracy_beyond_{against}"] = _interval(ahead.mean(), ahead[resamples].mean(axis=1))
            records.append(record)
    return records


def macro_f1(truth: np.ndarray, rounds: np.ndarray) -> float:
    """F1 = 2 hits / (cells of the label + cells given the label), averaged over the labels that occur, then over rounds.

    Parameters
    ----------
    truth
        (n_cells,) int64 labels, from 0.
    rounds
        (n_rounds, n_cells) int64 labels given.
    """
    size = int(max(truth.max(), rounds.max())) + 1
    support = np.bincount(truth, minlength=size)
    scores = []
    for given in rounds:
        hits = np.bincount(truth[given == truth], minlength=size)
        f1 = 2 * hits / np.maximum(support + np.bincount(given, minlength=size), 1)
        scores.append(f1[support > 0].mean())
    return float(np.mean(scores))


def _interval(value: float, resampled: np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return round(float(value), 4), round(float(low), 4), round(float(high), 4)


def markdown(records: list[dict[str, Any]]) -> str:
    """The records as a table, one row a benchmark and model."""
    rows = ["| held-out data | model | accuracy | macro-F1 | accuracy beyond PCA |", "|---|---|---|---|---|"]
    for r in records:
        beyond = r.get("accuracy_beyond_pca")
        where = f"{r['benchmark']} ({r['cells']:,} cells, {r['labels']} labels)"
        rows.append(
            f"| {where} | {r['model']} | {_shown(r['accuracy'])} | {_shown(r['macro_f1'])} | {_shown(beyond, '+') if beyond else ''} |"
        )
    return "\n".join(rows) + "\n"


def _shown(interval: tuple[float, float, float], sign: str = "") -> str:
    value, low, high = (f"{x:{sign}.3f}" for x in interval)
    return f"{value} ({low} to {high})"
