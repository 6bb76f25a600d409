"""Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9; V2: Chen et al. 2024, doi:10.1101/2024.08.16.608180): ranked genes.

Original code: huggingface.co/ctheodoris/Geneformer at 05fcbeb (Apache-2.0). Differs from it: a cell's genes with equal scores come in the
order of their token ids (the original's order differs between machines); features that lead to one gene are always summed (the original
keeps two tokens when the two names are identical); rows come in the order of the data, and cells without a known gene are rows of NaN
(the original sorts by length and drops them); no limit of 1000 cells.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor

from scfm.adapters.geneformer import dictionaries
from scfm.adapters.geneformer.network import GeneformerConfig, GeneformerNetwork
from scfm.adapters.geneformer.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary
from scfm.tokenizers import RankTokenizer

_KEY = "embeddings.word_embeddings.weight"


class Geneformer(CellEncoder):
    """Pre-trained and fine-tuned checkpoints of Geneformer V1 and V2.

    Poolings: "cls" is the state of `<cls>` (V2 only, its default), "mean" that of the genes (V1's default). `hidden_layer` is the second to
    last by default, as the authors' `emb_layer=-1`; their `emb_layer=0` is ``hidden_layer=encoder.network.depth``.

    Load options
    ------------
    dictionaries
        Folder with `token_dictionary*.pkl`, `gene_median_dictionary*.pkl` and, for V2, `ensembl_mapping_dict*.pkl`, for models trained with
        dictionaries of their own. Without it they are looked for in the model's folder, and else are the released ones, shipped here.
    """

    Config = GeneformerConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION})
    poolings: ClassVar[tuple[str, ...]] = ("cls", "mean")
    load_options: ClassVar = frozenset({"dictionaries"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A BERT with ReLU whose token table has a released size, or lies beside the authors' dictionaries."""
        if not checkpoint.has("config.json"):
            return False
        config = checkpoint.json("config.json")
        if config.get("model_type") != "bert" or config.get("hidden_act") != "relu":
            return False
        known = config.get("vocab_size") in dictionaries.SHIPPED or dictionaries.in_folder(checkpoint.folder)
        return (known or "dictionaries" in checkpoint.options) and _KEY in checkpoint.keys(KEYS.strip)

    @classmethod
    def build(cls, config: GeneformerConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        special = () if config.cls is None else ("cls", "eos")
        tokenizer = RankTokenizer(vocabulary, context=config.context, prefix=special[:1], suffix=special[1:])
        encoder = cls(config=config, network=GeneformerNetwork(config), tokenizer=tokenizer, card=card)
        if config.cls is None:
            encoder.poolings = ("mean",)  # type: ignore[misc]
        return encoder

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read config.json, the weights and the dictionaries."""
        config, vocabulary = _config(checkpoint, checkpoint.json("config.json"))
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        skip: dict[str, Any] = {} if config.head == "cells" else {"pooler.dense.{p}": None}  # unused by the authors
        checkpoint.load_into(encoder.network, type(KEYS)({**KEYS.names, **skip}, KEYS.strip))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Token embeddings (n_tokens, dim)."""
        return self.network.embedding.words.weight  # type: ignore[union-attr,return-value]


def _config(checkpoint: Checkpoint, c: dict[str, Any]) -> tuple[GeneformerConfig, Vocabulary]:
    if c.get("position_embedding_type", "absolute") != "absolute" or c["hidden_act"] not in ("relu", "gelu"):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has position_embedding_type {c.get('position_embedding_type')!r} and hidden_act "
            f"{c['hidden_act']!r}; Geneformer has 'absolute' and 'relu'."
        )
    keys = checkpoint.keys(KEYS.strip)
    vocabulary = dictionaries.read(checkpoint, c["vocab_size"])
    head, classes = "none", checkpoint.tensor("classifier.bias", KEYS.strip)
    if classes is not None:
        head = "cells" if "pooler.dense.weight" in keys else "genes"
    elif "cls.predictions.bias" in keys:
        head = "masked_lm"
    names = c.get("id2label", {})
    count = 0 if classes is None else len(classes)
    config = GeneformerConfig(
        tokens=c["vocab_size"],
        context=c["max_position_embeddings"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        hidden=c["intermediate_size"],
        activation=c["hidden_act"],
        dropout=c.get("hidden_dropout_prob", 0.1),
        eps=c.get("layer_norm_eps", 1e-12),
        types=c.get("type_vocab_size", 2),
        cls=vocabulary.id("cls") if "cls" in vocabulary.special else None,
        eos=vocabulary.id("eos") if "eos" in vocabulary.special else None,
        head=head,  # type: ignore[arg-type]
        classes=count,
        labels=tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count)),
    )
    return config, vocabulary


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="geneformer/local",
        title=f"Geneformer checkpoint in {checkpoint.folder.name}",
        paper="10.1038/s41586-023-06139-9",
        code="https://huggingface.co/ctheodoris/Geneformer",
        code_licence="Apache-2.0",
        species=("human",),
        input=InputContract(values="counts", genes="ensembl"),
    )
