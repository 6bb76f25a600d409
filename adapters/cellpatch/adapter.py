"""CellPatch (Wu et al. 2024, bioRxiv): genes with their values, read by 64 learned patches.

Original code: github.com/HanwenZhu98/CellPatch at 975cd69 (all rights reserved; nothing of it is used here). Differs from it: padding is
masked, so that a cell does not depend on its batch; genes outside the vocabulary are dropped instead of getting untrained vectors
(``with_options(padding="upstream", group_size=..., unknown="upstream")`` does as the original).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor

from scfm.adapters.cellpatch.network import CellPatchConfig, CellPatchNetwork
from scfm.adapters.cellpatch.tokenizer import PatchTokenizer
from scfm.adapters.cellpatch.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint, KeyMap
from scfm.encoder import Capability, CellEncoder
from scfm.genes import Vocabulary

GENES = "gene2tok.json"
ARGS = "_args.json"
RESTRICTED = (
    "all rights are reserved by its authors (Wulab, Peking University); no licence for code or weights was published"
)


class CellPatch(CellEncoder):
    """Pre-trained and fine-tuned (annotation) checkpoints of CellPatch's PathFormer.

    Load options
    ------------
    heads
        Attention heads, where no `*_args.json` tells; 2 by default.
    project_out
        Whether a fine-tuned classifier reads the projected patches; the file holds the same tensors in both cases. False by default.
    """

    network: CellPatchNetwork
    tokenizer: PatchTokenizer
    Config = CellPatchConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.EXPRESSION})
    poolings = ("flat", "projected")
    load_options: ClassVar = frozenset({"heads", "project_out"})

    FINE_TUNING: ClassVar[dict[str, Any]] = {"clip": 5.0, "whole": True}
    """Tokenizer options of the authors' fine-tuning, the default of fine-tuned checkpoints."""

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """gene2tok.json beside a file with patches and genes."""
        if not checkpoint.has(GENES):
            return False
        return {"pathway_token", "count2vector.weight", "gene2vector.weight"} <= _weights(checkpoint).keys(KEYS.strip)

    @classmethod
    def build(cls, config: CellPatchConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tuned = cls.FINE_TUNING if config.classes else {}
        tokenizer = PatchTokenizer(vocabulary, rows=config.genes, **tuned)
        return cls(config=config, network=CellPatchNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read gene2tok.json, the arguments where they are, and the weights; the parts present decide the kind of checkpoint."""
        config = _config(_weights(checkpoint))
        vocabulary = Vocabulary.from_index(
            {"<pad>": 0, **checkpoint.json(GENES)}, ids="symbol", species=("human",), special={"pad": "<pad>"}
        )
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        unused: dict[str, str | tuple[str, ...] | None] = {}
        if not config.decoder_layers:  # fine-tuning leaves the decoder out but for this
            unused["decoder_reverse_projection.{p}"] = None
        if not config.project_out:
            unused |= {"lp_linear_probe_0.{p}": None, "lp_norm.{p}": None}
        checkpoint.load_into(encoder.network, KeyMap({**KEYS.names, **unused}, KEYS.strip))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene table (n_rows, dim)."""
        return self.network.genes.weight


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """Of several weight files, the one that has its arguments beside it."""
    if checkpoint.weights_file is None:
        named = [name.removesuffix(ARGS) + ".pth" for name in checkpoint.files() if name.endswith(ARGS)]
        if len(named) == 1 and checkpoint.has(named[0]):
            checkpoint.weights_file = named[0]
    return checkpoint


def _config(checkpoint: Checkpoint) -> CellPatchConfig:
    keys = checkpoint.keys(KEYS.strip)
    args: dict[str, Any] = next((checkpoint.json(name) for name in checkpoint.files() if name.endswith(ARGS)), {})

    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        return 0 if tensor is None else tensor.shape[axis]

    def count(prefix: str) -> int:
        """How many numbered parts follow the prefix."""
        return len({key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)})

    return CellPatchConfig(
        genes=size("gene2vector.weight"),
        dim=size("gene2vector.weight", 1),
        patches=size("pathway_token", 1),
        heads=checkpoint.options.get("heads") or args.get("n_head", 2),
        hidden=size("cross_extract_blocks_mlp.0.weight"),
        layers=count("self_extract_blocks_attn."),
        projection=size("encoder_projection.weight"),
        decoder_layers=count("decoder_selfattn_blocks_attn."),
        classes=size("lp_fc3.weight"),
        classifier_hidden=(size("lp_fc1.weight"), size("lp_fc2.weight")),
        project_out=bool(checkpoint.options.get("project_out", False)),
    )


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="cellpatch/local",
        title=f"CellPatch checkpoint {checkpoint.weights_path.name}",
        code="https://github.com/HanwenZhu98/CellPatch",
        code_licence="all rights reserved",
        weights_licence="all rights reserved",
        restricted=RESTRICTED,
        species=("human",),
        input=InputContract(values="lognorm", genes="symbol"),
    )
