"""A distilled encoder (Hinton et al. 2015, arXiv:1503.02531): any teacher, a sparse input, under a millisecond a cell."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from scfm.adapters.student.network import StudentNetwork
from scfm.cards import ModelCard
from scfm.cells import Data
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary
from scfm.reading import InputWarning
from scfm.tokenizers import ContinuousTokenizer

__all__ = ["Student", "StudentConfig"]

FAR = 0.99
"""A cell is new if it is farther from the training cells than this share of the held-out ones."""
MOST_NEW, FEW = 0.05, 5
"""Share and number of new cells from which `embed` warns; by construction about 0.01 are, on cells like those it was trained on."""
RECORD, README = "distilled.json", "README.md"


@dataclass(frozen=True)
class StudentConfig:
    """Sizes."""

    genes: int
    dim: int  # of the teacher
    width: int = 256  # of a gene's vector
    hidden: int = 512


class Student(CellEncoder):
    """A small copy of another encoder; `scfm distill` or ``scfm.tasks.distill`` makes one."""

    Config = StudentConfig
    network: StudentNetwork
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS})
    record: Mapping[str, Any] = {}
    """Teacher, cells, settings and fidelity of a trained student."""

    @classmethod
    def build(cls, config: StudentConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An untrained student of these sizes."""
        return cls(
            config=config,
            network=StudentNetwork(config.genes, config.width, config.hidden, config.dim),
            tokenizer=ContinuousTokenizer(vocabulary),
            card=card,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Students are made from another encoder, and loaded from the folder they were saved to."""
        raise CheckpointError(
            "a student has no authors' files; it is trained from another encoder.",
            "scfm distill ENCODER cells.h5ad -o student/, then scfm.load('./student').",
        )

    @classmethod
    def restore(cls, checkpoint: Checkpoint) -> Self:
        """Read what `save` wrote."""
        student = super().restore(checkpoint)
        student.card = ModelCard.model_validate(checkpoint.json("scfm.json")["card"])  # its own, not the adapter's
        student.record = checkpoint.json(RECORD) if checkpoint.has(RECORD) else {}
        return student

    def gene_vectors(self, kind: str) -> Tensor:
        """What each gene adds, per unit of log1p of counts per 10,000 (n_genes, width)."""
        return self.network.genes.weight

    def novelty(self, data: Data, **reading: Any) -> np.ndarray:
        """How far cells are from those the student was trained on.

        Parameters
        ----------
        data, reading
            As for `embed`: layer, gene_column, ...

        Returns
        -------
        np.ndarray
            (n_cells,) float32 in [0, 1]: the share of held-out cells that are nearer. Above 0.99 the embedding is an extrapolation.
        """
        return self.output(data, "novelty", **reading)

    def embed(self, data: Data, **options: Any) -> np.ndarray:
        """Embed cells, arguments as for `CellEncoder.embed`; warns where many are unlike all that the student has seen."""
        embedding = super().embed(data, **options)
        reading = {name: options[name] for name in ("layer", "gene_column", "map_genes", "values") if name in options}
        if self.record and len(embedding):
            new = self.novelty(data, progress=False, **reading) > FAR
            if new.sum() >= FEW and new.mean() > MOST_NEW:
                warnings.warn(
                    f"{int(new.sum()):,} of {len(new):,} cells are farther from the training cells of {self.name} than {FAR:.0%} of its "
                    "held-out cells: their embeddings are extrapolated. Look at novelty(data), or use the teacher, "
                    f"{self.record['teacher']['model']}.",
                    InputWarning,
                    stacklevel=2,
                )
        return embedding

    def save(self, folder: str | PathLike[str]) -> Path:
        """As `CellEncoder.save`; with the record of the distillation, and a card in words."""
        written = super().save(folder)
        if self.record:
            (written / RECORD).write_text(json.dumps(self.record, indent=1), encoding="utf-8")
            (written / README).write_text(card_text(self.card, self.record), encoding="utf-8")
        return written


def card_text(card: ModelCard, record: Mapping[str, Any]) -> str:
    """The card of a trained student in Markdown."""
    teacher, cells, fidelity = record["teacher"], record["cells"], record["fidelity"]
    lines = [
        f"# {card.title}",
        "",
        f"- teacher: {teacher['model']}, {json.dumps(teacher['origin'])}",
        f"- licence of the teacher's weights: {card.weights_licence}; it may bind this student too",
        f"- trained on {cells['train']:,} cells, held out {cells['valid']:,}"
        + (
            f" (whole values of obs[{cells['groups']!r}])"
            if cells["groups"]
            else " (a random share: they resemble the training cells)"
        ),
        "",
        "Agreement with the teacher on the held-out cells:",
        "",
        "| metric | value | 95 % interval |",
        "| --- | --- | --- |",
        *(f"| {row['metric']} | {row['value']:.4f} | {row['low']:.4f} to {row['high']:.4f} |" for row in fidelity),
        "",
        "```python",
        'scfm.load("./this_folder").embed("cells.h5ad")',
        "```",
        "",
        "It extrapolates on cells unlike those it was trained on: `novelty(data)` gives a score for each cell, and `embed` warns.",
    ]
    if card.restricted:
        lines.insert(4, f"- restricted: {card.restricted}")
    return "\n".join(lines) + "\n"
