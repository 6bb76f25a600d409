"""The card of a fine-tuned encoder: README.md of its folder, with the header that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from scfm.errors import listing

if TYPE_CHECKING:
    from scfm.finetuned import FineTuned

__all__ = ["card_text"]

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def card_text(tuned: FineTuned) -> str:
    """How it was made, by how many cells, and how good it is on those held out."""
    share, base = tuned.record["trainable"], tuned.record["base"]
    card = tuned.base.card
    lines = [
        *_header(base["origin"]),
        f"# {tuned.card.title}",
        "",
        f"- base: {card.name}, tensors sha256 `{base['tensors']}`",
        f"- licence of the base's weights: {card.weights_licence}; it may bind this folder too",
        *([f"- restricted: {card.restricted}"] if card.restricted else []),
        f"- method: {tuned.record['method']}",
        f"- objective: {tuned.target.kind}" + (f" of {listing(tuned.target.columns)}" if tuned.target.columns else ""),
        f"- trained: {share['parameters']:,} of {share['of']:,} parameters ({share['share']:.2%})",
        f"- cells: {len(tuned.split.train):,} trained on, {len(tuned.split.valid):,} held out, "
        + (f"whole values of obs[{tuned.split.groups!r}]" if tuned.split.groups else "no groups"),
        *(f"- {name}: {value:.4g}" for name, value in tuned.metrics.items()),
        "",
        "```python",
        'encoder = scfm.load("./this_folder")     # or "owner/name" of its repository on the hub',
        f'encoder.{"predict" if tuned.target.predicts else "embed"}("cells.h5ad")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _header(origin: dict[str, str]) -> list[str]:
    """YAML that the hub reads; the base is named where it is a repository there."""
    source = origin.get("source", "")
    named = [f"base_model: {json.dumps(source)}"] if REPOSITORY.fullmatch(source) else []
    return ["---", "library_name: scfm", *named, "license: other", "tags: [single-cell, scfm]", "---", ""]
