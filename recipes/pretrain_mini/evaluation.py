"""Label transfer on data sets that no training cell comes from: mini, its untrained weights, and PCA.

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
from scfm.encoder import CellEncoder

__all__ = ["Benchmark", "benchmarks", "evaluate", "markdown", "transfer"]

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


def frozen(encoder: CellEncoder) -> Embed:
    """An encoder as it is."""

    def embed(reference: ad.AnnData, query: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
        return _embed(encoder, reference), _embed(encoder, query)

    return embed


def fitted_pca(reference: ad.AnnData, query: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """50 components of 2,000 variable genes, fitted on the reference."""
    encoder = scfm.load("pca").fit(reference)
    return _embed(encoder, reference), _embed(encoder, query)


def _embed(encoder: CellEncoder, cells: ad.AnnData) -> np.ndarray:
    return encoder.embed(cells, empty_cells="embed", progress=False)


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
        given = {name: transfer(benchmark, embed, refit=refit) for name, (embed, refit) in models.items()}
        queried = np.array([label is not None for label in given[against][0]])
        truth = benchmark.labels[queried]
        given = {name: rounds[:, queried] for name, rounds in given.items()}
        resamples = np.random.default_rng(seed).integers(0, len(truth), (RESAMPLES, len(truth)))
        for name, rounds in given.items():
            right = (rounds == truth).mean(axis=0)  # (n_queries,) share of the rounds
            ahead = right - (given[against] == truth).mean(axis=0)
            f1 = [_macro_f1(truth[rows], rounds[:, rows]) for rows in resamples]
            record: dict[str, Any] = {
                "benchmark": benchmark.name,
                "cells": len(truth),
                "labels": len(np.unique(truth)),
                "model": name,
                "accuracy": _interval(right.mean(), right[resamples].mean(axis=1)),
                "macro_f1": _interval(_macro_f1(truth, rounds), np.array(f1)),
            }
            if name != against:
                record[f"accuracy_beyond_{against}"] = _interval(ahead.mean(), ahead[resamples].mean(axis=1))
            records.append(record)
    return records


def _macro_f1(truth: np.ndarray, rounds: np.ndarray) -> float:
    """Mean over rounds of the F1 averaged over the labels that occur."""
    labels, codes = np.unique(truth, return_inverse=True)
    scores = []
    for given in rounds:
        hit = given == truth
        support = np.bincount(codes, minlength=len(labels))
        position = np.minimum(np.searchsorted(labels, given.astype(str)), len(labels) - 1)
        known = labels[position] == given
        predicted = np.bincount(position[known], minlength=len(labels))
        scores.append(np.mean(2 * np.bincount(codes[hit], minlength=len(labels)) / (support + predicted)))
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
