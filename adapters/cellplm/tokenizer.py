"""A cell as its expressed genes with log1p counts; the cells of a group are one set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfm.cells import Block
from scfm.errors import InputError
from scfm.tokenizers import ContinuousTokenizer, Tokens
from scfm.tokenizers.base import known_entries

if TYPE_CHECKING:
    import torch

    from scfm.tokenizers.base import _Stream

__all__ = ["CellSetTokenizer"]


@dataclass(frozen=True)
class CellSetTokenizer(ContinuousTokenizer):
    """Expressed genes with log1p of their counts, not scaled to a library size; cells in groups.

    Parameters
    ----------
    group_key
        Column of `obs` whose values are the groups; the authors' "batch" may be absent, then a data set is one group, as in the
        original. None: always one group.
    group_size
        Cut groups into runs of so many cells, the authors' `batch_size`; None: whole groups.
    clusters
        "likeliest": the mixture's arg-max cluster. "upstream": drawn as the original does in evaluation, from torch's stream after
        `torch.manual_seed(seed)`, groups in the order of their sorted names.
    draws
        Clusters and latent dimensions: numbers that the original draws for each cell.
    """

    target_sum: float | None = None
    group_key: str | None = "batch"
    group_size: int | None = None
    clusters: Literal["likeliest", "upstream"] = "likeliest"
    draws: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.clusters not in ("likeliest", "upstream"):
            raise InputError(f"clusters={self.clusters!r} is not known.", "Pass 'likeliest' or 'upstream'.")

    @property
    def grouped(self) -> bool:
        """Cells see each other."""
        return True

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        """Whether groups must come in order."""
        return self.clusters == "upstream"

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether clusters are drawn."""
        return self.clusters == "upstream"

    def settings(self) -> dict[str, Any]:
        """Plain values that, with the vocabulary, rebuild the tokenizer."""
        own = ("group_key", "group_size", "clusters")
        return {**super().settings(), **{name: getattr(self, name) for name in own}, "draws": list(self.draws)}

    def stream(self, seed: int = 0) -> _Stream:
        """A function block -> Tokens; with `clusters="upstream"` it continues the original's stream from group to group."""
        if self.clusters == "likeliest":
            return lambda block: self.tokenize(block, seed)
        import torch

        generator = torch.Generator().manual_seed(seed)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # the data loader's seed
        return lambda block: self._drawn(self.tokenize(block, seed), generator)

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block: fields "ids" and "values"; "total" is each cell's count over the known genes."""
        tokens = super().tokenize(block, seed)
        cell = np.repeat(np.arange(len(tokens)), tokens.lengths)
        total = np.bincount(cell, weights=known_entries(block)[1], minlength=len(tokens))
        return replace(tokens, cells={"total": total.astype(np.float32)})

    def _drawn(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """With the uniform numbers behind each cell's cluster (n_cells, clusters)."""
        import torch

        clusters, dim = self.draws
        uniform = torch.rand(len(tokens), clusters, generator=generator)
        torch.randn(len(tokens), dim, generator=generator)  # the noise of z, which evaluation leaves out
        return replace(tokens, cells={**tokens.cells, "uniform": uniform.numpy()})
