"""Masked expression: hide the content of some tokens of a cell and let the network say what it was.

Training goes on as the models were pre-trained (Devlin et al. 2019, arXiv:1810.04805; for cells: scBERT, Geneformer, scGPT), on cells of
another tissue, disease or technology: the network adapts to this domain without labels. What hidden content is, the tokenizer says
(`Hiding`): a bin or value, a gene's id among ranked ones, a patch, or a gene that is taken out. It is predicted by the network's own head
(`Recovery`), trained along; where it has none, by a new one on the tokens' states, which is kept with the result but answers nothing.
Models that predict a cell gene by gene hide nothing: their own likelihood is what is trained. Always hidden content is replaced; BERT
leaves or exchanges it in a fifth of the cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scfm.encoder import CellEncoder, Encoded, Network, Recovery, Request
from scfm.errors import CapabilityError, InputError
from scfm.examples import Cells, Labelled, batch_of, draws, spread, tensors_of
from scfm.inference import evaluating
from scfm.objectives.base import Objective, Target
from scfm.tokenizers.base import Hiding, Tokens, ragged_positions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MaskedCells", "MaskedExpression", "MaskedTarget"]

WIDTH = 64
"""Of what a new head makes of a state before it tells genes apart: a matrix of states x genes would be larger than some networks."""


@dataclass(frozen=True)
class MaskedExpression(Objective):
    """Predict what hidden tokens of a cell say; no labels are needed.

    Parameters
    ----------
    share
        Of a cell's tokens to hide, at least one. 0.15 is BERT's and Geneformer's; scGPT hides 0.4 when it is fine-tuned.
    """

    share: float = 0.15

    def target(self, obs: pd.DataFrame) -> MaskedTarget:
        """The same for all data."""
        if not 0 < self.share < 1:
            raise InputError(f"share={self.share} is no share of a cell's tokens.", "Pass a number between 0 and 1.")
        return MaskedTarget(self.share)


@dataclass(frozen=True)
class MaskedTarget(Target):
    """Hidden contents as numbers (mean squared error, of standardised ones where the head is new) or classes (cross-entropy)."""

    share: float

    kind = "masked expression"
    metrics: ClassVar = {"loss": False, "pearson": True, "mse": False, "accuracy": True}
    needs_network = True
    predicts = False

    def request(self, network: Network) -> Request:
        """The network's own head, or the states of the tokens."""
        own = recovery_of(network)
        if own is None:
            return Request(frozenset({"tokens"}))
        return Request(frozenset({own.head, own.from_cell} & network.heads))

    def head(self, encoder: CellEncoder, dropout: float) -> RecoveryHead:
        """New layers, where the network has no head of its own."""
        hiding = _hiding(encoder)
        own = recovery_of(encoder.network)
        return RecoveryHead(hiding, own, encoder.network.token_width, dropout=dropout)

    def start(self, head: nn.Module, encoder: CellEncoder, cells: Labelled) -> None:
        """Scale of the numbers that a new head predicts; networks whose tokens do not see each other are refused."""
        assert isinstance(head, RecoveryHead)
        if head.own is not None:
            return
        _check_context(encoder, cells, head.hiding)
        if head.hiding.classes == 0:
            tokens = spread(cells).tokens
            values = tokens.fields[head.hiding.field][can_hide(encoder, tokens, head.hiding)].astype(np.float64)
            head.mean.fill_(float(values.mean()))
            head.scale.fill_(max(float(values.std()), 1e-6))

    def examples(self, encoder: CellEncoder, cells: Labelled, inputs: Tokens | np.ndarray, *, seed: int) -> MaskedCells:
        """Cells with hidden tokens, others at each epoch."""
        assert isinstance(inputs, Tokens)
        return MaskedCells(encoder, cells, share=self.share, seed=seed, labels=self.encode(cells.obs))

    def step(self, network: Network | None, head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Loss () and sums over each cell's hidden tokens (b, k), see `scores`."""
        assert network is not None
        return self.judge(network(batch_of(inputs), self.request(network)), head, inputs)

    def judge(self, encoded: Encoded, head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The same for what the network has given."""
        assert isinstance(head, RecoveryHead)
        if head.own is not None and head.own.layout == "cell":
            each = encoded.heads[head.own.head].float()  # (b,)
            sums = torch.stack([torch.ones_like(each), each], dim=1)
            return {"loss": each.mean(), "outputs": sums}
        found = head(encoded, inputs["at"])  # (b, m, ...)
        if head.hiding.classes:
            return class_sums(found, inputs["truth"], inputs["told"])
        result = number_sums(found, inputs["truth"], inputs["told"], head.scale)
        if head.own is not None and head.own.from_cell in encoded.heads:
            also = encoded.heads[head.own.from_cell].float().gather(1, inputs["at"])
            result["loss"] = result["loss"] + number_sums(also, inputs["truth"], inputs["told"], head.scale)["loss"]
        return result

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Over all hidden tokens of the held-out cells.

        Numbers: `mse`, in the unit of the tokens, and `pearson` correlation. Classes: `accuracy` (share named exactly) and `cross_entropy`.
        Models that hide nothing: `negative_log_likelihood`, mean over the cells.
        """
        total = outputs.astype(np.float64).sum(axis=0)
        if outputs.shape[1] == 2:
            return {"negative_log_likelihood": float(total[1] / total[0])}
        if outputs.shape[1] == 3:
            count = max(total[0], 1.0)
            return {"cross_entropy": float(total[1] / count), "accuracy": float(total[2] / count)}
        count, y, p, yy, pp, yp = total
        count = max(count, 1.0)
        covariance = yp / count - y / count * p / count
        spread_of = np.sqrt(max(yy / count - (y / count) ** 2, 0.0) * max(pp / count - (p / count) ** 2, 0.0))
        return {
            "mse": float((yy - 2 * yp + pp) / count),
            "pearson": float(covariance / spread_of) if spread_of > 0 else 0.0,
        }


def recovery_of(network: Network) -> Recovery | None:
    """The network's own head for hidden content, where this checkpoint has it."""
    own = network.recovery
    return own if own is not None and own.head in network.heads else None


def can_be_masked(encoder: CellEncoder) -> bool:
    """Whether the model says how content is hidden and, where it takes genes out, predicts them."""
    try:
        _hiding(encoder)
    except CapabilityError:
        return False
    return True


def _hiding(encoder: CellEncoder) -> Hiding:
    hiding = encoder.tokenizer.hiding
    own = recovery_of(encoder.network)
    if own is not None and own.layout == "cell":
        return hiding or Hiding("ids", None)
    if hiding is None:
        raise CapabilityError(
            f"{encoder.name} does not say how the content of its tokens is hidden (Tokenizer.hiding).",
            "Fine-tune it with scfm.Contrastive().",
        )
    if own is not None and hiding.value is None and own.layout == "token":
        raise CapabilityError(
            f"{encoder.name} takes hidden genes out, but its head predicts only those that are there."
        )
    if own is None and hiding.value is None:
        raise CapabilityError(
            f"{encoder.name} takes hidden genes out, and this checkpoint has no head that predicts them.",
            "Load a checkpoint with its expression head, or fine-tune with scfm.Contrastive().",
        )
    return hiding


def can_hide(encoder: CellEncoder, tokens: Tokens, hiding: Hiding) -> np.ndarray:
    """Which of the tokens may be hidden (n_tokens,) bool: no special ones, and none of value 0 where the tokenizer says so."""
    field = tokens.fields[hiding.field]
    can = np.ones(len(field), dtype=bool)
    if "ids" in tokens.fields and (special := list(encoder.vocabulary.special_ids)):
        can &= ~np.isin(tokens.fields["ids"], special)
    if hiding.field != "ids" and not hiding.zeros:
        can &= field != 0
    return can


def _check_context(encoder: CellEncoder, cells: Labelled, hiding: Hiding) -> None:
    """Refuse networks whose token states do not depend on the other tokens: from such a state nothing hidden can be told."""
    some = spread(cells, 4).tokens.select(np.arange(min(4, len(cells))))
    can = np.flatnonzero(can_hide(encoder, some, hiding))
    if len(can) == 0:
        raise InputError(f"the cells have no tokens of {encoder.name} that can be hidden.")
    changed = {name: array.copy() for name, array in some.fields.items()}
    changed[hiding.field][can[0]] = hiding.value
    other = Tokens(changed, some.offsets, some.expressed, some.padding, some.cells)
    request = Request(frozenset({"tokens"}))
    with evaluating(encoder.network), torch.inference_mode():
        states = [encoder.network(t.collate(range(len(t))).to(encoder.device), request).tokens for t in (some, other)]
    one, two = states
    if one is None or two is None:
        raise CapabilityError(f"{encoder.name} gives no states of its tokens.", "Fine-tune with scfm.Contrastive().")
    cell = int(np.searchsorted(some.offsets, can[0], side="right")) - 1
    place = int(can[0] - some.offsets[cell])
    same = torch.ones(one.shape[1], dtype=torch.bool, device=one.device)
    same[place] = False
    same[int(some.lengths[cell]) :] = False
    if torch.equal(one[cell][same], two[cell][same]):
        raise CapabilityError(
            f"the tokens of {encoder.name} do not see each other: a hidden one cannot be told from the others.",
            "Fine-tune with scfm.Contrastive().",
        )


class MaskedCells(Cells):
    """Cells some of whose tokens are hidden.

    Batches hold, beside the network's input, for the m hidden tokens of each cell: "at" (b, m) int64, their places (ids where the head
    predicts by gene), "truth" (b, m, ...) what they say, and "told" (b, m) bool, false where a cell has fewer.
    """

    def __init__(self, encoder: CellEncoder, cells: Labelled, *, share: float, seed: int, labels: np.ndarray) -> None:
        super().__init__(cells.tokens, labels, cells.groups)
        self.tokens, self.share, self.seed = cells.tokens, share, seed
        self.hiding = _hiding(encoder)
        own = recovery_of(encoder.network)
        self.layout = "token" if own is None else own.layout
        self.can = can_hide(encoder, cells.tokens, self.hiding) if self.layout != "cell" else None

    def inputs_of(self, rows: np.ndarray, draw: int) -> dict[str, Any]:
        """The batch, and what is hidden in it."""
        tokens = self.tokens.select(rows)
        if self.can is None:
            return tensors_of(tokens.collate(np.arange(len(tokens))))
        can = self.can[ragged_positions(self.tokens.offsets[rows], self.tokens.lengths[rows])]
        hidden = choose(can, tokens.offsets, self.share, draws(self.seed, draw, rows))
        cell = np.repeat(np.arange(len(tokens)), tokens.lengths)
        place = np.arange(len(can)) - tokens.offsets[cell]
        at = tokens.fields["ids"] if self.layout == "gene" else place
        told = {
            "at": padded(at[hidden].astype(np.int64), cell[hidden], len(tokens)),
            "truth": padded(tokens.fields[self.hiding.field][hidden], cell[hidden], len(tokens)),
            "told": padded(np.ones(int(hidden.sum()), dtype=bool), cell[hidden], len(tokens)),
        }
        truth = told["truth"]
        told["truth"] = truth.astype(np.int64 if self.hiding.classes else np.float32)
        read = self._hide(tokens, hidden, cell)
        return {
            **tensors_of(read.collate(np.arange(len(read)))),
            **{name: torch.from_numpy(array) for name, array in told.items()},
        }

    def _hide(self, tokens: Tokens, hidden: np.ndarray, cell: np.ndarray) -> Tokens:
        """The tokens as the network sees them."""
        name, value = self.hiding.field, self.hiding.value
        if value is None:
            fields = {key: array[~hidden] for key, array in tokens.fields.items()}
            lengths = np.bincount(cell[~hidden], minlength=len(tokens))
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        else:
            covered = tokens.fields[name].copy()
            covered[hidden] = value
            fields, offsets = {**tokens.fields, name: covered}, tokens.offsets
        return Tokens(fields, offsets, tokens.expressed, tokens.padding, tokens.cells)


def choose(can: np.ndarray, offsets: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which tokens are hidden (n_tokens,) bool: of each cell a share of those that can be, rounded, and at least one."""
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    at = np.flatnonzero(can)
    order = at[np.lexsort((rng.random(len(at)), cell[at]))]
    counts = np.bincount(cell[at], minlength=len(offsets) - 1)
    wanted = np.minimum(np.maximum(np.rint(share * counts), 1), counts).astype(np.int64)
    starts = np.cumsum(counts) - counts
    hidden = np.zeros(len(can), dtype=bool)
    hidden[order[ragged_positions(starts, wanted)]] = True
    return hidden


def padded(values: np.ndarray, cell: np.ndarray, count: int) -> np.ndarray:
    """Values of cells, in their order, as rows (count, most, ...), filled up with zeros."""
    lengths = np.bincount(cell, minlength=count)
    place = np.arange(len(cell)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    out = np.zeros((count, int(lengths.max(initial=0)), *values.shape[1:]), dtype=values.dtype)
    out[cell, place] = values
    return out


def number_sums(found: Tensor, truth: Tensor, told: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Mean squared error, in units of `scale`, and each cell's sums of 1, y, p, y², p² and yp over its hidden numbers (b, 6)."""
    weight = told if found.ndim == 2 else told.unsqueeze(-1).expand_as(found)
    y, p, w = (x.flatten(1) for x in (truth.float(), found, weight.float()))
    loss = (((p - y) / scale) ** 2 * w).sum() / w.sum().clamp(min=1)
    sums = torch.stack([(x * w).sum(dim=1) for x in (torch.ones_like(y), y, p, y * y, p * p, y * p)], dim=1)
    return {"loss": loss, "outputs": sums.detach()}


def class_sums(found: Tensor, truth: Tensor, told: Tensor) -> dict[str, Tensor]:
    """Cross-entropy, and each cell's sums of 1, cross-entropy and hits over its hidden classes (b, 3)."""
    each = F.cross_entropy(found.flatten(0, 1), truth.flatten(), reduction="none").view_as(truth)
    w = told.float()
    hits = (found.argmax(dim=-1) == truth).float()
    sums = torch.stack([w.sum(dim=1), (each * w).sum(dim=1), (hits * w).sum(dim=1)], dim=1)
    return {"loss": (each * w).sum() / w.sum().clamp(min=1), "outputs": sums.detach()}


class RecoveryHead(nn.Module):
    """What hidden tokens say, from the network's own head or, by new layers, from the tokens' states."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hiding: Hiding, own: Recovery | None, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.hiding, self.own = hiding, own
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.layers: nn.Module | None = None
        if own is None:
            inside = min(dim, WIDTH)
            last = nn.Linear(inside, hiding.classes or hiding.width)
            self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(dropout), nn.Linear(dim, inside), nn.GELU(), last)

    def forward(self, encoded: Encoded, at: Tensor) -> Tensor:
        """Predictions for the tokens at places or ids (b, m) -> (b, m), (b, m, width) or logits (b, m, classes)."""
        found = self._everywhere(encoded)
        if found.ndim == 2:
            return found.gather(1, at)
        chosen = found.gather(1, at.unsqueeze(-1).expand(-1, -1, found.shape[-1]))
        if self.layers is None:
            return chosen
        answer = self.layers(chosen).float()
        if self.hiding.classes:
            return answer
        answer = answer * self.scale + self.mean
        return answer.squeeze(-1) if self.hiding.width == 1 else answer

    def _everywhere(self, encoded: Encoded) -> Tensor:
        """The states, or what the network's own head says, of all tokens or genes."""
        if self.own is None:
            assert encoded.tokens is not None
            return encoded.tokens.to(self.mean.dtype)
        found = encoded.heads[self.own.head].float()
        if self.own.counts:
            found = torch.log1p(found)
        if self.own.layout == "patch":
            width = self.hiding.width
            whole = (-(-found.shape[1] // width) - 1) * width
            first, last = found[:, :whole].unflatten(1, (-1, width)), found[:, None, -width:]
            found = torch.cat([first, last], dim=1)  # (b, t, width)
        return found
