"""Nicheformer's tokens: species, technology, modality, then genes ranked by expression over the mean of their technology, then padding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError, listing
from scfm.reading import InputWarning
from scfm.tokenizers import RankTokenizer

CONTEXT = {
    "species": {"human": 5, "homo sapiens": 5, "mouse": 6, "mus musculus": 6},
    "assay": {
        "10x 5' v2": 10,
        "10x 3' v3": 11,
        "10x 3' v2": 12,
        "10x 5' v1": 13,
        "10x 3' v1": 14,
        "10x 3'": 15,
        "10x transcription profiling": 15,
        "10x 5'": 16,
        "cite-seq": 17,
        "smart-seq v4": 18,
        "merfish": 7,
        "cosmx": 8,
        "xenium": 9,
    },
    "modality": {"dissociated": 3, "spatial": 4},
}
"""What tells of a cell -> its accepted values, in lower case -> token id. The tokens stand in this order."""
MEANS = ("dissociated", "merfish", "cosmx", "xenium", "iss")
"""Technologies with a file of means."""
_MEANS_OF = {7: "merfish", 8: "cosmx", 9: "xenium"}  # other assays: "dissociated"


@dataclass(frozen=True)
class NicheformerTokenizer(RankTokenizer):
    """Context tokens, ranked genes, and padding up to the context, over which the authors' embedding is averaged too.

    Parameters
    ----------
    species, assay, modality
        Of all cells, e.g. "human", "10x 3' v3", "dissociated"; or "obs.<column>".
    means
        Technology whose means divide the values; "auto" goes by each cell's assay, "none" divides by nothing.
    rounding
        "half up": means as whole numbers, NaN and 0 as 1, as for the authors' training tokens; "none": as in the files, NaN and 0 as 1, as
        in their embedding notebook where the means have no NaN.
    ties
        Order of equal scores, of which rounded means make many: "ids", that of the token ids; "upstream", that of the authors' quicksort.
    """

    context: int = 1500
    species: str = "obs.specie"
    assay: str = "obs.assay"
    modality: str = "obs.modality"
    means: Literal["auto", "dissociated", "merfish", "cosmx", "xenium", "iss", "none"] = "auto"
    rounding: Literal["half up", "none"] = "half up"
    ties: Literal["ids", "upstream"] = "ids"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, accepted in (
            ("means", self.means, ("auto", "none", *MEANS)),
            ("rounding", self.rounding, ("half up", "none")),
            ("ties", self.ties, ("ids", "upstream")),
        ):
            if value not in accepted:
                raise InputError(f"{name}={value!r} is not known.", f"Pass one of {listing(accepted)}.")
        for name in CONTEXT:
            if self._column(name) is None:
                _token(name, getattr(self, name))

    def _column(self, name: str) -> str | None:
        value = getattr(self, name)
        return value.removeprefix("obs.") if value.startswith("obs.") else None

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Columns of `obs` that tell species, assay and modality."""
        return tuple(column for name in CONTEXT if (column := self._column(name)) is not None)

    @property
    def obs_values(self) -> Mapping[str, tuple[str, ...]]:
        """Column -> what it may hold."""
        return {column: tuple(CONTEXT[name]) for name in CONTEXT if (column := self._column(name)) is not None}

    @property
    def obs_fix(self) -> str:
        """What to type where a column is missing."""
        return (
            "say it of all cells with encoder.with_options(species='human', assay=\"10x 3' v3\", modality='dissociated'), "
            "or name other columns: species='obs.organism'"
        )

    @property
    def least(self) -> int:
        """Every cell is filled up to the context."""
        return self.context

    def before(self, block: Block) -> np.ndarray:
        """Tokens for species, technology and modality (n_cells, 3) int32."""
        return np.stack([self._tokens(name, block) for name in CONTEXT], axis=1)

    def _tokens(self, name: str, block: Block) -> np.ndarray:
        column = self._column(name)
        if column is None:
            return np.full(len(block), _token(name, getattr(self, name)), dtype=np.int32)
        values = block.obs[column].astype(str)
        tokens = {value: _token(name, value, column) for value in values.unique()}
        return values.map(tokens).to_numpy(dtype=np.int32)

    def scores(self, block: Block, ids: np.ndarray, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Values per 10,000 over the model's genes, in float32 as the authors compute them, over the technology's means."""
        lengths = np.diff(offsets)
        cell = np.repeat(np.arange(len(lengths)), lengths)
        totals = np.bincount(cell, weights=values, minlength=len(lengths)).astype(np.float32)
        factor = np.float32(1e4) / np.where(totals == 0, np.float32(1), totals)
        scores = (values.astype(np.float32) * factor[cell]).astype(np.float64)
        if self.means == "none":
            return scores
        assays = self._tokens("assay", block)
        for name in sorted({self._means_of(assay) for assay in np.unique(assays)}):
            mean = self._mean(name)[ids]
            mine = np.isin(assays, [assay for assay in np.unique(assays) if self._means_of(assay) == name])[cell]
            if (mean[mine] < 0).any():
                warnings.warn(
                    f"the authors' means of {name} are negative for {len(np.unique(ids[mine & (mean < 0)]))} expressed genes, which so "
                    "are ranked last. Choose other means: encoder.with_options(means=...).",
                    InputWarning,
                    stacklevel=2,
                )
            scores[mine] /= mean[mine]
        return scores

    def _means_of(self, assay: int) -> str:
        return _MEANS_OF.get(int(assay), "dissociated") if self.means == "auto" else self.means

    def _mean(self, name: str) -> np.ndarray:
        """Means by token id (n_tokens,), none of them NaN or 0."""
        if name not in self.vocabulary.columns:
            raise InputError(
                f"the checkpoint has no means of {name}; it has {listing(sorted(self.vocabulary.columns)) or 'none'}.",
                f"Put {name}_mean_script.npy into its folder, or choose others: encoder.with_options(means=...).",
            )
        mean = np.nan_to_num(self.vocabulary.columns[name])
        if self.rounding == "half up":
            mean = np.floor(mean + 0.5)
        return np.where(mean == 0, 1.0, mean)

    def order(
        self, scores: np.ndarray, ids: np.ndarray, offsets: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Highest scores first."""
        if self.ties == "ids":
            return super().order(scores, ids, offsets, most)
        rows = []
        for begin, end in pairwise(offsets):  # their sort goes from swap to swap
            entries = begin + np.argsort(ids[begin:end], kind="stable")
            rows.append(entries[_quicksort(-scores[entries])][:most])
        kept = np.minimum(np.diff(offsets), most)
        return np.concatenate([np.zeros(0, np.int64), *rows]), np.concatenate([[0], np.cumsum(kept)])


def _token(name: str, value: str, column: str | None = None) -> int:
    token = CONTEXT[name].get(value.strip().lower())
    if token is None:
        where = f"{name}={value!r}" if column is None else f"obs[{column!r}] holds {value!r}, which"
        raise InputError(f"{where} is no {name} Nicheformer was trained on.", f"It knows {listing(CONTEXT[name], 20)}.")
    return token


def _quicksort(values: np.ndarray) -> np.ndarray:
    """Positions that sort values in ascending order, equal ones as numba's quicksort leaves them.

    Median of three, Hoare's partition, insertion sort of runs up to 15 (numba/misc/quicksort.py); not stable.
    """
    x = values.tolist()
    order = list(range(len(x)))
    parts = [(0, len(x) - 1)]
    while parts:
        low, high = parts.pop()
        while high - low >= 15:
            middle = (low + high) >> 1
            for a, b in ((low, middle), (middle, high), (low, middle)):
                if x[order[b]] < x[order[a]]:
                    order[a], order[b] = order[b], order[a]
            pivot = x[order[middle]]
            order[high], order[middle] = order[middle], order[high]
            i, j = low, high - 1
            while True:
                while i < high and x[order[i]] < pivot:
                    i += 1
                while j >= low and pivot < x[order[j]]:
                    j -= 1
                if i >= j:
                    break
                order[i], order[j] = order[j], order[i]
                i, j = i + 1, j - 1
            order[i], order[high] = order[high], order[i]
            parts.append((i + 1, high))
            high = i - 1
        for i in range(low + 1, high + 1):
            entry, j = order[i], i
            while j > low and x[entry] < x[order[j - 1]]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = entry
    return np.array(order, dtype=np.int64)
