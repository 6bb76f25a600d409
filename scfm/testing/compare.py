"""What the checks are made of: embedding, comparing, and variants of the data."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from scipy import sparse
from torch import nn

from scfm.encoder import CellEncoder, Request
from scfm.errors import listing
from scfm.testing.kit import TOLERANCE, ConformanceError
from scfm.tokenizers.base import Batch

if TYPE_CHECKING:
    from anndata import AnnData


def fail(message: str) -> NoReturn:
    raise ConformanceError(message)


def embedded(encoder: CellEncoder, data: Any, **options: Any) -> np.ndarray:
    return np.asarray(encoder.embed(data, **{"progress": False, **options}))


def same(found: np.ndarray, expected: np.ndarray, what: str, *, exact: bool = False) -> None:
    """Fail unless two embeddings are equal, within `TOLERANCE` or bit for bit; NaN equals NaN."""
    if found.shape != expected.shape:
        fail(f"{what}: shape {found.shape} instead of {expected.shape}")
    if (np.isnan(found) != np.isnan(expected)).any():
        fail(f"{what}: NaN in cells {rows_of(np.isnan(found) != np.isnan(expected))}")
    difference = np.abs(np.nan_to_num(found).astype(np.float64) - np.nan_to_num(expected))
    limit = 0.0 if exact else TOLERANCE * scale(expected)
    if difference.max(initial=0.0) > limit:
        fail(f"{what}: differs by {difference.max():.3g} (allowed {limit:.3g}) in cells {rows_of(difference > limit)}")


def scale(embedding: np.ndarray) -> float:
    return float(np.abs(np.nan_to_num(embedding)).max(initial=0.0)) or 1.0


def rows_of(wrong: np.ndarray) -> str:
    return listing(np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1)).tolist())


def refused(error: type[Exception], what: str, function: Callable[[], object]) -> None:
    """Fail unless a call raises this error."""
    try:
        function()
    except error:
        return
    except Exception as other:
        fail(f"{what}: raised {type(other).__name__} instead of {error.__name__}: {other}")
    fail(f"{what}: accepted; {error.__name__} is due")


def with_x(data: AnnData, x: Any) -> AnnData:
    from anndata import AnnData

    return AnnData(x, obs=data.obs.copy(), var=data.var.copy())


def csr(data: AnnData) -> sparse.csr_matrix:
    return sparse.csr_matrix(data.X)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scfm-check-") as folder:
        yield Path(folder)


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cell_tokens(encoder: CellEncoder, data: Any, **options: Any) -> list[dict[str, np.ndarray]]:
    """Every cell's own fields."""
    return [
        {**cell, **{f"cells[{name!r}]": array[row] for name, array in tokens.cells.items()}}
        for tokens in encoder.tokenize(data, **options)
        for row, cell in enumerate(tokens)
    ]


def same_tokens(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: str) -> None:
    for name, values in expected.items():
        if not np.array_equal(found[name], values, equal_nan=np.asarray(values).dtype.kind == "f"):
            fail(f"{what}: other {name!r} ({listing(np.ravel(found[name])[:5].tolist())}, ...)")


def one_batch(encoder: CellEncoder, data: AnnData) -> Batch:
    """One batch of all cells, as one group where cells see each other, on the encoder's device."""
    if encoder.tokenizer.grouped:
        encoder = encoder.with_options(group_key=None, group_size=None)
    (tokens,) = encoder.tokenize(data)
    return tokens.collate(np.arange(len(tokens))).to(encoder.device)


def cells_of(network: nn.Module, batch: Batch, request: Request = Request()) -> np.ndarray:
    with torch.inference_mode():
        cells = network(batch, request).cells
    assert cells is not None
    return cells.float().cpu().numpy()


def replica(encoder: CellEncoder) -> CellEncoder:
    """The same encoder with its own copy of the network."""
    other = copy(encoder)
    other.network = deepcopy(encoder.network)
    return other


def untidy(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same matrix with every row's entries in reverse and an explicit zero in the first."""
    entries = [(x.data[a:b][::-1], x.indices[a:b][::-1]) for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)]
    free = int(np.setdiff1d(np.arange(x.shape[1]), entries[0][1])[0])
    entries[0] = (np.append(entries[0][0], 0).astype(x.dtype), np.append(entries[0][1], free))
    indptr = np.concatenate([[0], np.cumsum([len(values) for values, _ in entries])])
    return sparse.csr_matrix(
        (np.concatenate([v for v, _ in entries]), np.concatenate([i for _, i in entries]), indptr), shape=x.shape
    )


def with_empty(data: AnnData) -> tuple[AnnData, np.ndarray]:
    """The data with one cell emptied, and which cells are not."""
    x = csr(data).tolil()
    x[1] = 0
    return with_x(data, x.tocsr()), np.arange(data.n_obs) != 1
