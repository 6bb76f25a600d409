"""Arguments and options that the commands of `scfm` share: the core's own, and those of tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scfm.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm.encoder import CellEncoder
    from scfm.results import TaskResult

__all__ = [
    "Adapter",
    "Device",
    "File",
    "Files",
    "GeneColumn",
    "Json",
    "Layer",
    "LoadOptions",
    "MapGenes",
    "Model",
    "Plot",
    "Quiet",
    "Result",
    "Revision",
    "Seed",
    "TokenizerOptions",
    "ValuesOption",
    "load_encoder",
    "load_options",
    "named_value",
    "print_json",
    "read_adata",
    "show",
]

Model = Annotated[
    str,
    typer.Argument(help="Name from [bold]scfm models[/], ./folder with the authors' files, or org/repo on the hub."),
]
File = Annotated[Path, typer.Argument(help="An .h5ad file or .zarr folder.")]
Files = Annotated[
    list[Path], typer.Argument(help="One or more .h5ad files or .zarr folders, embedded one after another.")
]
Layer = Annotated[str | None, typer.Option(help="Matrix to read: a key of layers, or 'raw'. Default: X.")]
GeneColumn = Annotated[str | None, typer.Option(help="Column of var with the gene identifiers. Default: var_names.")]
MapGenes = Annotated[
    bool, typer.Option("--map-genes", help="Map symbols <-> Ensembl ids with the shipped GENCODE tables.")
]
ValuesOption = Annotated[
    str | None,
    typer.Option("--values", help="What the matrix holds: counts, lognorm or any. Default: what the model reads."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub repository.")]
Adapter = Annotated[str | None, typer.Option(help="Adapter family, where a folder does not tell.")]
LoadOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--load", "-L", help="Option of the model's loading, e.g. -L species=mouse or -L weights=best.pt; repeatable."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, for machines.")]

Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")]
Result = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Write the result: .json (everything), .csv or .tsv (the main table)."),
]
Plot = Annotated[Path | None, typer.Option("--plot", help="Write the picture: .png, .pdf or .svg.")]
TokenizerOptions = Annotated[
    list[str] | None, typer.Option("--option", "-O", help="Tokenizer option, e.g. -O context=600; repeatable.")
]


def print_json(content: Any) -> None:
    """A value as JSON on stdout."""
    from scfm.provenance import plain

    typer.echo(json.dumps(plain(content), indent=1))


def load_options(texts: list[str] | None) -> dict[str, Any]:
    """Values of --load, for `scfm.load`."""
    options = dict(named_value(text) for text in texts or ())
    if own := {"revision", "adapter", "device"} & set(options):
        raise typer.BadParameter(f"write --{min(own)} instead", param_hint="--load")
    return options


def named_value(text: str) -> tuple[str, Any]:
    """name=value, the value read as YAML (numbers, true, null, lists)."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not name=value", param_hint="--option")
    parsed = yaml.safe_load(value)
    return name, tuple(parsed) if isinstance(parsed, list) else parsed


def load_encoder(
    model: str,
    *,
    device: str = "auto",
    option: list[str] | None = None,
    load_option: list[str] | None = None,
    revision: str | None = None,
    adapter: str | None = None,
) -> CellEncoder:
    """The encoder that a command names, with its tokenizer options."""
    from scfm.loading import load

    encoder = load(model, revision=revision, adapter=adapter, device=device, **load_options(load_option))
    return encoder.with_options(**dict(named_value(text) for text in option)) if option else encoder


def read_adata(path: Path) -> AnnData:
    """An .h5ad file or .zarr folder, in memory.

    Raises
    ------
    InputError
        It is neither, or can't be read.
    """
    import anndata

    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"{path} is neither an .h5ad file nor a .zarr folder.", "Convert it: adata.write_h5ad(path).")
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error


def show(result: TaskResult, *, out: Path | None, plot: Path | None, as_json: bool, quiet: bool = False) -> None:
    """Write and print a task's result as its command was asked to.

    Raises
    ------
    typer.BadParameter
        `out` has another ending.
    """
    if out is not None:
        if out.suffix == ".json":
            result.to_json(out)
        elif out.suffix in (".csv", ".tsv"):
            result.table.to_csv(out, sep="," if out.suffix == ".csv" else "\t")
        else:
            raise typer.BadParameter(f"{out} ends in neither .json, .csv nor .tsv", param_hint="--out")
    if plot is not None:
        result.plot(save=plot)
    if as_json:
        typer.echo(result.to_json())
    elif not quiet:
        typer.echo(result.summary())
