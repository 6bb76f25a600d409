"""The task `distill`: any encoder -> a small fast one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scfm.options import (
    Device,
    Files,
    GeneColumn,
    Json,
    Layer,
    LoadOptions,
    MapGenes,
    Model,
    Plot,
    Quiet,
    Seed,
    TokenizerOptions,
    ValuesOption,
    load_encoder,
    show,
)
from scfm.results import TaskResult
from scfm.task import Task

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from scfm.adapters.student.adapter import Student
    from scfm.cells import Data
    from scfm.encoder import CellEncoder

__all__ = ["TASK", "Distilled", "distill"]


@dataclass(frozen=True)
class Distilled(TaskResult):
    """A student and its agreement with the teacher: `table` has a row a metric, on held-out cells, with its interval.

    Parameters
    ----------
    student
        The encoder; `student.save(folder)` keeps it.
    """

    student: Student

    def summary(self) -> str:
        """The agreement in a few lines."""
        cells = self.provenance["cells"]
        lines = [
            f"{self.student.name}: trained on {cells['train']:,} cells; on {cells['valid']:,} held out"
            + (f" (whole values of {cells['groups']!r})" if cells["groups"] else " at random")
        ]
        return "\n".join(
            [*lines, *(f"  {r.metric:<26} {r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in self.table.itertuples())]
        )

    def plot(self, *, ax: Axes | None = None, save: str | PathLike[str] | None = None) -> Axes:
        """Bars of the agreement."""
        from scfm.metrics import Estimate
        from scfm.plotting import axes_of, bars, saved

        ax = axes_of(ax, size=(6, 2.8))
        estimates = [Estimate(*row) for row in self.table[["value", "low", "high"]].to_numpy()]
        bars(ax, list(self.table["metric"]), estimates, label="on held-out cells")
        ax.set_xlim(0, 1)
        return saved(ax, save)

    def to_dict(self) -> dict[str, Any]:
        """As of any result; the student by its name."""
        from dataclasses import replace

        return {**super(Distilled, replace(self, student=None)).to_dict(), "student": self.student.name}  # type: ignore[arg-type]


def distill(
    encoder: CellEncoder,
    data: Data,
    *,
    valid: float = 0.2,
    groups: str | None = None,
    labels: str | None = None,
    embedding: np.ndarray | str | PathLike[str] | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    map_genes: bool = False,
    values: str | None = None,
    progress: bool | None = None,
    seed: int = 0,
    **settings: Any,
) -> Distilled:
    """Train a small network to give an encoder's embeddings from counts, without the encoder.

    The student sees the sum of its genes' vectors, each times log1p of the gene's counts per 10,000, and a small MLP (Hinton et al. 2015,
    arXiv:1503.02531, with squared error on embeddings). Its settings are those of `Distillation`.

    Parameters
    ----------
    encoder
        The teacher. Not one whose cells see each other: a student sees one cell.
    data
        Cells of the kinds the student will meet: AnnData, path, or a list of these. Their tokens are held in memory.
    valid
        Share of the cells held out, on which the agreement is measured.
    groups
        Column of `obs` (donor, study) whose values are held out whole. Without, held-out cells resemble the training cells, and
        agreement on new data will be lower than stated.
    labels
        Column of `obs` with cell types: label transfer is then measured too, for teacher and student.
    embedding
        The teacher's embeddings of `data` (n_cells, dim), or a `.npy` path where they are kept, so that an interrupted run continues.
    layer, gene_column, map_genes, values
        As for `CellEncoder.embed`.
    seed
        Of the split, the first weights and the order of cells.
    settings
        epochs, batch_size, learning_rate, drop_genes, patience, width, hidden.

    Returns
    -------
    Distilled
        The student, and its agreement with the teacher on held-out cells.

    Raises
    ------
    InputError
        There are too few cells, a column is missing, or the encoder's cells see each other.
    """
    import pandas as pd

    from scfm.adapters.student.distillation import Distillation, train_student
    from scfm.errors import InputError, listing
    from scfm.results import provenance_of

    if encoder.tokenizer.grouped:
        raise InputError(
            f"{encoder.name} embeds cells that see each other; a student sees one cell at a time.",
            "Choose another teacher.",
        )
    try:
        chosen = Distillation(**settings)
    except TypeError as error:
        known = listing(Distillation.__dataclass_fields__, 20)
        raise InputError(f"unknown setting: {error}.", f"Settings are {known}.") from error
    reading = {"layer": layer, "gene_column": gene_column, "map_genes": map_genes, "values": values}
    begin = time.perf_counter()
    student = train_student(
        encoder,
        data,
        valid=valid,
        groups=groups,
        labels=labels,
        embedding=embedding,
        settings=chosen,
        reading=reading,
        progress=progress,
        seed=seed,
    )
    record = provenance_of("distill", encoder, **student.record["settings"], seconds=time.perf_counter() - begin)
    return Distilled(
        pd.DataFrame(student.record["fidelity"]), student, provenance={**record, "cells": student.record["cells"]}
    )


def command(
    model: Model,
    data: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the student to.")],
    valid: Annotated[float, typer.Option(help="Share of the cells held out to measure the agreement.")] = 0.2,
    groups: Annotated[
        str | None, typer.Option(help="Column of obs (donor, study) whose values are held out whole.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Column of obs with cell types, to measure label transfer.")
    ] = None,
    embedding: Annotated[
        Path | None, typer.Option(help="Keep the teacher's embeddings in this .npy; the same command continues them.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training cells, at most.")] = 60,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    option: TokenizerOptions = None,
    load_option: LoadOptions = None,
    device: Device = "auto",
    seed: Seed = 0,
    plot: Plot = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a small fast encoder that gives another one's embeddings."""
    result = distill(
        load_encoder(model, device=device, option=option, load_option=load_option),
        list(data) if len(data) > 1 else data[0],
        valid=valid,
        groups=groups,
        labels=labels,
        embedding=embedding,
        epochs=epochs,
        layer=layer,
        gene_column=gene_column,
        map_genes=map_genes,
        values=values,
        progress=False if quiet or as_json else None,
        seed=seed,
    )
    result.student.save(out)
    show(result, out=None, plot=plot, as_json=as_json, quiet=quiet)


TASK = Task("distill", run=distill, command=command)
