"""Expression of perturbed cells, by networks that generate it from flags of the perturbed genes (scGPT's perturbation generator)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scfm.cells import Block
from scfm.encoder import Capability, CellEncoder, Request
from scfm.engine import Run
from scfm.errors import CapabilityError, GeneMatchError, InputError, listing
from scfm.genes import Vocabulary
from scfm.in_silico.changes import CHANGE
from scfm.in_silico.repeated import RepeatedSource
from scfm.inference import encode
from scfm.perturbation.conditions import genes_of
from scfm.perturbation.response import response
from scfm.reading import Part, Reading, read
from scfm.tokenizers.base import Tokenizer, Tokens

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["ExpressionGenerator"]

TARGET_SUM = 1e4


@dataclass(frozen=True)
class ExpressionGenerator:
    """An encoder whose network generates expression, as a `ResponsePredictor`: every control cell under every condition.

    All genes of the data are tokens, those that are not expressed and those that the model does not know (as its pad token) too, without
    <cls>: the authors' `pred_perturb`. Values are log1p of counts per 10,000.

    Parameters
    ----------
    encoder
        One whose network reads flags of perturbed genes (`Network.perturbation_flags`).
    control
        Name of the control in conditions like "KLF1+ctrl".
    gene_column, map_genes
        As for `CellEncoder.embed`.

    Raises
    ------
    CapabilityError
        The encoder, or this checkpoint of it, generates no expression.
    """

    encoder: CellEncoder
    control: str = "ctrl"
    gene_column: str | None = None
    map_genes: bool = False

    def __post_init__(self) -> None:
        self.encoder.require(Capability.EXPRESSION)
        if not self.encoder.network.perturbation_flags:
            raise CapabilityError(
                f"this checkpoint of {self.encoder.name} does not read which genes are perturbed.",
                "Load one of a perturbation generator, or fine-tune with scfm.GeneResponse.",
            )

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self.encoder.name

    def predict_response(self, control: AnnData, conditions: Sequence[str]) -> AnnData:
        """Cells of the control under each condition, condition by condition.

        Raises
        ------
        GeneMatchError
            The data lack a perturbed gene, so that it can't be flagged.
        InputError
            The control holds no counts.
        """
        import pandas as pd

        if isinstance(conditions, str) or not conditions:
            raise InputError("conditions must be a list of names.", "Pass ['KLF1+MAP2K6'].")
        genes = [genes_of(name, self.control) for name in conditions]
        with closing(
            read(self.encoder, control, gene_column=self.gene_column, map_genes=self.map_genes, values="counts")
        ) as reading:
            (part,) = reading.parts
            named = {str(name): i for i, name in reversed(list(enumerate(part.alignment.names)))}
            named |= {str(name): i for i, name in reversed(list(enumerate(part.source.var.index)))}
            if missing := sorted({gene for own in genes for gene in own} - set(named)):
                raise GeneMatchError(
                    f"the control has no {listing(missing)}, so that {self.name} can't be told of it.",
                    "Leave these conditions out, or add the genes to the data.",
                )
            flagged = tuple(tuple(named[gene] for gene in own) for own in genes)
            n = part.source.shape[0]
            cells, number = np.repeat(np.arange(n), len(genes)), np.tile(np.arange(len(genes)), n)
            predicted, before = self._run(part, reading, cells, number, flagged)
        order = np.argsort(number, kind="stable")
        obs = control.obs.iloc[cells[order]].copy()
        obs["condition"] = pd.Categorical([conditions[i] for i in number[order]])
        return response(
            predicted[order],
            before[order],
            obs=obs,
            var=control.var,
            values="lognorm",
            predictor=self.name,
            target_sum=TARGET_SUM,
            provenance={key: str(value) for key, value in self.encoder.origin.items()},
        )

    def _run(
        self, part: Part, reading: Reading, cells: np.ndarray, number: np.ndarray, flagged: tuple[tuple[int, ...], ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Expression after and before (n_rows, n_genes) float32."""
        generating = copy(self.encoder)
        generating.tokenizer = _FlaggedTokenizer(self.encoder.vocabulary, flagged, part.source.shape[1])
        source = RepeatedSource(part.source, cells, number, 64, originals=False)
        repeated = Reading([Part(source, part.alignment, 0)], reading.values, (CHANGE,))
        after = np.zeros((len(cells), part.source.shape[1]), dtype=np.float32)
        before = np.zeros_like(after)
        run = Run(Request(frozenset({"expression"})))
        with closing(encode(generating, repeated, run, progress=False)) as results:
            for result in results:
                for rows, encoded in result.batches:
                    after[result.cells[rows]] = encoded.heads["expression"].numpy()
                before[result.cells] = result.tokens.padded("values")
        return after, before


@dataclass(frozen=True)
class _FlaggedTokenizer(Tokenizer):
    """Every column of the data a token: its id, log1p of counts per 10,000, and whether it is perturbed."""

    vocabulary: Vocabulary
    flagged: tuple[tuple[int, ...], ...]
    """Columns that each condition perturbs."""
    context: int

    def settings(self) -> dict[str, Any]:
        """Nothing but the vocabulary decides."""
        return {}

    def tokenize(self, block: Block, seed: int = 0) -> Tokens:
        """Tokens of a block, whose obs says which condition each row is of."""
        n, width = block.matrix.shape
        dense = block.matrix.toarray().astype(np.float64)
        total = dense.sum(axis=1, keepdims=True)
        values = np.log1p(np.divide(TARGET_SUM * dense, total, out=np.zeros_like(dense), where=total > 0))
        flags = np.zeros((n, width), dtype=np.int64)
        for row, condition in enumerate(block.obs[CHANGE]):
            flags[row, list(self.flagged[condition])] = 1
        known = block.alignment.tokens
        ids = np.where(known >= 0, known, self.vocabulary.id("pad"))
        return Tokens(
            fields={
                "ids": np.tile(ids.astype(np.int32), n),
                "values": values.astype(np.float32).reshape(-1),
                "flags": flags.reshape(-1),
            },
            offsets=np.arange(n + 1, dtype=np.int64) * width,
            expressed=(dense > 0).sum(axis=1),
        )
