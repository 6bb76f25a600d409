"""The command `scfm`: the same calls as in Python, for a shell."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scfm.cli_recipes import add_commands
from scfm.errors import (
    CheckpointError,
    DownloadError,
    InputError,
    MissingExtraError,
    ResumeError,
    ScfmError,
    UnknownModelError,
)
from scfm.options import (
    Adapter,
    Device,
    File,
    Files,
    GeneColumn,
    Json,
    Layer,
    LoadOptions,
    MapGenes,
    Model,
    Quiet,
    Revision,
    TokenizerOptions,
    ValuesOption,
    load_encoder,
    load_options,
    named_value,
    print_json,
)
from scfm.task import find_task, tasks

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done; 1 unexpected error; 2 wrong usage; 3 the data are not what the model reads; "
    "4 the model is unknown or its files are not right; 5 the output on disk belongs to another run; 6 a package is missing; "
    "130 interrupted."
)
EXIT_CODES: dict[type[ScfmError], int] = {
    InputError: 3,
    UnknownModelError: 4,
    CheckpointError: 4,
    DownloadError: 4,
    ResumeError: 5,
    MissingExtraError: 6,
}

FEATURES = {
    "symbol": "genes named by symbol",
    "ensembl": "genes named by Ensembl id",
    "locus": "genes named by locus",
    "region": "regions named chrom:start-end",
    "any": "features of any name",
}


class _WithTasks(TyperGroup):
    """The core's commands and those of the installed tasks, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, tasks last."""
        return [*super().list_commands(ctx), *(name.replace("_", "-") for name in tasks())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command of the core, or of a task."""
        own, name = super().get_command(ctx, cmd_name), cmd_name.replace("-", "_")
        if own is not None or name not in tasks():
            return own
        single = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
        single.command(name.replace("_", "-"), rich_help_panel="Tasks")(_command_of(name))
        return typer.main.get_command(single)


def _command_of(name: str) -> Callable[..., None]:
    """The function of a task; one that raises where it can't be imported, so that a broken plugin does not hide the others."""
    try:
        return find_task(name).command
    except ScfmError as error:
        problem = error

    def broken() -> None:
        raise problem

    broken.__doc__ = problem.found
    return broken


app = typer.Typer(
    name="scfm",
    cls=_WithTasks,
    help="Every single-cell foundation model behind one interface.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"scfm {version('scfm-sdk')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every single-cell foundation model behind one interface."""


def _size(parameters: int | None) -> str:
    if parameters is None:
        return "?"
    return f"{parameters / 1e6:,.1f} M" if parameters >= 1e6 else f"{parameters:,}"


@app.command()
def models(as_json: Json = False) -> None:
    """List the installed models."""
    from scfm.registry import cards

    found = cards()
    if as_json:
        print_json([card.model_dump() for card in found])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "what", "modality", "species", "size", "weights' licence"):
        table.add_column(column, overflow="fold")
    for card in found:
        table.add_row(
            card.name,
            card.title,
            "+".join(card.modality),
            ", ".join(card.species),
            _size(card.parameters),
            card.weights_licence,
        )
    Console().print(table)


@app.command()
def info(name: Annotated[str, typer.Argument(help="Name from scfm models.")], as_json: Json = False) -> None:
    """Show the card of a model: what it reads, where its weights are, licences, parity."""
    from scfm.registry import find

    adapter, card = find(name)
    if card is None:
        raise UnknownModelError(f"the adapter {adapter.family!r} has no card.")
    if as_json:
        print_json(card.model_dump())
        return
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{card.name}[/]  {card.title}")
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "paper": card.paper,
        "code": f"{card.code} ({card.code_licence})",
        "weights": f"{card.weights.repo or card.weights.elsewhere or 'shipped with scfm'} ({card.weights_licence})",
        "revision": card.weights.revision,
        "restricted": card.restricted,
        "species": ", ".join(card.species),
        "modality": ", ".join(card.modality),
        "reads": f"{card.input.values} of {FEATURES[card.input.genes]}",
        "size": _size(card.parameters),
        "dim": None if card.dim is None else str(card.dim),
        "provided by": adapter.distribution,
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    console.print(table)
    for file, digest in card.weights.files.items():
        console.print(f"  {file}  sha256 {digest}", highlight=False)
    if card.notes:
        console.print(Markdown(card.notes))


@app.command()
def check(
    model: Model,
    data: File,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    revision: Revision = None,
    adapter: Adapter = None,
    load_option: LoadOptions = None,
    as_json: Json = False,
) -> None:
    """Say whether data fit a model, and what matched, without embedding."""
    from scfm.loading import load
    from scfm.reading import check as check_data

    encoder = load(model, revision=revision, adapter=adapter, device="cpu", **load_options(load_option))
    report = check_data(encoder, data, layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)  # type: ignore[arg-type]
    print_json(report) if as_json else typer.echo(str(report))


@app.command()
def embed(
    model: Model,
    data: Files,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write: .h5ad (the input with obsm), .zarr or .npy.")
    ],
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    key_added: Annotated[str | None, typer.Option(help="Key in obsm, for .h5ad and .zarr. Default: X_<model>.")] = None,
    hidden_layer: Annotated[int | None, typer.Option(help="Read the states after this many layers.")] = None,
    pooling: Annotated[str | None, typer.Option(help="How tokens become a cell vector.")] = None,
    empty_cells: Annotated[str, typer.Option(help="Cells without any known gene: nan, embed or error.")] = "nan",
    batch_size: Annotated[str, typer.Option(help="Most cells in a step, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32 (exact), bfloat16, float16 or int8.")] = "float32",
    max_tokens: Annotated[
        int | None, typer.Option(help="Keep so many tokens a cell, the highest ranked or expressed: faster, not exact.")
    ] = None,
    device: Device = "auto",
    devices: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute on this device too, in a process of its own, e.g. cuda:0; repeatable. 'all': all CUDA devices."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: on the machines of a Ray cluster.", rich_help_panel="Ray")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: what the cluster has room for.", rich_help_panel="Ray")
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that each takes.", rich_help_panel="Ray")] = 0.0,
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs that each takes.", rich_help_panel="Ray")] = 1.0,
    address: Annotated[
        str | None,
        typer.Option(help="Of a running cluster, e.g. auto; default: one here.", rich_help_panel="Ray"),
    ] = None,
    option: TokenizerOptions = None,
    revision: Revision = None,
    adapter: Adapter = None,
    load_option: LoadOptions = None,
    resume: Annotated[bool, typer.Option(help="Continue an output that the same command began.")] = True,
    seed: Annotated[int, typer.Option(help="For models with random tokenization.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Embed cells and write the result as it goes; the same command continues an interrupted run."""
    from scfm.encoder import Request
    from scfm.engine import Run

    if engine not in ("local", "ray"):
        raise typer.BadParameter(f"{engine!r} is neither local nor ray", param_hint="--engine")
    size: Any = batch_size if batch_size == "auto" else _whole_number(batch_size)
    on_ray = engine == "ray"
    encoder = load_encoder(
        model,
        device="cpu" if on_ray else device,  # every worker moves its own
        option=option,
        load_option=load_option,
        revision=revision,
        adapter=adapter,
    )
    request = Request(hidden_layer=hidden_layer, pooling=pooling)
    run = Run(request, size, precision, empty_cells, max_tokens=max_tokens)  # type: ignore[arg-type]
    shared: dict[str, Any] = {
        "reading": {"layer": layer, "gene_column": gene_column, "map_genes": map_genes, "values": values},
        "key_added": key_added,
        "out": out,
        "resume": resume,
        "progress": False if quiet or as_json else None,
        "seed": seed,
    }
    files: Any = list(data) if len(data) > 1 else data[0]
    if on_ray:
        from scfm.distributed import embed_on_ray

        embedding = embed_on_ray(
            encoder,
            files,
            run,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            cpus_per_worker=cpus_per_worker,
            address=address,
            **shared,
        )
    else:
        from scfm.inference import embed as embed_data

        embedding = embed_data(encoder, files, run, devices=devices or None, **shared)
    if as_json:
        print_json(
            {
                "out": str(out),
                "cells": embedding.shape[0],
                "dim": embedding.shape[1],
                "model": encoder.name,
                "origin": encoder.origin,
            }
        )
    elif not quiet:
        typer.echo(f"{out}: {embedding.shape[0]:,} cells x {embedding.shape[1]} ({encoder.name})")


def _whole_number(text: str) -> int:
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is neither a whole number nor auto", param_hint="--batch-size")
    return int(text)


@app.command()
def finetune(
    model: Model,
    data: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the fine-tuned encoder to.")],
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            "-y",
            help="Column of obs to predict: numbers are regressed, others classified. With --kind: the batch of integration, "
            "the classes of contrastive learning.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="What to train for, if not for a column alone: masked_expression, contrastive, integration, classification or regression."
        ),
    ] = None,
    kind_option: Annotated[
        list[str] | None,
        typer.Option("--kind-option", "-K", help="Setting of --kind, e.g. -K share=0.4; repeatable."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="head, full, lora, encoder_adapter, token_adapter, prefix or drug_conditional.")
    ] = "lora",
    method_option: Annotated[
        list[str] | None,
        typer.Option("--method-option", "-M", help="Setting of the method, e.g. -M rank=16; repeatable."),
    ] = None,
    valid: Annotated[float, typer.Option(help="Share of the cells to hold out; 0: none.")] = 0.2,
    valid_data: Annotated[
        list[Path] | None, typer.Option(help="Held-out cells in files of their own, instead of a share; repeatable.")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Column of obs (donor, batch) whose values are on one side of the split only.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training cells, at most.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Cells in a step.")] = 16,
    learning_rate: Annotated[float | None, typer.Option(help="Highest rate. Default: depends on the method.")] = None,
    schedule: Annotated[
        str, typer.Option(help="Course of the rate: linear, cosine, constant or constant_with_warmup.")
    ] = "linear",
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better score; 0: never.")] = 3,
    metric: Annotated[
        str | None, typer.Option(help="Held-out score that decides which epoch is best. Default: the objective's.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Batches whose gradients make one step.")] = 1,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Compute layers again instead of keeping them: less memory."),
    ] = False,
    log: Annotated[
        list[str] | None, typer.Option(help="tensorboard (beside --checkpoints) or wandb; repeatable.")
    ] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Draw all classes as often.")] = False,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    option: TokenizerOptions = None,
    load_option: LoadOptions = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints; the same command continues an interrupted run.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue what the same command began in --checkpoints.")] = True,
    device: Device = "auto",
    revision: Revision = None,
    adapter: Adapter = None,
    seed: Annotated[int, typer.Option(help="Of the split, the order of cells and the first weights.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model to predict a column of obs (`scfm predict` applies it), or to embed another domain or several batches better."""
    from scfm.adaptation import method_of
    from scfm.finetuning import finetune as run
    from scfm.objectives import objective_named

    if kind is None and objective is None:
        raise typer.BadParameter("name a column of obs, or a --kind", param_hint="--objective")
    if kind is None and kind_option:
        raise typer.BadParameter("these are settings of a --kind", param_hint="--kind-option")
    wanted: Any = objective
    if kind is not None:
        wanted = objective_named(kind, objective, **dict(named_value(text) for text in kind_option or ()))
    how = method_of(method, **dict(named_value(text) for text in method_option or ()))
    encoder = load_encoder(
        model, device=device, option=option, load_option=load_option, revision=revision, adapter=adapter
    )
    held_out: Any = list(valid_data) if valid_data else (valid or None)
    tuned = run(
        encoder,
        list(data) if len(data) > 1 else data[0],
        wanted,
        method=how,
        valid=held_out,
        groups=groups,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        patience=patience or None,
        metric=metric,
        accumulate=accumulate,
        gradient_checkpointing=gradient_checkpointing,
        log=log,
        balanced=balanced,
        precision=precision,  # type: ignore[arg-type]
        layer=layer,
        gene_column=gene_column,
        map_genes=map_genes,
        values=values,  # type: ignore[arg-type]
        checkpoints=checkpoints,
        resume=resume,
        progress=False if quiet or as_json else None,
        seed=seed,
    )
    tuned.save(out)
    summary = {
        "out": str(out),
        "model": tuned.name,
        "target": tuned.target.kind,
        "trained_cells": len(tuned.split.train),
        "held_out_cells": len(tuned.split.valid),
        "trainable": tuned.record["trainable"],
        "metrics": tuned.metrics,
    }
    if as_json:
        print_json(summary)
    elif not quiet:
        share = tuned.record["trainable"]
        typer.echo(
            f"{out}: {tuned.name}, {share['parameters']:,} of {share['of']:,} parameters trained on {len(tuned.split.train):,} cells"
        )
        for name, value in tuned.metrics.items():
            typer.echo(f"  {name} {value:.4g}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Folder that scfm finetune wrote.")],
    data: Files,
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write, .csv or .tsv.")],
    base: Annotated[
        str | None, typer.Option(help="Model or folder it was made from, where that is not found where it was.")
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    map_genes: MapGenes = False,
    values: ValuesOption = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="For models with random tokenization.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict with a fine-tuned model: one row a cell."""
    from scfm.finetuned import FineTuned
    from scfm.loading import load

    if out.suffix not in (".csv", ".tsv"):
        raise typer.BadParameter(f"{out} ends in neither .csv nor .tsv", param_hint="--out")
    encoder = load(model, device=device, **({} if base is None else {"base": base}))
    if not isinstance(encoder, FineTuned):
        raise InputError(f"{model} is not fine-tuned; it predicts nothing.", "Make one: scfm finetune --help")
    table = encoder.predict(
        list(data) if len(data) > 1 else data[0],
        layer=layer,
        gene_column=gene_column,
        map_genes=map_genes,
        values=values,  # type: ignore[arg-type]
        progress=False if quiet or as_json else None,
        seed=seed,
    )
    table.to_csv(out, sep="," if out.suffix == ".csv" else "\t", index_label="cell")
    if as_json:
        print_json({"out": str(out), "cells": len(table), "columns": list(table.columns), "model": encoder.name})
    elif not quiet:
        typer.echo(f"{out}: {len(table):,} cells ({encoder.name})")


add_commands(app)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder that scfm finetune wrote, or save() of any model.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Whether a new repository is private.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, made if it does not exist. Default: main.")] = None,
    as_json: Json = False,
) -> None:
    """Put a saved model onto the Hugging Face hub; every command then takes owner/name as the model."""
    from scfm.checkpoint import FINETUNED, SAVED
    from scfm.hub import upload

    if not any((folder / name).is_file() for name in (FINETUNED, SAVED)):
        raise InputError(f"{folder} holds no model that scfm has saved.", "Make one: scfm finetune --help")
    commit = upload(folder, repo, private=private, revision=revision)
    if as_json:
        print_json({"repo": repo, "revision": revision or "main", "commit": commit})
    else:
        typer.echo(f"{repo}: {commit}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Embed real PBMCs with the shipped model, transfer labels, and draw it (no internet needed)."""
    from scfm.recipes.demo import run

    result = run(out)
    print_json(result) if as_json else typer.echo(str(result))


def main() -> None:
    """Run the command; errors of scfm are printed without a traceback and decide the exit code."""
    import warnings

    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        app(standalone_mode=True)
    except ScfmError as error:
        code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(code)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was written is usable, and the same command continues it", err=True)
        sys.exit(130)


def _print_warning(message: Warning | str, *_: object) -> None:
    typer.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()
