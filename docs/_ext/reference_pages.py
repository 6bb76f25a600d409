"""Command line, error tree, exit codes and API, made from the code."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from families import table
from run import Page

COMMANDS = ("", "models", "info", "check", "embed", "finetune", "predict", "demo")
API = {
    "Use a model": (
        "scfm",
        "scfm.loading",
        "scfm.encoder",
        "scfm.reading",
        "scfm.inference",
        "scfm.engine",
        "scfm.cards",
        "scfm.registry",
    ),
    "Fine-tune": (
        "scfm.finetuning",
        "scfm.finetuned",
        "scfm.heads",
        "scfm.adaptation",
        "scfm.molecules",
        "scfm.splits",
        "scfm.training",
    ),
    "Data": (
        "scfm.cells",
        "scfm.genes",
        "scfm.gene_tables",
        "scfm.orthologs",
        "scfm.data",
        "scfm.sinks",
        "scfm.journal",
        "scfm.soma",
        "scfm.distributed",
        "scfm.provenance",
    ),
    "Write an adapter": ("scfm.checkpoint", "scfm.tokenizers", "scfm.nn", "scfm.hub", "scfm.testing"),
    "Results": (
        "scfm.metrics",
        "scfm.neighbours",
        "scfm.clustering",
        "scfm.embeddings",
        "scfm.index",
        "scfm.results",
        "scfm.task",
        "scfm.plotting",
    ),
    "Networks": ("scfm.tasks.regulation", "scfm.grn", "scfm.grn.readout", "scfm.grn.result", "scfm.metrics.edges"),
    "Drugs and perturbed genes": (
        "scfm.perturbation.drugs",
        "scfm.perturbation.drug_splits",
        "scfm.perturbation.screen",
        "scfm.perturbation.screen_scores",
        "scfm.objectives.drug_response",
        "scfm.objectives.gene_response",
    ),
    "Tasks": (
        "scfm.tasks.annotation",
        "scfm.tasks.integration",
        "scfm.tasks.comparison",
        "scfm.tasks.search",
        "scfm.tasks.perturbation",
        "scfm.tasks.perturbation_evaluation",
        "scfm.tasks.regulation",
        "scfm.tasks.gene_programs",
        "scfm.tasks.accessibility_imputation",
        "scfm.tasks.region_knockout",
        "scfm.tasks.region_gene_links",
        "scfm.adapters.student.task",
    ),
    "Errors": ("scfm.errors",),
}


def cli_page() -> str:
    """The help of every command."""
    from scfm.task import tasks

    with Page("cli") as page:
        commands = [*COMMANDS, *(name.replace("_", "-") for name in tasks())]
        helps = {command: page.command(f"{command} --help".strip()) for command in commands}
    parts = []
    for command, text in helps.items():
        parts.append(f"## {f'scfm {command}'.strip()}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def error_tree() -> str:
    """The tree drawn at the top of scfm.errors."""
    from scfm import errors

    lines = inspect.cleandoc(errors.__doc__ or "").splitlines()
    drawn = [line[4:] for line in lines if line.startswith("    ")]
    return "```text\n" + "\n".join(drawn) + "\n```\n"


def exit_codes() -> str:
    """Exit codes of the command, as its help states them."""
    from scfm.cli import EPILOG, EXIT_CODES

    kinds: dict[int, list[str]] = {}
    for kind, code in EXIT_CODES.items():
        kinds.setdefault(code, []).append(f"`{kind.__name__}`")
    rows = []
    for item in EPILOG.partition(":")[2].rstrip(".").split(";"):
        code, _, meaning = item.strip().partition(" ")
        rows.append((code, meaning, ", ".join(kinds.get(int(code), []))))
    return table(("code", "meaning", "errors"), rows) + "\n"


def api_pages() -> dict[str, str]:
    """Module -> page, of the modules that exist."""
    pages = {}
    index = ["# API\n\nMade from the docstrings.\n"]
    for title, modules in API.items():
        there = [module for module in modules if find_spec(module) is not None]
        if not there:
            continue
        index.append(f"## {title}\n")
        rows = []
        for module in there:
            pages[module] = package_page() if module == "scfm" else module_page(module)
            summary = (inspect.getdoc(import_module(module)) or "").partition("\n")[0].replace("``", "`")
            rows.append((f"[`{module}`](api/{module}.md)", summary))
        index.append(table(("module", "what"), rows) + "\n")
    toc = "\n".join(f"api/{module}" for module in pages)
    pages["index"] = "\n".join(index) + f"\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n"
    return pages


def package_page() -> str:
    """The names that `import scfm` gives, and where they are described."""
    import scfm

    rows = []
    for name in scfm.__all__:
        value = getattr(scfm, name)
        if inspect.ismodule(value):
            page = "../../tasks.md" if value.__name__ == "scfm.tasks" else f"{value.__name__}.md"
            rows.append((f"[`scfm.{name}`]({page})", (inspect.getdoc(value) or "").partition("\n")[0]))
            continue
        role = "class" if inspect.isclass(value) else "func"
        target = f"{value.__module__}.{value.__name__}"
        rows.append((f"{{py:{role}}}`scfm.{name} <{target}>`", (inspect.getdoc(value) or "").partition("\n")[0]))
    intro = "Names of the package itself. Each is imported when it is first used, so that `import scfm` is light."
    return f"# scfm\n\n{intro}\n\n{table(('name', 'what'), rows)}\n"


def module_page(name: str) -> str:
    """A module's own public names; those it passes on from elsewhere are linked."""
    module = import_module(name)
    public = list(getattr(module, "__all__", [key for key in vars(module) if not key.startswith("_")]))
    package = hasattr(module, "__path__")

    def home(key: str) -> str:
        return getattr(getattr(module, key), "__module__", name)

    own = [key for key in public if home(key) == name or (package and home(key).startswith(f"{name}."))]
    own = [key for key in own if _documented(module, key)]
    passed_on = [key for key in public if key not in own and home(key).startswith("scfm") and home(key) != name]
    members = f"   :members: {', '.join(own)}\n" if own else "   :no-members:\n"
    undocumented = (
        "   :undoc-members:\n   :exclude-members: model_config, model_post_init\n" if name == "scfm.cards" else ""
    )
    text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{members}{undocumented}```\n"
    if passed_on:
        items = [
            f"`{key}` ([`{home(key)}`]({home(key)}.md))" if any(home(key) in m for m in API.values()) else f"`{key}`"
            for key in passed_on
        ]
        text += f"\nAlso importable from here: {', '.join(items)}.\n"
    return text


def _documented(module: Any, key: str) -> bool:
    """Classes and functions always; constants where a docstring follows them."""
    value = getattr(module, key)
    if inspect.isclass(value) or callable(value):
        return True
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(t, ast.Name) and t.id == key for t in targets):
            return (
                isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            )
    return False
