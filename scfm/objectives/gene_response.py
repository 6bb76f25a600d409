"""Expression after genes were perturbed, from unperturbed expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from scfm.encoder import Capability, CellEncoder, Network
from scfm.errors import GeneMatchError, InputError, listing
from scfm.molecules import MoleculeTable, molecules_from
from scfm.objectives.base import Objective
from scfm.objectives.response import CONTROL, ResponseTarget, check_loss, keys_of, typical_change
from scfm.perturbation.conditions import genes_of
from scfm.perturbation.screen import Screen
from scfm.tokenizers.base import Tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GeneResponse", "GeneTarget"]

FLAGS = "flags"
"""Field of a batch: 1 at tokens of perturbed genes."""


@dataclass(frozen=True)
class GeneTarget(ResponseTarget):
    """Response to a perturbation of genes.

    Parameters
    ----------
    table
        Record of a table of gene vectors; empty: the encoder's own gene embeddings.
    """

    table: Mapping[str, Any] = field(default_factory=dict)

    kind: ClassVar[str] = "gene response"

    def vectors(self, encoder: CellEncoder, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean vector of the perturbed genes; no setting."""
        genes = [genes_of(name, self.control) for name in names]
        distinct = sorted({gene for own in genes for gene in own})
        if not distinct or any(not own for own in genes):
            raise InputError("a condition perturbs no gene.", f"Leave {self.control!r} out of the conditions.")
        if self.table:
            found = molecules_from(self.table).vectors(distinct)
        else:
            encoder.require(Capability.GENE_EMBEDDINGS)
            if unknown := [g for g, i in zip(distinct, encoder.vocabulary.lookup(distinct), strict=True) if i < 0]:
                raise GeneMatchError(
                    f"{encoder.name} knows no {listing(unknown)}, so that it cannot be told of these perturbations.",
                    "Leave them out, or pass a table of gene vectors: GeneResponse(screen, vectors=...).",
                )
            found = encoder.gene_embeddings(distinct).to_numpy()
        place = {gene: i for i, gene in enumerate(distinct)}
        means = np.stack([found[[place[gene] for gene in own]].mean(axis=0) for own in genes])
        return means.astype(np.float32), np.zeros((len(names), 0), dtype=np.float32)

    def flagged(self, network: Network) -> bool:
        """A perturbation generator."""
        return network.perturbation_flags

    def with_conditions(
        self, encoder: CellEncoder, tokens: Tokens, names: Sequence[str], control: np.ndarray
    ) -> Tokens:
        """For a perturbation generator, flags of the tokens of perturbed genes (1) and of the others (0)."""
        if not self.flagged(encoder.network):
            return super().with_conditions(encoder, tokens, names, control)
        ids = encoder.vocabulary.lookup
        flags = np.zeros(int(tokens.offsets[-1]), dtype=np.int64)
        for row, name in enumerate(names):
            own = slice(tokens.offsets[row], tokens.offsets[row + 1])
            flags[own] = np.isin(tokens.fields["ids"][own], ids(genes_of(name, self.control)))
        return replace(
            tokens,
            fields={**tokens.fields, FLAGS: flags},
            padding={**tokens.padding, FLAGS: 0},
            cells={**tokens.cells, CONTROL: control.astype(np.float32)},
        )

    def condition_size(self, encoder: CellEncoder) -> int:
        """Of the gene vectors."""
        if self.table:
            return molecules_from(self.table).dim
        return int(encoder.gene_vectors(encoder.gene_kinds[0]).shape[1])


@dataclass(frozen=True, eq=False)
class GeneResponse(Objective):
    """Expression of a context after genes were perturbed, from its unperturbed expression: for ``screen.examples(...)``.

    Parameters
    ----------
    screen
        From `scfm.perturbation.gene_screen`.
    vectors
        What a perturbed gene is told by: None for the encoder's own gene embeddings, or a table indexed by gene. A perturbation generator
        is told by flags and reads neither.
    loss
        "mse" over all genes, or "gears".
    interaction
        Rank of the term of the head in which perturbation and token states meet.
    offset
        "mean": predictions start from the mean change of the training examples instead of none, so that what is learnt is what is special
        about a perturbation or context.
    """

    screen: Screen
    vectors: pd.DataFrame | None = None
    loss: Literal["mse", "gears"] = "mse"
    interaction: int = 8
    offset: Literal["none", "mean"] = "none"

    @property
    def columns(self) -> tuple[str, ...]:
        """Context and condition."""
        return (self.screen.context, "condition")

    def target(self, obs: pd.DataFrame) -> GeneTarget:
        """Of the screen's genes."""
        check_loss(self.loss, self.interaction)
        profiles = self.screen.profiles
        return GeneTarget(
            genes=tuple(map(str, profiles.genes)),
            target_sum=profiles.target_sum,
            context=self.screen.context,
            control=profiles.control,
            loss_kind=self.loss,
            interaction=self.interaction,
            offset=self.offset,
            profiles=profiles,
            typical=typical_change(profiles, keys_of(obs, self.screen.context), self.offset),
            table={} if self.vectors is None else MoleculeTable(self.vectors, key="drug").record(),
        )
