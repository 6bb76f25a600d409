"""scFoundation (Hao et al. 2024, doi:10.1038/s41592-024-02305-7): expressed genes with continuous values, asymmetric encoder and decoder.

The released form of the xTrimoGene architecture (Gong et al. 2023, arXiv:2311.15156). Original code:
github.com/biomap-research/scFoundation at d09626a (Apache-2.0). Differs from it: genes are always aligned by name, whatever the number and
order of columns; of columns with the same name the first counts; T and S are tokens of every cell, with the value 0 where the original
drops them (cells of one count, "t0"); the decoder's cells do not depend on each other (``scfm.load(..., key_maximum="batch")`` gives the
original's joint batches).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from scfm.adapters.scfoundation.network import ScFoundationConfig, ScFoundationNetwork
from scfm.adapters.scfoundation.tokenizer import DepthTokenizer
from scfm.adapters.scfoundation.weights import KEYS
from scfm.cards import ModelCard
from scfm.checkpoint import Checkpoint
from scfm.data import shared_table
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError, listing
from scfm.genes import Vocabulary

HERE = Path(__file__).parent
PARTS = ("cell", "rde", "gene")


class ScFoundation(CellEncoder):
    """The weight sets of `models.ckpt`: "cell" (embeddings), "rde" (read-depth enhancement, mapping), "gene" (gene states, expression).

    Load options
    ------------
    part
        Weight set: "cell" (default), "rde" or "gene".
    key_maximum
        "batch" lets the cells of a batch influence each other's gene states and expression, as in the original; "cell" by default.
    """

    Config = ScFoundationConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.EXPRESSION}
    )
    poolings = ("all", "max")
    load_options: ClassVar = frozenset({"part", "key_maximum"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A file of torch.save with the three weight sets, or one of them, with their configuration."""
        try:
            if checkpoint.weights_path.suffix == ".safetensors":
                return False
            sets = _sets(checkpoint)
        except CheckpointError:
            return False
        return bool(sets) and all(
            any(name.endswith("token_emb.mlp2.weight") for name in content["state_dict"]) for content in sets.values()
        )

    @classmethod
    def build(cls, config: ScFoundationConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        return cls(config=config, network=ScFoundationNetwork(config), tokenizer=DepthTokenizer(vocabulary), card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read one weight set, its configuration, and the gene list (the shipped one, unless the folder has its own)."""
        sets = _sets(checkpoint)
        part = str(checkpoint.options.get("part", _part_of(checkpoint.card)))
        if part not in PARTS:
            raise InputError(f"part={part!r} is not known.", f"scFoundation has {listing(PARTS)}.")
        content = sets.get(part, sets.get(""))
        if content is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no weight set {part!r}, only {listing(sets)}.")
        checkpoint.inner = f"{part}.state_dict" if part in sets else "state_dict"
        config = _config(checkpoint, content["config"])
        card = checkpoint.card or ModelCard.read(HERE / "cards" / f"{part}.toml")
        encoder = cls.build(config, _vocabulary(checkpoint, config.genes), card)
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene identity ("position") embeddings of all tokens (n_tokens, dim)."""
        return self.network.positions.weight  # type: ignore[union-attr,return-value]


def _sets(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    """The weight sets of the file by name ("" for a file that is one of them): `config` and the names in `state_dict`."""
    values = checkpoint.values
    if not isinstance(values, Mapping):
        return {}
    found = {"": values, **{part: values.get(part) for part in PARTS}}
    return {
        name: content
        for name, content in found.items()
        if isinstance(content, Mapping)
        and isinstance(content.get("config"), Mapping)
        and isinstance(content.get("state_dict"), Mapping)
    }


def _part_of(card: ModelCard | None) -> str:
    return "cell" if card is None else (card.name.partition("/")[2] or "cell")


def _config(checkpoint: Checkpoint, stored: Mapping[str, Any]) -> ScFoundationConfig:
    """The effective configuration, as the authors merge it: model_config[model] updated by dataset_config.rnaseq."""
    model = stored.get("model", "mae_autobin")
    c = {**stored["model_config"][model], **stored.get("dataset_config", {}).get("rnaseq", {})}
    encoder, decoder = c["encoder"], c["decoder"]
    kinds = (model, encoder["module_type"], decoder["module_type"], bool(encoder.get("norm_first")))
    if kinds != ("mae_autobin", "transformer", "performer", False):
        raise CheckpointError(
            f"{checkpoint.weights_path} holds the variant {kinds} of xTrimoGene; "
            "every released scFoundation is ('mae_autobin', 'transformer', 'performer', False)."
        )

    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no tensor {name}.")
        return tensor.shape[axis]

    return ScFoundationConfig(
        genes=size("pos_emb.weight") - 3,
        dim=encoder["hidden_dim"],
        layers=encoder["depth"],
        heads=encoder["heads"],
        hidden=size("encoder.transformer_encoder.0.linear1.weight"),
        decoder_dim=decoder["hidden_dim"],
        decoder_layers=decoder["depth"],
        decoder_heads=decoder["heads"],
        decoder_head_dim=decoder["dim_head"],
        features=size("decoder.performer.net.layers.0.0.fn.fast_attention.projection_matrix"),
        bins=c["bin_num"],
        bin_alpha=c["bin_alpha"],
        mask_value=c["mask_token_id"],
        pad_value=c["pad_token_id"],
        key_maximum=checkpoint.options.get("key_maximum", "cell"),
    )


def _vocabulary(checkpoint: Checkpoint, genes: int) -> Vocabulary:
    """The folder's `OS_scRNA_gene_index.*.tsv`, else the shipped list of 19,264 symbols; then T, S and padding."""
    own = [name for name in checkpoint.files() if name.startswith("OS_scRNA_gene_index.")]
    if own:
        rows = [line.split("\t") for line in checkpoint.path(own[0]).read_text(encoding="utf-8").splitlines()[1:]]
        symbols = [symbol for symbol, _ in sorted(rows, key=lambda row: int(row[1]))]
    else:
        symbols = json.loads(gzip.decompress(shared_table("genes_19264.json.gz").read_bytes()))
    if len(symbols) != genes:
        raise CheckpointError(
            f"{own[0] if own else 'the shipped gene list'} has {len(symbols)} genes, "
            f"the gene table of {checkpoint.weights_path.name} {genes}.",
            "Put the OS_scRNA_gene_index.*.tsv that belongs to the weights into the folder.",
        )
    special = {"target": "<T>", "source": "<S>", "pad": "<pad>"}
    return Vocabulary((*symbols, *special.values()), ids="symbol", species=("human",), special=special)
