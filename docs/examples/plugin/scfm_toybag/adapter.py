"""ToyBag (an invented model): log-normalised expression, a weighted mean of gene vectors."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from scfm.cards import ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary
from scfm.tokenizers import ContinuousTokenizer
from scfm_toybag.network import ToyBagConfig, ToyBagNetwork
from scfm_toybag.weights import KEYS


class ToyBag(CellEncoder):
    """Human cells from raw counts and gene symbols."""

    network: ToyBagNetwork
    Config = ToyBagConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """genes.txt and config.json beside a file with ToyBag's tensor names."""
        return checkpoint.has("config.json", "genes.txt") and {"gene_emb.weight", "mlp.2.weight"} <= checkpoint.keys(
            KEYS.strip
        )

    @classmethod
    def build(cls, config: ToyBagConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        # fact 1: how a cell becomes tokens; fact 2: what the network is
        tokenizer = ContinuousTokenizer(vocabulary, target_sum=1e4, log1p=True)
        return cls(config=config, network=ToyBagNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the authors' config.json, genes.txt and weights."""
        sizes = checkpoint.json("config.json")
        genes = tuple(checkpoint.path("genes.txt").read_text(encoding="utf-8").split())
        if len(genes) != sizes["n_genes"]:
            raise CheckpointError(f"genes.txt has {len(genes)} genes, config.json says {sizes['n_genes']}.")
        config = ToyBagConfig(genes=len(genes), hidden=sizes["hidden"], dim=sizes["emb"])
        vocabulary = Vocabulary(genes, ids="symbol", species=("human",))
        encoder = cls.build(config, vocabulary, checkpoint.card or ModelCard(name="toybag/local", title="ToyBag"))
        # fact 3: how the authors' weights map onto the network
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene table (n_genes, hidden)."""
        return self.network.genes.weight
