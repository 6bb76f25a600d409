"""Integration: embeddings that keep what tells cells apart and lose what tells batches apart.

    loss = kept + weight * CE(batch | reversed(cell embedding))

`kept` is an objective that holds the biology: masked expression where the model can do it (as scGPT's integration does, Cui et al. 2024,
doi:10.1038/s41592-024-02201-0), else contrastive learning. The second term is domain-adversarial (Ganin et al. 2016, arXiv:1505.07818): a
classifier learns to name the batch from the embedding, and its gradient, reversed, makes the embedding tell less of it. Where the adapter
has parts for batches of its own (`CellEncoder.for_batches`: scGPT's domain-specific batch normalisation, batch labels for its decoders,
and discriminator) these are used; the embedding then needs the batch of each cell, also later, and knows these batches only.

A discriminator that cannot name the batch may be a weak one: judge integration by scores of its own (scIB), never by this loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import CellEncoder, Encoded, Network, Request
from scfm.errors import CapabilityError, InputError
from scfm.examples import Cells, Labelled, batch_of, embeddings, spread
from scfm.heads import PredictionHead
from scfm.objectives.base import Objective, Target
from scfm.objectives.contrastive import Contrastive, ContrastiveTarget
from scfm.objectives.labels import Classification
from scfm.objectives.masked import MaskedExpression, MaskedTarget, can_be_masked
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Integration", "IntegrationTarget"]

OWN = "batch_logits"
"""Output of a network's own discriminator, which reverses the gradient itself."""


@dataclass(frozen=True)
class Integration(Objective):
    """Make embeddings alike over batches.

    Parameters
    ----------
    batch
        Column of `obs`: batches, donors or technologies whose differences are to go.
    weight
        Of the adversarial term.
    keep
        What holds the biology: "masked" expression, "contrastive", or "auto": the first where the model can do it.
    share
        Of a cell's tokens that are hidden, with masked expression; 0.4 is scGPT's.
    own_parts
        Use the parts for batches that the adapter has; False leaves the network as it is, so that embedding needs no batch.
    """

    batch: str
    weight: float = 1.0
    keep: Literal["auto", "masked", "contrastive"] = "auto"
    share: float = 0.4
    own_parts: bool = True

    reads_matrix: ClassVar = True  # for views; whether they are needed is known when the model is

    @property
    def columns(self) -> tuple[str, ...]:
        """The batch."""
        return (self.batch,)

    def target(self, obs: pd.DataFrame) -> IntegrationTarget:
        """With the batches of these cells."""
        if self.keep not in ("auto", "masked", "contrastive"):
            raise InputError(f"keep={self.keep!r} is not known.", "Pass 'auto', 'masked' or 'contrastive'.")
        if self.weight < 0:
            raise InputError(f"weight={self.weight} must be 0 or more.")
        MaskedExpression(self.share).target(obs)  # refuses a share that is none
        batches = Classification(self.batch).target(obs).classes
        return IntegrationTarget(self.batch, batches, self.weight, self.keep, self.share, self.own_parts)


@dataclass(frozen=True)
class IntegrationTarget(Target):
    """The loss above; the best epoch is the one that keeps best, as the adversarial term has no best."""

    batch: str
    batches: tuple[str, ...]
    weight: float
    keep: str
    share: float
    own_parts: bool

    kind = "integration"
    metrics: ClassVar = {"kept": False, "loss": False, "batch_accuracy": False}
    needs_network = True
    predicts = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The batch."""
        return (self.batch,)

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Numbers of the batches, -1 for ones that are not trained on."""
        known = {name: i for i, name in enumerate(self.batches)}
        return np.array([known.get(value, -1) for value in obs[self.batch].astype(str)], dtype=np.int64)

    def ready(self, encoder: CellEncoder) -> CellEncoder:
        """With parts for these batches, where the adapter has them."""
        other = encoder.for_batches(self.batch, self.batches) if self.own_parts else None
        return encoder if other is None else other

    def keeper(self, encoder: CellEncoder) -> MaskedTarget | ContrastiveTarget:
        """What holds the biology."""
        masked = self.keep == "masked" or (self.keep == "auto" and can_be_masked(encoder))
        return (
            MaskedTarget(self.share) if masked else ContrastiveTarget(None, Contrastive.drop, Contrastive.temperature)
        )

    def request(self, network: Network) -> Request:
        """The embedding, what the keeper reads, and the network's own discriminator."""
        kept = MaskedTarget(self.share).request(network).outputs if self.keep != "contrastive" else frozenset()
        own = {OWN} if OWN in network.heads else set()
        return Request(frozenset({"cells"} | kept | own))

    def head(self, encoder: CellEncoder, dropout: float) -> IntegrationHead:
        """The keeper's head and a discriminator."""
        keeper = self.keeper(encoder)
        own = OWN in encoder.network.heads
        return IntegrationHead(
            keeper, keeper.head(encoder, dropout), None if own else Discriminator(encoder.dim, len(self.batches))
        )

    def start(self, head: nn.Module, encoder: CellEncoder, cells: Labelled) -> None:
        """Constants of both."""
        assert isinstance(head, IntegrationHead)
        try:
            head.keeper.start(head.kept, encoder, cells)
        except CapabilityError as error:
            raise CapabilityError(
                str(error).partition("\n")[0], "Pass Integration(..., keep='contrastive')."
            ) from error
        if head.discriminator is not None:
            head.discriminator.first.standardise(embeddings(encoder, spread(cells)))

    def examples(self, encoder: CellEncoder, cells: Labelled, inputs: Tokens | np.ndarray, *, seed: int) -> Cells:
        """The keeper's, labelled with batches."""
        found = self.keeper(encoder).examples(encoder, cells, inputs, seed=seed)
        found.labels = self.encode(cells.obs)
        return found

    def step(self, network: Network | None, head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Loss (), and per cell what the keeper gives, the batch's cross-entropy, whether it is named, and whether it is known."""
        assert network is not None
        assert isinstance(head, IntegrationHead)
        if isinstance(head.keeper, MaskedTarget):
            encoded = network(batch_of(inputs), self.request(network))
            kept = head.keeper.judge(encoded, head.kept, inputs)
            logits = [head.batch_logits(encoded)]
        else:
            views = [network(batch_of(inputs[view]), self.request(network)) for view in ("one", "two")]
            kept = head.keeper.judge([encoded.cells for encoded in views], head.kept, inputs)
            logits = [head.batch_logits(encoded) for encoded in views]
        labels = inputs["labels"]
        known = (labels >= 0).float()
        each = torch.stack([F.cross_entropy(x.float(), labels.clamp(min=0), reduction="none") for x in logits]).mean(0)
        named = (logits[0].argmax(dim=1) == labels).float()
        adversarial = (each * known).sum() / known.sum().clamp(min=1)
        told = torch.stack([each.detach() * known, named * known, known], dim=1)
        return {"loss": kept["loss"] + self.weight * adversarial, "outputs": torch.cat([kept["outputs"], told], dim=1)}

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """`kept`: the keeper's loss. `batch_accuracy`: share of cells whose batch the discriminator names, of those of known batches."""
        kept, (_, named, known) = outputs[:, :-3], outputs[:, -3:].astype(np.float64).sum(axis=0)
        loss = kept[:, 0].mean(dtype=np.float64) if kept.shape[1] == 2 and self.keep == "contrastive" else None
        found = {"kept": float(loss) if loss is not None else _kept(kept)}
        return found if known == 0 else {**found, "batch_accuracy": float(named / known)}


def _kept(sums: np.ndarray) -> float:
    """The loss of masked expression, from its sums a cell."""
    found = MaskedTarget(0.5).scores(sums, sums)
    return next(found[name] for name in ("mse", "cross_entropy", "negative_log_likelihood") if name in found)


class _Reverse(torch.autograd.Function):
    """The identity, with the gradient reversed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Discriminator(nn.Module):
    """Names the batch from the standardised embedding: (Linear, LeakyReLU, LayerNorm) x 2, Linear, as scGPT's."""

    def __init__(self, dim: int, batches: int) -> None:
        super().__init__()
        self.first = PredictionHead(dim, dim)
        self.rest = nn.Sequential(
            nn.LeakyReLU(),
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.LeakyReLU(),
            nn.LayerNorm(dim),
            nn.Linear(dim, batches),
        )

    def forward(self, cells: Tensor) -> Tensor:
        """(b, dim) -> (b, batches); what comes back to the cells is reversed."""
        return self.rest(self.first(_Reverse.apply(cells)))


class IntegrationHead(nn.Module):
    """What keeps the biology, and who looks for the batch."""

    def __init__(
        self, keeper: MaskedTarget | ContrastiveTarget, kept: nn.Module, discriminator: Discriminator | None
    ) -> None:
        super().__init__()
        self.keeper, self.kept, self.discriminator = keeper, kept, discriminator

    def batch_logits(self, encoded: Encoded) -> Tensor:
        """(b, batches)."""
        return encoded.heads[OWN] if self.discriminator is None else self.discriminator(encoded.cells)
