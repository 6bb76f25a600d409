"""The commands `scfm train` and `scfm recipes`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["add_commands"]

Name = Annotated[str, typer.Argument(help="Name from [bold]scfm recipes[/], or path of a YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(help="Values to set, e.g. data.train=cells.h5ad train.epochs=3.", metavar="KEY=VALUE..."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, for machines.")]

recipes = typer.Typer(name="recipes", help="List, show and copy recipes of training.", rich_markup_mode="rich")


def add_commands(app: typer.Typer) -> None:
    """Add them to the command `scfm`."""
    app.command()(train)
    app.add_typer(recipes)


def _echo_json(content: Any) -> None:
    from scfm.provenance import plain

    typer.echo(json.dumps(plain(content), indent=1, default=str))


def train(
    recipe: Name,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done: data, split, trained share, steps, memory.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")] = False,
    as_json: Json = False,
) -> None:
    """Train as a recipe says; the same command continues an interrupted run."""
    from scfm.plans import read, settings_of

    chosen = read(recipe, settings_of(settings or ()))
    if dry_run:
        plan = chosen.plan()
        _echo_json({"title": plan.title, **plan.facts}) if as_json else typer.echo(str(plan))
        return
    summary = chosen.run(progress=False if quiet or as_json else None)
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks
        return
    if as_json:
        _echo_json(summary)
    elif not quiet:
        cells = f", trained on {summary['trained_cells']:,} {chosen.unit}" if "trained_cells" in summary else ""
        typer.echo(f"{summary['out']}: {summary['model']}{cells}")
        for name, value in summary["metrics"].items():
            typer.echo(f"  {name} {value:.4g}")
        if "table" in summary:
            typer.echo(summary["table"])


@recipes.callback(invoke_without_command=True)
def _list(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes that ship with scfm; without a command this is what is done."""
    if context.invoked_subcommand is not None:
        return
    from scfm.plans import parse, shipped

    found = {name: parse(path.read_text(encoding="utf-8"), name) for name, path in shipped().items()}
    if as_json:
        _echo_json([{"name": name, "kind": recipe["kind"], "title": recipe["title"]} for name, recipe in found.items()])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "kind", "what"):
        table.add_column(column, overflow="fold")
    for name, recipe in found.items():
        table.add_row(name, recipe["kind"], recipe["title"])
    Console().print(table)


@recipes.command()
def show(recipe: Name) -> None:
    """Print a recipe."""
    from scfm.plans import find

    typer.echo(find(recipe).read_text(encoding="utf-8").rstrip())


@recipes.command()
def copy(
    recipe: Name, to: Annotated[Path | None, typer.Argument(help="File or folder. Default: the working folder.")] = None
) -> None:
    """Copy a recipe out, to edit it."""
    from scfm.errors import InputError
    from scfm.plans import find

    source = find(recipe)
    target = to or Path()
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise InputError(f"{target} exists.", "Name another file.")
    shutil.copyfile(source, target)
    typer.echo(f"{target}: scfm train {target} ...")


@recipes.command()
def cluster_files(to: Annotated[Path, typer.Argument(help="Folder.")] = Path()) -> None:
    """Copy the files for several processes and machines: accelerate (ddp.yaml, fsdp.yaml) and SLURM (slurm.sbatch)."""
    from scfm.plans import cluster_files

    to.mkdir(parents=True, exist_ok=True)
    for source in cluster_files():
        if not (to / source.name).exists():
            shutil.copyfile(source, to / source.name)
        typer.echo(str(to / source.name))


@recipes.command()
def keys(recipe: Name, settings: Settings = None) -> None:
    """Print all keys of a recipe with their values."""
    import yaml

    from scfm.plans import read, settings_of

    content = read(recipe, settings_of(settings or ())).model_dump(mode="json")
    typer.echo(yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True).rstrip())
