"""Contrastive learning: two random views of a cell shall be nearer to each other than to other cells.

A view is the cell with some of its counts or features missing, put through the model's own tokenizer: counts are thinned (each count is
kept with probability `thin`, as if the cell had been sequenced less deeply) and features dropped (as dropout does). The loss is that of
SimCLR (Chen et al. 2020, arXiv:2002.05709): with z the normalised outputs of a small projection of the embedding, for a cell's view i and
its other view j among the 2b views of a batch

    loss_i = -log( exp(z_i z_j / t) / sum over k != i of exp(z_i z_k / t) )

With `labels`, all views of cells of the same class count as j, and their losses are averaged (SupCon, L_out of Khosla et al. 2020,
arXiv:2004.11362). The projection is kept with the result, but embeddings are those before it, as in SimCLR. With several processes, a
view is compared with those of its own process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.cells import Block
from scfm.encoder import CellEncoder, Network
from scfm.errors import InputError
from scfm.examples import Cells, Labelled, batch_of, draws, embeddings, spread, tensors_of
from scfm.heads import PredictionHead
from scfm.objectives.base import Objective, Target
from scfm.objectives.labels import Classification
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Contrastive", "ContrastiveTarget", "view_of"]

THIN = 0.7
"""Chance of a count to be kept, by default."""
SAME = "without thinning and dropping, both views are the cell itself."
WIDTH = 128
"""Numbers that the projection gives, SimCLR's."""


@dataclass(frozen=True)
class Contrastive(Objective):
    """Pull two random views of a cell together and push other cells away.

    Parameters
    ----------
    thin
        Chance of a count to be kept, in (0, 1]; None: 0.7 where the data hold counts, while other values are not thinned.
    drop
        Chance of an expressed feature to be missing, in [0, 1).
    temperature
        t of the loss; lower ones look at the nearest cells only.
    labels
        Column of `obs` with classes whose cells are pulled together (supervised); None: only the views of a cell are.
    """

    thin: float | None = None
    drop: float = 0.2
    temperature: float = 0.1
    labels: str | None = None

    reads_matrix: ClassVar = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The labels."""
        return () if self.labels is None else (self.labels,)

    def target(self, obs: pd.DataFrame) -> ContrastiveTarget:
        """With the classes of these cells."""
        if not 0 < (1 if self.thin is None else self.thin) <= 1 or not 0 <= self.drop < 1:
            raise InputError(f"thin={self.thin} must be in (0, 1], drop={self.drop} in [0, 1).")
        if self.thin == 1 and self.drop == 0:
            raise InputError(SAME, "Pass thin= below 1, or drop=.")
        if self.temperature <= 0:
            raise InputError(f"temperature={self.temperature} must be positive.")
        classes = () if self.labels is None else Classification(self.labels).target(obs).classes
        return ContrastiveTarget(self.thin, self.drop, self.temperature, self.labels, classes)


@dataclass(frozen=True)
class ContrastiveTarget(Target):
    """The loss above; held-out cells are judged by it, and by whether a view's nearest one is that of the same cell."""

    thin: float | None
    drop: float
    temperature: float
    labels: str | None = None
    classes: tuple[str, ...] = ()

    kind = "contrastive"
    metrics: ClassVar = {"loss": False, "retrieval": True}
    needs_network = True
    predicts = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The labels."""
        return () if self.labels is None else (self.labels,)

    @property
    def strata(self) -> bool:
        """Where there are classes."""
        return self.labels is not None

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Numbers of the classes, -1 for unknown ones; without labels, zeros."""
        if self.labels is None:
            return super().encode(obs)
        known = {name: i for i, name in enumerate(self.classes)}
        return np.array([known.get(value, -1) for value in obs[self.labels].astype(str)], dtype=np.int64)

    def head(self, encoder: CellEncoder, dropout: float) -> Projection:
        """The projection."""
        return Projection(encoder.dim, dropout)

    def start(self, head: nn.Module, encoder: CellEncoder, cells: Labelled) -> None:
        """Its mean and scale."""
        assert isinstance(head, Projection)
        head.first.standardise(embeddings(encoder, spread(cells)))

    def examples(self, encoder: CellEncoder, cells: Labelled, inputs: Tokens | np.ndarray, *, seed: int) -> Views:
        """Two views of each cell, others at each epoch."""
        return Views(encoder, cells, self.encode(cells.obs), thin=self.thin, drop=self.drop, seed=seed)

    def step(self, network: Network | None, head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Loss (), and each cell's loss and share of views that find the other one (b, 2)."""
        assert network is not None
        return self.judge([network(batch_of(inputs[view])).cells for view in ("one", "two")], head, inputs)

    def judge(self, views: list[Tensor], head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The same for embeddings of both views (b, dim)."""
        z = torch.cat([head(cells) for cells in views])  # (2b, WIDTH)
        return contrast(z, None if self.labels is None else inputs["labels"], self.temperature)

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`retrieval`: share of views whose nearest one in the batch is of the same cell."""
        return {"retrieval": float(outputs[:, 1].mean(dtype=np.float64))}


class Projection(nn.Module):
    """Linear, ReLU, Linear of the standardised embedding (b, dim) -> (b, WIDTH), of length 1."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = PredictionHead(dim, dim, dropout=dropout)
        self.last = nn.Linear(dim, WIDTH)

    def forward(self, cells: Tensor) -> Tensor:
        """(b, dim) -> (b, WIDTH)."""
        return F.normalize(self.last(F.relu(self.first(cells))).float(), dim=-1)


def contrast(z: Tensor, labels: Tensor | None, temperature: float) -> dict[str, Tensor]:
    """Loss (), and each cell's loss and retrieval (b, 2).

    Parameters
    ----------
    z
        (2b, width) first views of all cells, then the second ones, of length 1.
    labels
        (b,) classes; None: every cell is its own.
    """
    cells = len(z) // 2
    same = torch.arange(cells, device=z.device) if labels is None else labels
    number = torch.arange(cells, device=z.device).repeat(2)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = (z @ z.T / temperature).masked_fill(own, float("-inf"))  # (2b, 2b)
    positive = (same.repeat(2)[:, None] == same.repeat(2)[None, :]) & ~own
    chance = similar - similar.logsumexp(dim=1, keepdim=True)
    each = -chance.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1)  # (2b,)
    found = (number[similar.argmax(dim=1)] == number).float()
    by_cell = torch.stack([each.detach(), found], dim=1).unflatten(0, (2, cells)).mean(dim=0)  # (b, 2)
    return {"loss": each.mean(), "outputs": by_cell}


class Views(Cells):
    """Two views of cells as batches "one" and "two"."""

    def __init__(
        self, encoder: CellEncoder, cells: Labelled, labels: np.ndarray, *, thin: float | None, drop: float, seed: int
    ) -> None:
        super().__init__(cells.tokens, labels, cells.groups)
        assert cells.matrices is not None
        self.tokenizer, self.matrices = encoder.tokenizer, cells.matrices
        counts = all(bool((np.mod(block.matrix.data, 1) == 0).all()) for block in cells.matrices.parts)
        if thin is not None and thin < 1 and not counts:
            raise InputError(
                f"thin={thin} thins counts, and these data are no whole numbers.",
                "Pass layer= with counts, or thin=None: only features are dropped.",
            )
        self.thin = thin if thin is not None else (THIN if counts else 1.0)
        self.drop, self.seed = drop, seed
        if self.thin == 1 and drop == 0:
            raise InputError(SAME, "These data are no counts, which are not thinned: pass drop=.")

    def inputs_of(self, rows: np.ndarray, draw: int) -> dict[str, Any]:
        """Both batches."""
        rng = draws(self.seed, draw, rows)
        return {view: tensors_of(self._view(rows, rng)) for view in ("one", "two")}

    def _view(self, rows: np.ndarray, rng: np.random.Generator) -> Any:
        parts, places = [], []
        for at, block in self.matrices.blocks(rows):
            seed = int(rng.integers(2**31))
            parts.append(self.tokenizer.stream(seed)(view_of(block, self.thin, self.drop, rng)))
            places.append(at)
        tokens = Tokens.joined(parts)
        return tokens.collate(np.argsort(np.concatenate(places), kind="stable"))


def view_of(block: Block, thin: float, drop: float, rng: np.random.Generator) -> Block:
    """Cells with counts thinned and features dropped; one that would be left without a known feature stays as it is."""
    matrix = block.matrix.copy()
    kept = rng.random(matrix.nnz) >= drop
    values = matrix.data
    if thin < 1:
        values = rng.binomial(values.astype(np.int64), thin).astype(matrix.dtype)
    values = np.where(kept, values, 0)
    known = block.alignment.tokens[matrix.indices] >= 0
    cell = np.repeat(np.arange(len(block)), np.diff(matrix.indptr))
    left = np.bincount(cell[known & (values != 0)], minlength=len(block)) > 0
    matrix.data = np.where(left[cell], values, matrix.data)
    matrix.eliminate_zeros()
    return replace(block, matrix=matrix)
