"""``scfm annotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scfm.options import (
    Adapter,
    Device,
    GeneColumn,
    Json,
    Layer,
    LoadOptions,
    MapGenes,
    Model,
    Plot,
    Quiet,
    Result,
    Revision,
    Seed,
    TokenizerOptions,
    ValuesOption,
    load_encoder,
    named_value,
    read_adata,
    show,
)

__all__ = ["command"]


def command(
    model: Model,
    reference: Annotated[Path, typer.Argument(help="Labelled cells: an .h5ad file or .zarr folder.")],
    query: Annotated[
        Path | None, typer.Argument(help="Cells to label. Without: the reference is cross-validated over --groups.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Column of obs with the reference's labels.")] = "cell_type",
    truth: Annotated[
        str | None, typer.Option(help="Column of the query's obs to score against. Default: --labels, if it is there.")
    ] = None,
    method: Annotated[str, typer.Option(help="knn, prototype, text, probe or finetune.")] = "knn",
    method_option: Annotated[
        list[str] | None, typer.Option("--method-option", "-M", help="Setting of the method, e.g. -M k=30; repeatable.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Error level of the prediction sets.")] = 0.1,
    conditional: Annotated[bool, typer.Option("--conditional", help="Hold alpha within every label.")] = False,
    sets: Annotated[str, typer.Option(help="Kind of the sets: lac or aps.")] = "lac",
    reject: Annotated[float, typer.Option(help="Share of known cells that may be rejected as unknown.")] = 0.05,
    novelty: Annotated[str, typer.Option(help="Score that rejects: knn, mahalanobis, softmax or energy.")] = "knn",
    calibration: Annotated[float, typer.Option(help="Share of the reference held out for calibration.")] = 0.3,
    donor: Annotated[str | None, typer.Option(help="Column of obs: whole donors are held out for calibration.")] = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Column of the query's obs to give scores by; repeatable.")
    ] = None,
    groups: Annotated[str | None, typer.Option(help="Without a query: column held out in turn, e.g. donor_id.")] = None,
    split: Annotated[str, typer.Option(help="Without a query: groups, or random_cells (leaks).")] = "groups",
    folds: Annotated[int | None, typer.Option(help="Without a query: number of folds.")] = None,
    hold_out_type: Annotated[
        list[str] | None, typer.Option(help="Label taken out of the reference, to test rejection; repeatable.")
    ] = None,
    ontology: Annotated[bool, typer.Option("--ontology", help="Match labels with Cell Ontology terms.")] = False,
    term: Annotated[
        list[str] | None, typer.Option("--term", help="Term of a label, e.g. --term DC=CL:0000451; repeatable.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Encoder of the plain baseline, or none.")] = "pca",
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    out: Result = None,
    plot: Plot = None,
    kind: Annotated[
        str | None, typer.Option(help="Picture: confusion, scores, reliability, coverage_risk or labels.")
    ] = None,
    device: Device = "auto",
    option: TokenizerOptions = None,
    revision: Revision = None,
    adapter: Adapter = None,
    load_option: LoadOptions = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give cells the cell types of a labelled reference, with known errors."""
    from scfm.tasks.annotation import annotate

    encoder = load_encoder(
        model, device=device, option=option, load_option=load_option, revision=revision, adapter=adapter
    )
    terms = dict(_pair(text) for text in term or ())
    result = annotate(
        encoder,
        read_adata(reference),
        None if query is None else read_adata(query),
        labels=labels,
        truth=truth,
        method=_method(method, method_option),
        alpha=alpha,
        conditional=conditional,
        sets=sets,  # type: ignore[arg-type]
        reject=reject,
        novelty=novelty,  # type: ignore[arg-type]
        calibration=calibration,
        donor=donor,
        batch=batch,
        groups=groups,
        split=split,  # type: ignore[arg-type]
        folds=folds,
        hold_out_types=tuple(hold_out_type or ()),
        ontology=ontology or bool(terms),
        terms=terms or None,
        baseline=None if baseline == "none" else baseline,
        layer=layer,
        gene_column=gene_column,
        map_genes=map_genes,
        values=values,
        progress=False if quiet else None,
        seed=seed,
    )
    if plot is not None:
        result.plot(save=plot, kind=kind)  # type: ignore[arg-type]
    show(result, out=out, plot=None, as_json=as_json, quiet=quiet)


def _method(name: str, settings: list[str] | None) -> Any:
    """A method with its settings."""
    from dataclasses import fields

    from scfm.annotators import annotator_of

    method = annotator_of(name)
    given = dict(named_value(text) for text in settings or ())
    known = {f.name for f in fields(method)}  # type: ignore[arg-type]
    if unknown := sorted(set(given) - known):
        raise typer.BadParameter(
            f"{name} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}", param_hint="--method-option"
        )
    return type(method)(**given)


def _pair(text: str) -> tuple[str, str]:
    label, equals, term = text.rpartition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not label=CL:0000000", param_hint="--term")
    return label, term
