"""scBERT (Yang et al. 2022, Nature Machine Intelligence; doi:10.1101/2021.12.05.471261): levels of 16,906 genes, Performer attention.

Original code: github.com/TencentAILabHealthcare/scBERT at 262fd4b (GPL-3.0, said to cover the weights; nothing of it is copied here).
Differs from it: a cell's embedding does not depend on the cells of its batch (the original's result for a batch of one;
``scfm.load(..., key_maximum="batch")`` gives its joint batches); cells with fewer than 200 genes are embedded, not dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from scfm.adapters.scbert.network import ScBERTConfig, ScBERTNetwork
from scfm.adapters.scbert.tokenizer import LevelTokenizer
from scfm.adapters.scbert.weights import KEYS
from scfm.cards import ModelCard
from scfm.cells import Data, Source
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CapabilityError, CheckpointError, listing
from scfm.genes import Vocabulary
from scfm.unpickle import safe_unpickle

if TYPE_CHECKING:
    import pandas as pd

PRETRAINED, GENE_ORDER, LABELS = "panglao_pretrain.pth", "panglao_10000.h5ad", "label_dict"


class ScBERT(CellEncoder):
    """Pre-trained and fine-tuned (annotation) checkpoints of scBERT.

    Load options
    ------------
    genes
        Symbols of the position table's rows, where the folder has no `panglao_10000.h5ad` (the weights hold no names).
    key_maximum
        "batch" lets the cells of a batch influence each other, as in the original; "cell" by default.
    """

    Config = ScBERTConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION})
    poolings = ("mean", "max", "sum", "last")
    load_options: ClassVar = frozenset({"genes", "key_maximum"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A file of torch.save with scBERT's tensor names."""
        try:
            if _weights(checkpoint).weights_path.suffix == ".safetensors":
                return False
            values = checkpoint.values
        except CheckpointError:
            return False
        names = values.get("model_state_dict", values) if isinstance(values, Mapping) else ()
        bare = {KEYS.stripped(str(name)) for name in names}
        return {
            "token_emb.weight",
            "pos_emb.emb.weight",
            "performer.net.layers.0.0.fn.fast_attention.projection_matrix",
        } <= bare

    @classmethod
    def build(cls, config: ScBERTConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = LevelTokenizer(vocabulary, levels=config.levels - 2)
        return cls(config=config, network=ScBERTNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the weights, the gene order and, of a fine-tuned checkpoint, the class names."""
        config = _config(_weights(checkpoint))
        card = checkpoint.card or ModelCard.read(Path(__file__).parent / "cards" / "scbert.toml")
        encoder = cls.build(config, _vocabulary(checkpoint, config.genes), card)
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene2vec vectors of all tokens (n_tokens, dim)."""
        return self.network.genes.weight  # type: ignore[union-attr,return-value]

    def probabilities(self, data: Data, **reading: Any) -> pd.DataFrame:
        """Class probabilities by a fine-tuned checkpoint.

        The authors leave a cell unassigned below 0.5: ``p.idxmax(axis=1).where(p.max(axis=1) >= 0.5, "Unassigned")``.

        Parameters
        ----------
        data
            As for `embed`.
        reading
            Arguments of `encode`: layer, gene_column, values, ...

        Returns
        -------
        pd.DataFrame
            (n_cells, n_classes) float32, rows sum to 1; the index counts the cells.

        Raises
        ------
        CapabilityError
            The checkpoint has no classifier.
        """
        import pandas as pd

        if not self.config.classes:
            raise CapabilityError(f"this checkpoint of {self.name} has no classifier; load a fine-tuned one.")
        logits = torch.from_numpy(self.output(data, "logits", **reading)).reshape(-1, len(self.config.classes))
        return pd.DataFrame(logits.softmax(dim=1).numpy(), columns=list(self.config.classes))


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """Of several weight files, the authors' pre-trained one."""
    if checkpoint.weights_file is None and checkpoint.has(PRETRAINED):
        checkpoint.weights_file = PRETRAINED
    return checkpoint


def _config(checkpoint: Checkpoint) -> ScBERTConfig:
    keys = checkpoint.keys(KEYS.strip)

    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no tensor {name}.")
        return tensor.shape[axis]

    attention = "performer.net.layers.0.0.fn"
    head_dim = size(f"{attention}.fast_attention.projection_matrix", 1)
    classifies = "to_out.fc3.weight" in keys
    return ScBERTConfig(
        genes=size("pos_emb.emb.weight") - 1,
        levels=size("token_emb.weight"),
        dim=size("token_emb.weight", 1),
        layers=len({key.split(".")[3] for key in keys if key.startswith("performer.net.layers.")}),
        heads=size(f"{attention}.to_q.weight") // head_dim,
        head_dim=head_dim,
        features=size(f"{attention}.fast_attention.projection_matrix"),
        hidden=size("performer.net.layers.0.1.fn.fn.w1.weight"),
        level_head="to_out.weight" in keys,
        classes=_classes(checkpoint, size("to_out.fc3.weight")) if classifies else (),
        class_widths=(size("to_out.fc1.weight"), size("to_out.fc2.weight")) if classifies else (512, 128),
        key_maximum=checkpoint.options.get("key_maximum", "cell"),
    )


def _classes(checkpoint: Checkpoint, count: int) -> tuple[str, ...]:
    """Names from the pickle `label_dict`, else numbers."""
    if not checkpoint.has(LABELS):
        return tuple(map(str, range(count)))
    names = tuple(str(name) for name in safe_unpickle(checkpoint.path(LABELS)))
    if len(names) != count:
        raise CheckpointError(
            f"{LABELS} names {len(names)} classes, the classifier of {checkpoint.weights_path.name} has {count}.",
            "Put the label_dict that was written beside this checkpoint into the folder, or remove it.",
        )
    return names


def _vocabulary(checkpoint: Checkpoint, genes: int) -> Vocabulary:
    """The genes of `panglao_10000.h5ad` or of the option `genes`, then the last token."""
    given = checkpoint.options.get("genes")
    if given is None and not checkpoint.has(GENE_ORDER):
        raise CheckpointError(
            f"{checkpoint.folder} has no {GENE_ORDER}, whose var_names say which gene each row of the position table is.",
            "Put it beside the weights, or pass scfm.load(..., genes=[...]).",
        )
    symbols = list(given) if given is not None else _var_names(checkpoint)
    if len(symbols) != genes:
        raise CheckpointError(
            f"{GENE_ORDER if given is None else 'genes='} names {len(symbols)} genes, "
            f"the position table of {checkpoint.weights_path.name} has {genes}."
        )
    if repeated := sorted({gene for gene in symbols if symbols.count(gene) > 1}) if len(set(symbols)) < genes else []:
        raise CheckpointError(f"the gene order repeats {listing(repeated)}.")
    return Vocabulary((*symbols, "<cls>"), ids="symbol", species=("human",), special={"cls": "<cls>"})


def _var_names(checkpoint: Checkpoint) -> list[str]:
    source = Source(checkpoint.path(GENE_ORDER))
    try:
        return [str(name) for name in source.var.index]
    finally:
        source.close()
