"""The page of all models, and one for each adapter, made from cards and classes."""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from families import (
    ROOT,
    Family,
    cells_a_second,
    code_link,
    difference,
    family_of,
    few,
    millions,
    paper_link,
    rate,
    short_licence,
    table,
    unique,
)


def models_page(found: list[Family]) -> str:
    """All cards in one table."""
    speed = cells_a_second()
    rows = [
        (
            f"[`{card.name}`](models/{f.name}.md)<br>{card.title}",
            f"{', '.join(card.modality)}<br>{few(card.species)}",
            millions(card.parameters),
            rate(speed.get(card.name)),
            f"{card.input.values}<br>{card.input.genes}",
            ", ".join(name.replace("_", " ") for name in f.capabilities if name != "embed"),
            f"code: {card.code_licence}<br>weights: {short_licence(card)}",
            f.largest_difference,
        )
        for f in found
        for card in f.cards
    ]
    head = (
        "model",
        "data, species",
        "parameters",
        "cells/s",
        "reads",
        "can, beside embed",
        "licences",
        "largest difference",
    )
    toc = "\n".join(f"models/{f.name}" for f in found)
    return f"""---
hide-toc: true
---

# Models

`scfm.load("<name>")` loads any of these. The page is made from the models' cards; `scfm models` and `scfm info <name>` show the same.

- **cells/s**: blood cells of some 800 expressed genes embedded in a second on two CPU cores, in float32, with random weights of the
  published sizes. Rough figures, most of them from the CPU time on a busy machine (`benchmarks/results/models.md`).
- **reads**: unit of the values, and kind of gene identifier.
- **can**: capabilities of the adapter. A checkpoint without the needed part has fewer, and says so.
- **licences**: as the authors state them, "unverified" where we found no statement. Weights of **restricted** use are in bold.
- **largest difference** between our output and that of the authors' code, over all recorded arrays:
  [what was compared](../verification.md).

{table(head, rows)}

```{{toctree}}
:hidden:

{toc}
```
"""


# The page of a family


def family_page(f: Family) -> str:
    """Everything about the variants of one adapter."""
    first = f.cards[0]
    module = import_module(f.cls.__module__)
    parts = [
        f"# {f.name}",
        inspect.cleandoc(module.__doc__ or ""),
        _restrictions(f),
        "## Load",
        _load_examples(f),
        "## Variants",
        _variants(f),
        "## Input",
        _input(f, first),
        "## Options",
        _options(f, module),
        "## Licences",
        _licences(f),
        "## Parity",
        _parity(f),
        "## Notes",
        _notes(f),
        "## Class",
        _class(f),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _licences(f: Family) -> str:
    """Variants with the same licences and paper share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for c in f.cards:
        facts = (f"{code_link(c.code)} ({c.code_licence})", c.weights_licence, paper_link(c.paper))
        rows.setdefault(facts, []).append(f"`{c.name}`")
    head = ("code", "weights", "paper") if len(rows) == 1 else ("variants", "code", "weights", "paper")
    return table(head, [facts if len(rows) == 1 else (", ".join(names), *facts) for facts, names in rows.items()])


def _restrictions(f: Family) -> str:
    texts = unique(card.restricted for card in f.cards if card.restricted)
    return "\n\n".join(f":::{{warning}}\n**Restricted use:** {text}\n:::" for text in texts)


def _load_examples(f: Family) -> str:
    lines = ["import scfm", ""]
    for card in f.cards[:1]:
        if card.weights.repo or card.weights.package_data:
            lines.append(f'encoder = scfm.load("{card.name}")')
        else:
            lines.append('encoder = scfm.load("./folder_with_the_authors_files")')
    others = [card.name for card in f.cards[1:] if card.weights.repo or card.weights.package_data]
    if others:
        lines.append(f'encoder = scfm.load("{others[0]}")    # another variant')
    lines.append('embedding = encoder.embed("cells.h5ad")')
    text = "```python\n" + "\n".join(lines) + "\n```"
    elsewhere = unique(card.weights.elsewhere for card in f.cards if card.weights.elsewhere)
    return "\n\n".join([text, *elsewhere])


def _where(card: Any) -> str:
    w = card.weights
    if w.package_data is not None:
        return "nothing to load" if "fitted" in card.weights_licence else "shipped with scfm"
    if w.repo is None:
        return "a folder you downloaded"
    inside = f", folder `{w.folder}`" if w.folder else ""
    pinned = f" at `{w.revision[:7]}`" if w.revision else " (no revision pinned)"
    checked = sum(w.digest(name) is not None for name in w.files)
    sums = f"; SHA-256 known for {checked} of {len(w.files)} files" if w.files else ""
    return f"[{w.repo}](https://huggingface.co/{w.repo}){pinned}{inside}{sums}"


def _variants(f: Family) -> str:
    return table(
        ("name", "what", "species", "parameters", "dim", "weights"),
        [
            (
                f"`{c.name}`"
                + "".join(f", `{alias}`" for alias in c.aliases)
                + (" (default)" if c.default and len(f.cards) > 1 else ""),
                c.title,
                ", ".join(c.species),
                millions(c.parameters),
                "" if c.dim is None else str(c.dim),
                _where(c),
            )
            for c in f.cards
        ],
    )


VALUES = {"counts": "raw counts", "lognorm": "log1p of counts per 10,000", "any": "counts or normalised values"}
GENES = {
    "symbol": "gene symbols",
    "ensembl": "Ensembl gene ids without version",
    "locus": "gene locus ids",
    "region": "genomic regions (cCREs)",
    "any": "any identifiers",
}


def _input(f: Family, card: Any) -> str:
    lines = [
        f"- Values: {VALUES.get(card.input.values, card.input.values)}.",
        f"- Genes: {GENES.get(card.input.genes, card.input.genes)}, of {', '.join(card.species) or 'any species'}.",
    ]
    if card.input.obs:
        lines.append(f"- Columns of `obs` it can use: {', '.join(f'`{name}`' for name in card.input.obs)}.")
    if card.input.sees_other_cells:
        lines.append(
            "- **Cells see each other**: the embedding of a cell depends on the cells of its group. Keep groups whole."
        )
    lines.append("\nSee [Input](../../input.md) for what is checked and what is refused.")
    return "\n".join(lines)


def _options(f: Family, module: Any) -> str:
    cls: Any = f.cls
    rows = [
        ("`embed(pooling=)`", ", ".join(f"`{p}`" for p in cls.poolings) or "one way only"),
        (
            "`gene_embeddings(kind=)`",
            ", ".join(f"`{k}`" for k in cls.gene_kinds) if "gene_embeddings" in f.capabilities else "has none",
        ),
        ("`scfm.load(name, ...)`", ", ".join(f"`{name}=`" for name in sorted(cls.load_options)) or "none"),
    ]
    for tokenizer in _tokenizers(module):
        settings = [
            f"`{field.name}={field.default!r}`" if field.default is not MISSING else f"`{field.name}`"
            for field in fields(tokenizer)
            if field.init and field.name != "vocabulary"
        ]
        rows.append((f"`with_options()`: {tokenizer.__name__}", ", ".join(settings)))
    note = (
        "The first of several choices is the authors' default. Defaults shown are the tokenizer's; "
        "the adapter may set others, which `encoder.tokenizer.settings()` tells."
    )
    return f"{table(('where', 'choices'), rows)}\n\n{note}"


def _tokenizers(module: Any) -> list[Any]:
    from scfm.tokenizers import Tokenizer

    found = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Tokenizer)]
    return [value for value in found if is_dataclass(value)]


def _parity(f: Family) -> str:
    if f.own:
        return "This model is ours: there is no original to compare with."
    folders = sorted(
        path.parent
        for path in (ROOT / "tests" / "parity").glob("*/outputs.py")
        if family_of(path.parent.name) == f.name
    )
    if not folders:
        return "No outputs of the authors' code have been recorded yet."
    lines = [
        "Largest absolute difference between an output of ours and the same array recorded from the authors' code, "
        "on a small checkpoint with random "
        "weights in the authors' file format. See [what this shows and what not](../../verification.md)."
    ]
    for folder in folders:
        lines.append(f"**{folder.name}** (`tests/parity/{folder.name}`)")
        arrays = f.fixtures.get(folder.name)
        if arrays:
            lines.append(
                table(
                    ("array", "difference"),
                    [(f"`{name}`", difference(value)) for name, value in sorted(arrays.items())],
                )
            )
        else:
            lines.append("Not measured yet.")
        reasons = _constant(folder / "outputs.py", "NOT_COMPARED")
        if reasons:
            lines.append("Recorded and not compared:")
            lines.append("\n".join(f"- `{name}`: {reason}" for name, reason in reasons.items()))
    return "\n\n".join(lines)


def _constant(path: Path, name: str) -> dict[str, str]:
    """A dict literal of a module, without importing it; empty if it is none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                return {}
    return {}


def _notes(f: Family) -> str:
    by_text: dict[str, list[str]] = {}
    for card in f.cards:
        if card.notes.strip():
            by_text.setdefault(card.notes.strip(), []).append(card.name)
    if not by_text:
        return "None."
    return "\n\n".join(f"**{', '.join(names)}**\n\n{text}" for text, names in by_text.items())


FACTS = {"build", "from_checkpoint", "recognizes", "gene_vectors", "restore"}


def _class(f: Family) -> str:
    from scfm.encoder import CellEncoder

    own = [
        name
        for name, value in vars(f.cls).items()
        if not name.startswith("_")
        and name not in FACTS
        and (name not in vars(CellEncoder) or callable(value))
        and name != "Config"
        and (callable(getattr(value, "__func__", value)) or isinstance(value, property))
    ]
    members = f":members: {', '.join(own)}" if own else ":no-members:"
    path = f"{f.cls.__module__}.{f.cls.__name__}"
    inherited = (
        "Beside what every encoder has ({py:class}`~scfm.encoder.CellEncoder`):"
        if own
        else "What every encoder has: {py:class}`~scfm.encoder.CellEncoder`."
    )
    return f"{inherited}\n\n```{{eval-rst}}\n.. autoclass:: {path}\n   {members}\n```"
