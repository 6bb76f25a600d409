"""SC-MAMBA2 (Zhao et al. 2024, doi:10.1101/2024.09.30.615775): binned values, ``<cls>`` first, state-space layers in both directions.

Original code: github.com/xtalpi-xic/SC-MAMBA2 at 7f169a1 (CC BY-NC 4.0; nothing of it is used here). Differs from it: Mamba-2 in plain
torch instead of CUDA kernels, same numbers; the subset of cells longer than the context is drawn from the cell's own content.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor

from scfm.adapters.sc_mamba2.network import SCMamba2Config, SCMamba2Network
from scfm.adapters.sc_mamba2.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary
from scfm.tokenizers import BinTokenizer
from scfm.tokenizers.base import batch_options

SPECIAL = ("<pad>", "<cls>", "<eoc>")
RESTRICTED = "its licence is CC BY-NC 4.0: no commercial use"


class SCMamba2(CellEncoder):
    """Pre-trained, annotation and integration checkpoints of SC-MAMBA2.

    Load options
    ------------
    batches
        Names of the batches of an integration checkpoint, in the order of its labels (the files hold numbers only).
    """

    network: SCMamba2Network
    Config = SCMamba2Config
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.EXPRESSION})
    poolings = ("cls", "mean")
    gene_kinds = ("normed", "raw")
    load_options: ClassVar = frozenset({"batches"})

    FINE_TUNING: ClassVar[dict[str, Any]] = {"cls_value": 0.0, "zeros": True, "context": 1201}
    """Tokenizer options of the authors' fine-tuning on highly variable genes: ``encoder.with_options(**SCMamba2.FINE_TUNING)``."""

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """args.json and vocab.json beside a file with Mamba layers under scGPT's names."""
        if not checkpoint.has("args.json", "vocab.json"):
            return False
        keys = _weights(checkpoint).keys(KEYS.strip)
        return {"encoder.embedding.weight", "mamba_encoder.layers.0.mamba.in_proj.weight"} <= keys

    @classmethod
    def build(cls, config: SCMamba2Config, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = BinTokenizer(vocabulary, ties="highest", shuffled=True)
        return cls(config=config, network=SCMamba2Network(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read args.json, vocab.json and the weights; the parts present decide the kind of checkpoint."""
        args = _weights(checkpoint).json("args.json")
        config = _config(checkpoint, args)
        vocabulary = _vocabulary(checkpoint, config.genes, args)
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        value = float(args.get("pad_value", -2))
        encoder = encoder.with_options(cls_value=value, pad_value=value)  # at embedding time both have it
        checkpoint.load_into(encoder.network, KEYS)
        if labels := max(config.batches, config.domains):
            encoder = encoder.with_options(**batch_options(checkpoint.options.get("batches"), labels))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Gene embeddings of all tokens (n_tokens, dim): "normed" as the network sees them (LayerNorm), "raw" as stored."""
        table = self.network.genes.table.weight
        return table if kind == "raw" else self.network.genes.norm(table)


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """Of several weight files, the authors' best_model.pt."""
    if checkpoint.weights_file is None and checkpoint.has("best_model.pt"):
        checkpoint.weights_file = "best_model.pt"
    return checkpoint


def _config(checkpoint: Checkpoint, args: dict[str, Any]) -> SCMamba2Config:
    keys = checkpoint.keys(KEYS.strip)

    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        return 0 if tensor is None else tensor.shape[axis]

    def count(prefix: str) -> int:
        """How many numbered parts follow the prefix."""
        return len({key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)})

    dim = args["embsize"]
    inner = 2 * dim
    return SCMamba2Config(
        genes=size("encoder.embedding.weight"),
        dim=dim,
        layers=args["nlayers"],
        states=(size("mamba_encoder.layers.0.mamba.conv1d.weight") - inner) // 2,
        kernel=size("mamba_encoder.layers.0.mamba.conv1d.weight", 2),
        dropout=args.get("dropout", 0.2),
        pad=checkpoint.json("vocab.json").get(args.get("pad_token", "<pad>"), 0),
        batch_norm="bn.weight" in keys,
        domains=count("dsbn.bns."),
        batches=size("batch_encoder.embedding.weight"),
        decoder="decoder.fc.0.weight" in keys,
        zero_prob="decoder.zero_logit.0.weight" in keys,
        cell_decoder="mvc_decoder.gene2query.weight" in keys,
        classes=size("cls_decoder.out_layer.weight"),
        class_layers=count("cls_decoder._decoder.") // 2 + 1,
    )


def _vocabulary(checkpoint: Checkpoint, rows: int, args: dict[str, Any]) -> Vocabulary:
    """vocab.json, with missing special tokens appended in the authors' order; must be as long as the gene table."""
    index = dict(checkpoint.json("vocab.json"))
    for token in SPECIAL:
        if token not in index and len(index) < rows:
            index[token] = len(index)
    if len(index) != rows:
        raise CheckpointError(
            f"vocab.json has {len(index)} tokens, the gene table of {checkpoint.weights_path.name} {rows} rows."
        )
    special = {"pad": args.get("pad_token", "<pad>"), "cls": "<cls>", "eoc": "<eoc>"}
    missing = [token for token in (special["pad"], "<cls>") if token not in index]
    if missing:
        raise CheckpointError(f"vocab.json has no {missing} token.")
    special = {role: token for role, token in special.items() if token in index}
    return Vocabulary.from_index(index, ids="symbol", species=("human",), special=special)


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="sc_mamba2/local",
        title=f"SC-MAMBA2 checkpoint in {checkpoint.folder.name}",
        paper="10.1101/2024.09.30.615775",
        code="https://github.com/xtalpi-xic/SC-MAMBA2",
        code_licence="CC-BY-NC-4.0",
        restricted=RESTRICTED,
        species=("human",),
        input=InputContract(values="counts", genes="symbol"),
    )
