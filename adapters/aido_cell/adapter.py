"""AIDO.Cell (Ho et al. 2024, bioRxiv): a dense transformer over all 19,264 genes, expressed or not.

Original code: github.com/genbio-ai/ModelGenerator at c4d0121, package huggingface/aido.cell. Differs from it: of columns with the same
name the first counts (the original raises); cells without any listed gene give NaN with a warning (the original: NaN without); the
head's bias is read from either of its two copies (the original loses it in safetensors). The package `modelgenerator` itself computes
another attention where flash-attn is missing; that is not reproduced.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from scfm.adapters.aido_cell.network import AIDOCellConfig, AIDOCellNetwork
from scfm.adapters.aido_cell.tokenizer import DenseTokenizer
from scfm.adapters.aido_cell.weights import KEYS
from scfm.cards import ModelCard
from scfm.checkpoint import Checkpoint
from scfm.data import shared_table
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError, listing
from scfm.genes import Vocabulary

HERE = Path(__file__).parent
VARIANTS = {128: "3m", 256: "10m", 640: "100m"}  # width -> card


class AIDOCell(CellEncoder):
    """The released sizes 3M, 10M and 100M.

    Load options
    ------------
    genes
        Path of the gene list (`OS_scRNA_gene_index.*.tsv`) of weights with other genes, where the folder has none.
    """

    Config = AIDOCellConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.EXPRESSION}
    )
    poolings = ("present", "genes", "max")
    load_options: ClassVar = frozenset({"genes"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A Hugging Face folder of the model type "cellfoundation"."""
        if not checkpoint.has("config.json"):
            return False
        config = checkpoint.json("config.json")
        return isinstance(config, dict) and config.get("model_type") == "cellfoundation"

    @classmethod
    def build(cls, config: AIDOCellConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        return cls(config=config, network=AIDOCellNetwork(config), tokenizer=DenseTokenizer(vocabulary), card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read config.json, the weights, and the gene list (the shipped one, unless the folder has its own)."""
        config = _config(checkpoint, checkpoint.json("config.json"))
        card = checkpoint.card or ModelCard.read(HERE / "cards" / f"{VARIANTS.get(config.dim, '100m')}.toml")
        encoder = cls.build(config, _vocabulary(checkpoint, config.genes), card)
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene identity ("position") embeddings of all tokens (n_tokens, dim)."""
        return self.network.positions.weight  # type: ignore[union-attr,return-value]


def _config(checkpoint: Checkpoint, c: dict[str, Any]) -> AIDOCellConfig:
    defining = {
        "normalization_type": (
            "LayerNorm",
            "RMSNorm",
        ),  # what is built here; what the authors' class assumes when nothing is said
        "hidden_act": ("swiglu", "swiglu"),
        "position_embedding_type": ("absolute", "rope"),
    }
    other = [
        f"{key}={c.get(key, default)!r}" for key, (ours, default) in defining.items() if c.get(key, default) != ours
    ]
    if other:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} says {listing(other)}; every released AIDO.Cell has "
            f"{listing(f'{key}={ours!r}' for key, (ours, _) in defining.items())}, and only that is built."
        )
    table = checkpoint.tensor("position_embedding.weight", KEYS.strip)
    if table is None:
        raise CheckpointError(f"{checkpoint.weights_path} has no tensor position_embedding.weight.")
    return AIDOCellConfig(
        genes=table.shape[0] - 2,
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        hidden=c["intermediate_size"],
        bins=c["bin_num"],
        bin_alpha=c["bin_alpha"],
        mask_value=c["mask_token_id"],
        pad_value=c["pad_token_id"],
        eps=c["layer_norm_eps"],
        bias=c.get("add_linear_bias", True),
        head="cls.predictions.decoder.weight" in checkpoint.keys(KEYS.strip),
    )


def _vocabulary(checkpoint: Checkpoint, genes: int) -> Vocabulary:
    """The option `genes` or the folder's `OS_scRNA_gene_index.*.tsv`, else the shipped list of 19,264 symbols; then the depth tokens."""
    own = [checkpoint.path(name) for name in checkpoint.files() if name.startswith("OS_scRNA_gene_index.")]
    if "genes" in checkpoint.options:
        own = [Path(checkpoint.options["genes"])]
        if not own[0].is_file():
            raise InputError(f"genes={str(own[0])!r} is no file.", "Give the path of an OS_scRNA_gene_index.*.tsv.")
    if own:
        lines = own[0].read_text(encoding="utf-8").splitlines()[1:]
        symbols = [line.partition("\t")[0] for line in lines]  # the row is the position
    else:
        symbols = json.loads(gzip.decompress(shared_table("genes_19264.json.gz").read_bytes()))
    if len(symbols) != genes:
        raise CheckpointError(
            f"{own[0].name if own else 'the shipped gene list'} has {len(symbols)} genes, "
            f"the gene table of {checkpoint.weights_path.name} {genes}.",
            "Put the OS_scRNA_gene_index.*.tsv that belongs to the weights into the folder, or pass genes=<its path>.",
        )
    special = {"source": "<source depth>", "target": "<target depth>"}
    return Vocabulary((*symbols, *special.values()), ids="symbol", species=("human",), special=special)
