"""Expression after a perturbation, from expression before it: what drugs and genes (`drug_response`, `gene_response`) share.

An example is a pseudobulk: the control's summed counts in a context (cell line, donor) go in, the profile of the treated cells comes
out. The state of a gene's token becomes the change of that gene,

    predicted = control + w . h + (A h) . (B c) + typical

with c the perturbation's vector. The interaction is there with interaction > 0 only; `typical`, the mean change of the training examples,
with offset="mean" only. A gene without a token keeps the control's value, and gets the typical change. Networks that predict expression
under perturbation flags themselves (scGPT's perturbation generator) give the value itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from scfm.adaptation.drug_conditional import MOLECULE, SETTING
from scfm.encoder import Capability, CellEncoder, Network, Request
from scfm.errors import CapabilityError, InputError, listing
from scfm.examples import Labelled, batch_of
from scfm.genes import align
from scfm.objectives.base import Target
from scfm.perturbation.conditions import Key
from scfm.perturbation.metrics import r2_delta
from scfm.perturbation.pseudobulk import Profiles
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    import pandas as pd

    from scfm.adaptation import Method

__all__ = ["ResponseHead", "ResponseTarget", "check_loss", "keys_of", "typical_change"]

CONTROL = "control"
"""Field of a batch's `cells`: profile before the perturbation (b, genes)."""


class ResponseHead(nn.Module):
    """Change of every gene from the states of the tokens. At first it is zero: the control is predicted.

    Parameters
    ----------
    dim
        Length of a token's state.
    columns
        (n_tokens,) int64 gene that a token of the vocabulary stands for, -1 for none.
    condition
        Length of a perturbation's vector, dose and time included.
    interaction
        Rank of the term in which states and perturbation meet; 0 for none.
    """

    columns: Tensor
    typical: Tensor

    def __init__(self, dim: int, columns: np.ndarray, genes: int, *, condition: int, interaction: int) -> None:
        super().__init__()
        self.genes = genes
        self.change = nn.Linear(dim, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)
        self.of_state = nn.Linear(dim, interaction, bias=False) if interaction else None
        self.of_condition = nn.Linear(condition, interaction) if interaction else None
        if self.of_condition is not None:
            nn.init.zeros_(self.of_condition.weight)
            nn.init.zeros_(self.of_condition.bias)
        self.register_buffer("columns", torch.from_numpy(columns))
        self.register_buffer("typical", torch.zeros(genes))  # (genes,) added to every change

    def forward(self, states: Tensor, condition: Tensor) -> Tensor:
        """States (b, t, dim) and perturbations (b, k) -> change at every token (b, t)."""
        states = states.to(self.change.weight.dtype)
        change = self.change(states).squeeze(-1)
        if self.of_state is not None and self.of_condition is not None:
            steer = self.of_condition(condition.to(states.dtype))  # (b, r)
            change = change + (self.of_state(states) * steer.unsqueeze(1)).sum(dim=-1)
        return change

    def placed(self, values: Tensor, ids: Tensor, pad: Tensor | None, otherwise: Tensor) -> Tensor:
        """Values of tokens (b, t) at their genes, `otherwise` (b, genes) where a gene has none; of several tokens the mean."""
        at = self.columns[ids]  # (b, t)
        at = at.masked_fill(at < 0, self.genes)
        if pad is not None:
            at = at.masked_fill(pad, self.genes)
        room = values.new_zeros(len(values), self.genes + 1)
        found = room.scatter_reduce(1, at, values, "mean", include_self=False)
        seen = torch.zeros_like(room).scatter(1, at, 1.0)
        return torch.where(seen > 0, found, nn.functional.pad(otherwise, (0, 1)))[:, : self.genes]


@dataclass(frozen=True)
class ResponseTarget(Target):
    """What all responses share. Subclasses say what a condition's vector is.

    Parameters
    ----------
    genes
        Names of the genes predicted.
    target_sum
        Counts that a profile was scaled to before log1p.
    context
        Column of `obs` with the cell line or donor.
    control
        Name of the control condition.
    loss_kind
        "mse", or "gears".
    interaction
        See `ResponseHead`.
    offset
        "mean": predictions start from `typical`, "none": from no change.
    profiles
        Those to learn from; not stored.
    typical
        (n_genes,) mean change of the training examples, which predictions start from; not stored here, but with the head.
    """

    genes: tuple[str, ...]
    target_sum: float
    context: str
    control: str
    loss_kind: str = "mse"
    interaction: int = 0
    offset: str = "none"
    profiles: Profiles | None = field(default=None, compare=False, repr=False)
    typical: np.ndarray | None = field(default=None, compare=False, repr=False)

    metrics: ClassVar[Mapping[str, bool]] = {"mse": False, "r2_delta": True}
    needs_network: ClassVar[bool] = True
    predicts: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Context and condition."""
        return (self.context, "condition")

    def record(self) -> dict[str, Any]:
        """Without the arrays."""
        return {"kind": self.kind, **asdict(replace(self, profiles=None, typical=None))}

    def keys(self, obs: pd.DataFrame) -> list[Key]:
        """(context, condition) of examples."""
        return keys_of(obs, self.context)

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Profiles of the treated cells (n, genes) float32."""
        assert self.profiles is not None
        return self.profiles.values[self.profiles.rows(self.keys(obs))].astype(np.float32)

    # Conditions

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Further columns of `obs` that say what conditions are."""
        return {}

    def vectors(self, encoder: CellEncoder, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vector of each condition (n, m) float32, and its setting (n, c)."""
        raise NotImplementedError

    def condition_size(self, encoder: CellEncoder) -> int:
        """Length of both."""
        raise NotImplementedError

    def conditioned(self, encoder: CellEncoder, cells: Labelled) -> Labelled:
        """Examples whose tokens carry the perturbation and the control's profile."""
        assert self.profiles is not None
        keys = self.keys(cells.obs)
        control = self.profiles.control_of(keys)
        return replace(cells, tokens=self.with_conditions(encoder, cells.tokens, [name for _, name in keys], control))

    def with_conditions(
        self, encoder: CellEncoder, tokens: Tokens, names: Sequence[str], control: np.ndarray
    ) -> Tokens:
        """Tokens with their condition (by name) and control profile (n, genes)."""
        if "ids" not in tokens.fields:
            raise CapabilityError(
                f"the tokens of {encoder.name} stand for no genes, so that it cannot say which of them change.",
                f"Encoders whose tokens do: {listing(_with_gene_tokens())}.",
            )
        distinct = sorted(set(names))
        place = {name: i for i, name in enumerate(distinct)}
        at = np.array([place[name] for name in names], dtype=np.int64)
        molecule, setting = self.vectors(encoder, distinct)
        own = {MOLECULE: molecule[at], SETTING: setting[at], CONTROL: control.astype(np.float32)}
        return replace(tokens, cells={**tokens.cells, **own})

    # Network and head

    def flagged(self, network: Network) -> bool:
        """Whether the network itself takes the perturbation, as flags of tokens, and predicts expression."""
        return False

    def request(self, network: Network) -> Request:
        """States of the tokens, or expression."""
        return Request(frozenset({"expression" if self.flagged(network) else "tokens"}))

    def gene_columns(self, encoder: CellEncoder) -> np.ndarray:
        """Gene of each token of the vocabulary (n_tokens,), -1 for none."""
        import pandas as pd

        found = align(pd.DataFrame(index=list(self.genes)), encoder.vocabulary, model=encoder.name, map_genes=True)
        columns = np.full(len(encoder.vocabulary), -1, dtype=np.int64)
        for column, token in reversed(list(enumerate(found.tokens))):
            if token >= 0:
                columns[token] = column
        return columns

    def head(self, encoder: CellEncoder, dropout: float) -> nn.Module:
        """Linear on the states; the width of a state is that of the last adapted layer."""
        return ResponseHead(
            _state_width(encoder),
            self.gene_columns(encoder),
            len(self.genes),
            condition=self.condition_size(encoder) if self.interaction else 1,
            interaction=self.interaction,
        )

    def start(self, head: nn.Module, encoder: CellEncoder, cells: Labelled) -> None:
        """The head starts at no change, or at the typical one."""
        assert isinstance(head, ResponseHead)
        if self.typical is not None:
            head.typical.copy_(torch.from_numpy(self.typical))

    def fits(self, method: Method, encoder: CellEncoder) -> None:
        """Refuse a method with which the perturbation would reach nothing, and an offset that would not be used."""
        if self.typical is not None and self.flagged(encoder.network):
            raise InputError(
                f"{encoder.name} predicts expression itself, not a change; offset='mean' is not used.", "Leave it out."
            )
        if self.interaction == 0 and method.kind != "drug_conditional" and not self.flagged(encoder.network):
            raise InputError(
                f"with method={method.kind!r} and interaction=0 the perturbation reaches nothing: all would be predicted alike.",
                "Pass method='drug_conditional', or interaction=8 to the objective.",
            )

    # Training

    def predicted(self, network: Network, head: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Profiles (b, genes) after and before the perturbation."""
        assert isinstance(head, ResponseHead)
        batch = batch_of(inputs)
        encoded = network(batch, self.request(network))
        if self.flagged(network):
            control, found = batch.cells[CONTROL], encoded.heads["expression"].float()
            return head.placed(found, batch["ids"], batch.pad, control), control
        states = encoded.tokens
        assert states is not None
        if states.shape[:2] != batch["ids"].shape:
            raise CapabilityError("the network's token states are not those of its genes.", "Use another encoder.")
        control = batch.cells[CONTROL]
        condition = torch.cat([batch.cells[MOLECULE], batch.cells[SETTING]], dim=1)
        change = head(states, condition)
        before = torch.zeros_like(control, dtype=change.dtype)
        return control + head.typical + head.placed(change, batch["ids"], batch.pad, before).float(), control

    def step(self, network: Network | None, head: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The loss, and profiles after and before (b, 2, genes)."""
        assert network is not None
        after, before = self.predicted(network, head, inputs)
        loss = _gears if self.loss_kind == "gears" else _mean_squared
        return {"loss": loss(after, inputs["labels"], before), "outputs": torch.stack([after, before], dim=1)}

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Mean squared error, and R2 of the change (0: no better than no change), mean over conditions."""
        after, before = (outputs[:, i].astype(np.float64) for i in (0, 1))
        each = [r2_delta(truth, found, control) for truth, found, control in zip(labels, after, before, strict=True)]
        finite = [value for value in each if np.isfinite(value)]
        return {
            "mse": float(((after - labels) ** 2).mean()),
            "r2_delta": float(np.mean(finite)) if finite else float("nan"),
        }


def _mean_squared(predicted: Tensor, truth: Tensor, control: Tensor) -> Tensor:
    return nn.functional.mse_loss(predicted, truth)


def _gears(predicted: Tensor, truth: Tensor, control: Tensor, gamma: float = 2.0, direction: float = 0.1) -> Tensor:
    """Loss of GEARS (Roohani et al. 2023, doi:10.1038/s41587-023-01905-6), mean over perturbations of the mean over genes of

    |p - t|^(2 + gamma) + direction (sign(t - c) - sign(p - c))²

    where truth or control have the gene. The signs give no gradient, in the original neither.
    """
    used = (truth != 0) | (control != 0)
    error = (predicted - truth).abs() ** (2 + gamma)
    turned = ((truth - control).sign() - (predicted - control).sign()) ** 2
    return (((error + direction * turned) * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)).mean()


def _state_width(encoder: CellEncoder) -> int:
    """Length of a token's state, from an example of the encoder's own vocabulary."""
    import pandas as pd
    from scipy import sparse

    from scfm.cells import Block

    genes = [encoder.vocabulary.tokens[i] for i in encoder.vocabulary.genes[:8]]
    aligned = align(pd.DataFrame(index=genes), encoder.vocabulary, model=encoder.name)
    columns = {name: pd.Series([_any_value(encoder, name)]) for name in encoder.tokenizer.obs_columns}
    matrix = sparse.csr_matrix(np.arange(1, len(genes) + 1, dtype=np.float32)[None])
    tokens = encoder.tokenizer.tokenize(Block(matrix, aligned, pd.DataFrame(columns, index=["cell"])))
    with torch.no_grad():
        states = encoder.network.eval()(tokens.collate([0]).to(encoder.device), Request(frozenset({"tokens"}))).tokens
    if states is None:
        raise CapabilityError(
            f"{encoder.name} gives no states of tokens.", f"Encoders that do: {listing(_with_gene_tokens())}."
        )
    return int(states.shape[-1])


def _any_value(encoder: CellEncoder, column: str) -> str:
    return next(iter(encoder.tokenizer.obs_values.get(column, ("",))), "")


def _with_gene_tokens() -> list[str]:
    from scfm.registry import able_to

    return able_to(Capability.ATTENTION)


def keys_of(obs: pd.DataFrame, context: str) -> list[Key]:
    """(context, condition) of examples."""
    return list(zip(obs[context].astype(str), obs["condition"].astype(str), strict=True))


def typical_change(profiles: Profiles, keys: Sequence[Key], offset: str) -> np.ndarray | None:
    """Mean change of these keys (n_genes,), where it is asked for."""
    if offset not in ("none", "mean"):
        raise InputError(f"offset={offset!r} is not known.", "Pass 'none' or 'mean'.")
    return profiles.deltas(keys).mean(axis=0) if offset == "mean" else None


def check_loss(loss: str, interaction: int) -> None:
    if loss not in ("mse", "gears"):
        raise InputError(f"loss={loss!r} is not known.", "Pass 'mse' or 'gears'.")
    if interaction < 0:
        raise InputError(f"interaction={interaction}; it must be 0 or more.")
