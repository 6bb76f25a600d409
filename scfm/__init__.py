"""scfm: every single-cell foundation model behind one interface.

>>> import scfm
>>> encoder = scfm.load("mini")                # doctest: +SKIP
>>> Z = encoder.embed(adata)                   # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scfm import errors, genes, tasks
    from scfm.adaptation import DrugConditional, EncoderAdapter, Full, Head, LoRA, Prefix, TokenAdapter
    from scfm.cards import ModelCard
    from scfm.encoder import Capability, CellEncoder, Encoded
    from scfm.finetuned import FineTuned
    from scfm.finetuning import finetune
    from scfm.loading import LicenceWarning, load
    from scfm.multi import MultiEmbedding, embed_multi
    from scfm.objectives import Classification, Contrastive, Integration, MaskedExpression, MultiLabel, Regression
    from scfm.objectives.drug_response import DrugResponse
    from scfm.objectives.gene_response import GeneResponse
    from scfm.reading import InputReport, InputWarning, check
    from scfm.registry import cards as models
    from scfm.soma import SomaQuery

__all__ = [
    "finetune",
    "DrugConditional",
    "DrugResponse",
    "EncoderAdapter",
    "GeneResponse",
    "Prefix",
    "TokenAdapter",
    "Regression",
    "MultiLabel",
    "MaskedExpression",
    "LoRA",
    "Head",
    "Full",
    "FineTuned",
    "Integration",
    "Contrastive",
    "Classification",
    "Capability",
    "CellEncoder",
    "Encoded",
    "InputReport",
    "InputWarning",
    "LicenceWarning",
    "ModelCard",
    "MultiEmbedding",
    "SomaQuery",
    "check",
    "embed_multi",
    "errors",
    "genes",
    "load",
    "models",
    "tasks",
]

_HOME = {
    "finetune": "scfm.finetuning",
    "DrugConditional": "scfm.adaptation",
    "DrugResponse": "scfm.objectives.drug_response",
    "GeneResponse": "scfm.objectives.gene_response",
    "EncoderAdapter": "scfm.adaptation",
    "Prefix": "scfm.adaptation",
    "TokenAdapter": "scfm.adaptation",
    "Regression": "scfm.objectives",
    "MultiLabel": "scfm.objectives",
    "MaskedExpression": "scfm.objectives",
    "LoRA": "scfm.adaptation",
    "Head": "scfm.adaptation",
    "Full": "scfm.adaptation",
    "FineTuned": "scfm.finetuned",
    "Integration": "scfm.objectives",
    "Contrastive": "scfm.objectives",
    "Classification": "scfm.objectives",
    "Capability": "scfm.encoder",
    "CellEncoder": "scfm.encoder",
    "Encoded": "scfm.encoder",
    "InputReport": "scfm.reading",
    "InputWarning": "scfm.reading",
    "LicenceWarning": "scfm.loading",
    "ModelCard": "scfm.cards",
    "MultiEmbedding": "scfm.multi",
    "SomaQuery": "scfm.soma",
    "check": "scfm.reading",
    "embed_multi": "scfm.multi",
    "load": "scfm.loading",
    "models": "scfm.registry:cards",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import scfm` itself stays light."""
    if name == "__version__":
        return import_module("importlib.metadata").version("scfm-sdk")
    if name in ("errors", "genes", "tasks"):
        return import_module(f"scfm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'scfm' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
