"""An index of cells on disk: embeddings of a large reference by one encoder, with what is known of its cells, searched in little memory.

folder/
  index.json            encoder, provenance, metric, shards, columns, measured recall
  shard_0.usearch       HNSW graph of up to 200,000 cells, memory-mapped when it is searched
  names.npy             names of the cells, UTF-8
  column_0.npy ...      columns of obs: numbers, or numbers of categories, with column_0_values.npy
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scfm.cells import Data, close_all, open_sources
from scfm.encoder import CellEncoder
from scfm.errors import InputError, listing
from scfm.fitted import FittedEncoder
from scfm.journal import noted_record
from scfm.neighbours import Metric, hnsw_index, hnsw_search, neighbours, prepared
from scfm.provenance import plain, versions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CellIndex", "encoder_identity"]

RECORD = "index.json"
SHARD = 200_000
"""Cells of a shard, which is what has to fit into memory while an index is built."""
_BLOCK = 50_000  # cells read at a time
_PROBES, _PROBE_K = 200, 15


def encoder_identity(encoder: CellEncoder, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What decides an encoder's vectors: model, weights (sha256 of all tensors), tokenizer settings, layer and pooling.

    Parameters
    ----------
    encoder
        Any encoder; one that is fitted on data must have been.
    options
        Of `CellEncoder.embed`; of these `hidden_layer` and `pooling` count.

    Raises
    ------
    InputError
        The encoder is not fitted: it would become another one on every data set.
    """
    import torch

    if isinstance(encoder, FittedEncoder) and not encoder.fitted:
        raise InputError(
            f"{encoder.name} is not fitted; each data set would make another encoder of it.",
            "Fit it once: encoder = encoder.fit(reference); encoder.save(folder).",
        )
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    chosen = {name: (options or {}).get(name) for name in ("hidden_layer", "pooling")}
    return plain(
        {"model": encoder.name, "weights": digest.hexdigest(), "tokenizer": encoder.tokenizer.settings(), **chosen}
    )


class CellIndex:
    """An index on disk; `build` makes one, `open` reads one.

    Parameters
    ----------
    path
        Its folder.
    record
        What `index.json` holds.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path, self.record = path, record

    def __len__(self) -> int:
        return int(self.record["cells"])

    def __repr__(self) -> str:
        return f"CellIndex({str(self.path)!r}, {len(self):,} cells by {self.record['encoder']['model']!r})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of obs that are kept."""
        return tuple(column["name"] for column in self.record["columns"])

    @classmethod
    def build(
        cls,
        path: str | PathLike[str],
        encoder: CellEncoder,
        reference: Data,
        *,
        columns: Sequence[str] | None = None,
        metric: Metric = "cosine",
        shard: int = SHARD,
        threads: int = 1,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Self:
        """Embed a reference and index it. An interrupted embedding continues when the same call is made again.

        Parameters
        ----------
        path
            Folder to make.
        encoder
            Any encoder.
        reference
            AnnData, path, or a list of them; files are streamed.
        columns
            Of obs, to be kept; None is all that every data set has.
        metric
            "cosine" or "euclidean".
        shard
            Cells of a shard.
        threads
            Of building a graph; with more than one the graph differs from run to run.
        options
            Of `CellEncoder.embed`.
        seed
            Of the encoder and of the cells that recall is measured on.

        Raises
        ------
        InputError
            There is something at `path`, a column is missing, or the encoder is not fitted.
        MissingExtraError
            usearch is not installed.
        """
        target = Path(path)
        if target.exists():
            raise InputError(f"{target} exists.", "Remove it, or name another folder.")
        hnsw_index(1, purpose="an index of cells")  # before any work
        identity = encoder_identity(encoder, options)
        if metric not in ("cosine", "euclidean"):
            raise InputError(f"metric={metric!r} is not known.", "Pass 'cosine' or 'euclidean'.")
        obs = _obs(reference, columns)
        part = target.with_name(target.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        embedding = encoder.embed(reference, out=part / "embedding.npy", seed=seed, **(options or {}))
        shards: list[str] = []
        missing = 0
        for start in range(0, len(embedding), shard):
            file = f"shard_{len(shards)}.usearch"
            graph = hnsw_index(embedding.shape[1], purpose="an index of cells")
            for at in range(start, min(start + shard, len(embedding)), _BLOCK):
                rows = np.arange(at, min(at + _BLOCK, start + shard, len(embedding)))
                vectors = np.asarray(embedding[rows])
                known = np.isfinite(vectors).all(axis=1)
                missing += int((~known).sum())
                if known.any():
                    graph.add(rows[known], prepared(vectors[known], metric, "reference"), threads=threads)
            graph.save(str(part / file))
            shards.append(file)
        record = {
            "format": 1,
            "cells": len(embedding),
            "without_embedding": missing,
            "dim": int(embedding.shape[1]),
            "metric": metric,
            "encoder": identity,
            "origin": encoder.origin,
            "shards": shards,
            "columns": _write_obs(part, obs),
            "provenance": noted_record(part / "embedding.npy"),
            "versions": versions(),
        }
        record["recall"] = _recall(cls(part, record), embedding, seed)
        (part / RECORD).write_text(json.dumps(plain(record), indent=1), encoding="utf-8")
        del embedding
        (part / "embedding.npy").unlink()
        (part / "embedding.npy.journal").unlink()
        shutil.move(part, target)
        return cls.open(target)

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Self:
        """Read an index that `build` made; nothing is loaded before it is searched.

        Raises
        ------
        InputError
            There is none at `path`.
        """
        folder = Path(path)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if record["format"] != 1:
                raise InputError(f"{folder} has format {record['format']}; this version reads 1.", "Update scfm.")
        except (OSError, ValueError, LookupError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{folder} is no index of cells: no readable {RECORD}.",
                "Build one: CellIndex.build(path, encoder, data).",
            ) from error
        return cls(folder, record)

    @cached_property
    def _graphs(self) -> list[Any]:
        dim = int(self.record["dim"])
        purpose = "searching an index of cells"
        return [hnsw_index(dim, purpose=purpose, view=str(self.path / file)) for file in self.record["shards"]]

    def check(self, encoder: CellEncoder, options: Mapping[str, Any] | None = None) -> None:
        """Refuse an encoder whose vectors are not those of the index.

        Raises
        ------
        InputError
            Model, weights, tokenizer settings, layer or pooling differ.
        """
        own, other = self.record["encoder"], encoder_identity(encoder, options)
        own_settings, other_settings = json.dumps(own, sort_keys=True), json.dumps(other, sort_keys=True)
        if own_settings == other_settings:
            return
        differ = [name for name in {**own, **other} if own.get(name) != other.get(name)]
        raise InputError(
            f"the index was made by {own['model']!r}, the vectors are of {other['model']!r}; "
            f"they differ in {listing(differ)}.",
            f"Load the encoder of the index (its origin is {self.record['origin']}), or build an index with this one.",
        )

    def search(self, vectors: np.ndarray, k: int = 15) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest cells of each vector; `check` the encoder that made them first.

        Parameters
        ----------
        vectors
            (n, dim) embeddings by the encoder of the index.
        k
            Cells for each.

        Returns
        -------
        distances
            (n, k) float64, rising; cosine distances or Euclidean ones.
        rows
            (n, k) int64 rows of the reference; of equal distances the lower comes first.

        Raises
        ------
        InputError
            Vectors are of another length or not finite, or k is more than the index holds.
        """
        metric: Metric = self.record["metric"]
        x = prepared(vectors, metric, "query")
        available = len(self) - int(self.record["without_embedding"])
        if x.shape[1] != self.record["dim"]:
            raise InputError(f"vectors have {x.shape[1]} dimensions, those of the index {self.record['dim']}.")
        if not 1 <= k <= available:
            raise InputError(f"k={k} of {available} indexed cells.", f"Pass a k from 1 to {available}.")
        squared = np.empty((len(x), 0), dtype=np.float32)
        rows = np.empty((len(x), 0), dtype=np.int64)
        for graph in self._graphs:
            found, apart, _ = hnsw_search(graph, x, min(k, len(graph)))
            squared, rows = np.concatenate([squared, apart], axis=1), np.concatenate([rows, found], axis=1)
            order = np.lexsort((rows, squared))[:, :k]
            squared, rows = np.take_along_axis(squared, order, axis=1), np.take_along_axis(rows, order, axis=1)
        if rows.shape[1] < k or not np.isfinite(squared).all():
            raise InputError(f"the graph of the index leads to fewer than {k} cells.", "Pass a smaller k.")
        distances = squared.astype(np.float64)
        return (distances / 2 if metric == "cosine" else np.sqrt(distances)), rows

    def obs(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Names (the index) and columns of some cells of the reference.

        Parameters
        ----------
        rows
            (n,) int64, repeats among them.
        columns
            Which; None is all that are kept.
        """
        import pandas as pd

        chosen = self.columns if columns is None else tuple(columns)
        if unknown := [name for name in chosen if name not in self.columns]:
            raise InputError(
                f"the index has no column {listing(unknown)}.", f"It has {listing(self.columns) or 'none'}."
            )
        names = np.load(self.path / "names.npy", mmap_mode="r")
        frame = {}
        for i, column in enumerate(self.record["columns"]):
            if column["name"] in chosen:
                frame[column["name"]] = self._column(i, column["kind"])[rows]
        index = [name.decode() for name in names[rows].tolist()]
        return pd.DataFrame({name: frame[name] for name in chosen}, index=pd.Index(index, dtype=object))

    def shares(self, column: str) -> dict[str, float]:
        """Share of each category of a column among all cells of the reference; {} for a column of numbers."""
        i = self.columns.index(column)
        if self.record["columns"][i]["kind"] != "categories":
            return {}
        codes, values = self._codes(i)
        counts = np.bincount(codes[codes >= 0], minlength=len(values))
        return dict(zip(values.tolist(), (counts / len(codes)).tolist(), strict=True))

    def _codes(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        values = np.load(self.path / f"column_{i}_values.npy")
        return np.load(self.path / f"column_{i}.npy", mmap_mode="r"), np.char.decode(values, "utf-8")

    def _column(self, i: int, kind: str) -> Any:
        if kind == "numbers":
            return np.load(self.path / f"column_{i}.npy", mmap_mode="r")
        codes, values = self._codes(i)
        return _Categories(codes, values)


class _Categories:
    """Categories by row, read when asked for."""

    def __init__(self, codes: np.ndarray, values: np.ndarray) -> None:
        self.codes = codes
        self.values = np.array([*values.tolist(), None], dtype=object)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.values[self.codes[rows]]  # -1, missing, is the last


def _obs(reference: Data, columns: Sequence[str] | None) -> pd.DataFrame:
    import pandas as pd

    sources = open_sources(reference)
    try:
        frames = [source.obs for source in sources]
        for source in sources:
            source.require_obs(columns or (), "Name columns that all data sets have.")
        shared = [name for name in frames[0].columns if all(name in frame for frame in frames)]
        return pd.concat([frame[list(columns) if columns is not None else shared] for frame in frames])
    finally:
        close_all(sources)


def _write_obs(folder: Path, obs: pd.DataFrame) -> list[dict[str, str]]:
    np.save(folder / "names.npy", np.char.encode(obs.index.astype(str).to_numpy(str), "utf-8"))
    kinds = []
    for i, name in enumerate(obs.columns):
        column = obs[name]
        if column.dtype.kind in "fiu":
            np.save(folder / f"column_{i}.npy", column.to_numpy())
            kinds.append({"name": str(name), "kind": "numbers"})
            continue
        codes, values = column.astype(object).where(column.notna(), None).factorize(sort=False)
        texts = np.array([str(value) for value in values] or [""], dtype=str)
        np.save(folder / f"column_{i}.npy", codes.astype(np.int32))
        np.save(folder / f"column_{i}_values.npy", np.char.encode(texts, "utf-8"))
        kinds.append({"name": str(name), "kind": "categories"})
    return kinds


def _recall(index: CellIndex, embedding: np.ndarray, seed: int) -> dict[str, float | int]:
    """Share of the exact neighbours of some cells that the index finds."""
    metric: Metric = index.record["metric"]
    rows = np.random.default_rng(seed).permutation(len(embedding))[: 4 * _PROBES]
    probes = np.asarray(embedding[np.sort(rows)])
    probes = probes[np.isfinite(probes).all(axis=1)][:_PROBES]
    available = len(index) - int(index.record["without_embedding"])
    k = min(_PROBE_K, available)
    if not len(probes) or k < 1:
        return {"k": k, "cells": 0, "recall": float("nan")}
    best, where = np.empty((len(probes), 0)), np.empty((len(probes), 0), dtype=np.int64)
    for start in range(0, len(embedding), _BLOCK):
        block = np.asarray(embedding[start : start + _BLOCK])
        known = np.flatnonzero(np.isfinite(block).all(axis=1))
        if not len(known):
            continue
        apart, near = neighbours(block[known], probes, min(k, len(known)), metric=metric, method="exact")
        best = np.concatenate([best, apart], axis=1)
        where = np.concatenate([where, start + known[near]], axis=1)
        order = np.lexsort((where, best))[:, :k]
        best, where = np.take_along_axis(best, order, axis=1), np.take_along_axis(where, order, axis=1)
    found = index.search(probes, k)[1]
    shared = [len(np.intersect1d(one, other)) / k for one, other in zip(found, where, strict=True)]
    return {"k": k, "cells": len(probes), "recall": float(np.mean(shared))}
