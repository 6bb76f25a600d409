"""scPlantLLM (Cao et al. 2025, doi:10.1093/gpbjnl/qzaf024): expressed genes with binned values, one ``<cls>`` token, plants.

Original code: github.com/compbioNJU/scPlantLLM at b3ade0b (CC BY-NC 4.0). Differs from it: bins do not depend on the other cells of a
file (``with_options(edges=scfm.cells.value_range(adata))`` gives the original's); genes of long cells are drawn from a hash of the cell;
no cell is dropped from the last batch; without flash-attn the numbers stay those of the trained model (``scfm.load(..., norm="post")``
gives the original's other ones).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adapters.scplantllm.network import MAIN, ScPlantLLMConfig, ScPlantLLMNetwork, head_of
from scfm.adapters.scplantllm.tokenizer import EdgeBinTokenizer
from scfm.adapters.scplantllm.weights import KEYS
from scfm.cards import ModelCard
from scfm.cells import Data
from scfm.checkpoint import Checkpoint, KeyMap
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError, listing
from scfm.gene_tables import species_of
from scfm.genes import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
GENES, LABELS, SETTINGS = "gene_vocab.json", "celltype_vocab.json", "setting.json"
LEAST_SHARE = 0.01
"""Of the vocabulary, for a species to count as known."""


class ScPlantLLM(CellEncoder):
    """The pre-trained model and the models fine-tuned for rice and maize.

    Load options
    ------------
    heads
        Attention heads; 8 by default, as published (the files do not tell).
    norm
        "post" builds the post-norm layers that the original falls back to without flash-attn: not those that were trained.
    drop_unknown
        True leaves out tensors that belong to no part known to us, as the original does; they are named in a `UserWarning`.
    """

    config: ScPlantLLMConfig
    network: ScPlantLLMNetwork
    Config = ScPlantLLMConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.EXPRESSION}
    )
    gene_kinds = ("normed", "raw")
    load_options: ClassVar = frozenset({"heads", "norm", "drop_unknown"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """gene_vocab.json with a file that has scPlantLLM's tensor names, at its side or in model_params/."""
        if _beside(checkpoint, GENES) is None:
            return False
        return {
            "encoder.enc_norm.weight",
            "value_encoder.embedding.weight",
            "transformer_encoder.layers.0.linear1.weight",
        } <= _weights(checkpoint).keys(KEYS.strip)

    @classmethod
    def build(cls, config: ScPlantLLMConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = EdgeBinTokenizer(vocabulary, bins=config.value_rows - 2)
        return cls(config=config, network=ScPlantLLMNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the tensors, whose names and shapes tell the parts, the gene vocabulary, cell types and settings."""
        _weights(checkpoint)
        settings = _read(checkpoint, SETTINGS) or {}
        config = _config(checkpoint, settings.get("pad_token_id", 0))
        vocabulary = _vocabulary(checkpoint, config)
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        most = settings.get("seq_length", 1500)
        encoder = encoder.with_options(most=most, kept=int(0.75 * most))
        checkpoint.load_into(encoder.network, _keys(checkpoint))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Gene embeddings of all tokens (n_tokens, dim): "normed" as the network sees them (LayerNorm), "raw" as stored."""
        table = self.network.genes.table.weight
        return table if kind == "raw" else self.network.genes.norm(table)

    def cell_types(self, data: Data, **options: Any) -> pd.DataFrame:
        """The most probable of the cell types the model was trained on.

        Parameters
        ----------
        data
            AnnData, path of an `.h5ad` or `.zarr`, or a list of these.
        options
            Arguments of `encode`: layer, gene_column, batch_size, ...

        Returns
        -------
        pd.DataFrame
            A row a cell, in the order of the data: `cell_type`, and its `probability` (float32, softmax over the types). The authors then
            let the cells of a cluster vote.
        """
        import pandas as pd

        if not self.config.labels:
            raise InputError(
                f"{self.name} has no names for its classes.", f"Put {LABELS} beside the weights and load them again."
            )
        logits = torch.from_numpy(self.output(data, head_of(MAIN), **options)).reshape(-1, len(self.config.labels))
        shares = logits.softmax(dim=-1).numpy()
        best = shares.argmax(axis=1)
        names = np.array(self.config.labels, dtype=object)[best]
        return pd.DataFrame({"cell_type": names, "probability": shares[np.arange(len(best)), best]})


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """The file in model_params/, where the authors keep it, unless one is named or the folder holds its own."""
    if checkpoint.weights_file is None and not any(name.endswith(".pth") for name in checkpoint.files()):
        inside = sorted((checkpoint.folder / "model_params").glob("*.pth"))
        if len(inside) == 1:
            checkpoint.weights_file = f"model_params/{inside[0].name}"
    return checkpoint


def _beside(checkpoint: Checkpoint, name: str) -> str | None:
    """A file of the folder, of its parent (for the folder cross-species/), or None."""
    return next((path for path in (name, f"../{name}") if checkpoint.has(path)), None)


def _read(checkpoint: Checkpoint, name: str) -> Any:
    path = _beside(checkpoint, name)
    return None if path is None else checkpoint.json(path)


def _keys(checkpoint: Checkpoint) -> KeyMap:
    """`KEYS`; with drop_unknown, tensors of no known part are left out and named."""
    unknown = [name for name in checkpoint.tensors if KEYS.ours(name) is None]
    if not unknown:
        return KEYS
    if not checkpoint.options.get("drop_unknown"):
        raise CheckpointError(
            f"{len(unknown)} tensors of {checkpoint.weights_path} belong to no known part of scPlantLLM: {listing(unknown)}.",
            "Pass drop_unknown=True to leave them out, as the original does.",
        )
    import warnings

    warnings.warn(
        f"{checkpoint.weights_path.name}: {len(unknown)} tensors are left out: {listing(unknown, 100)}", stacklevel=5
    )
    return KeyMap({**KEYS.names, **{KEYS.stripped(name): None for name in unknown}}, KEYS.strip)


def _config(checkpoint: Checkpoint, pad: int) -> ScPlantLLMConfig:
    keys = checkpoint.keys(KEYS.strip)

    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no tensor {name}.")
        return tensor.shape[axis]

    ends = sorted(name for name in keys if name.endswith("cls_decoder.out_layer.weight"))
    classes = {name.partition("cls_decoder")[0].removesuffix("_") or MAIN: size(name) for name in ends}
    types = _cell_types(checkpoint)
    return ScPlantLLMConfig(
        genes=size("encoder.embedding.weight"),
        value_rows=size("value_encoder.embedding.weight"),
        dim=size("encoder.embedding.weight", 1),
        heads=checkpoint.options.get("heads", 8),
        hidden=size("transformer_encoder.layers.0.linear1.weight"),
        layers=len({name.split(".")[2] for name in keys if name.startswith("transformer_encoder.layers.")}),
        pad=pad,
        norm=checkpoint.options.get("norm", "normed"),
        decoder="decoder.fc.0.weight" in keys,
        classifiers=tuple(classes),
        classes=tuple(classes.values()),
        labels=types if len(types) == classes.get(MAIN) else (),
    )


def _cell_types(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Cell types in the order of their numbers, of `<Species>_celltype.vocab.meta.json` beside such a model or celltype_vocab.json."""
    species = checkpoint.weights_path.stem.removesuffix("_model")
    own = checkpoint.weights_path.with_name(f"{species}_celltype.vocab.meta.json")
    names = Checkpoint(own.parent).json(own.name) if own.is_file() else _read(checkpoint, LABELS) or {}
    return tuple(sorted(names, key=lambda name: names[name]))


def _vocabulary(checkpoint: Checkpoint, config: ScPlantLLMConfig) -> Vocabulary:
    """gene_vocab.json; where it has no ``<cls>``, that is the last row of the gene table, as in the authors' loader."""
    index = dict(_read(checkpoint, GENES) or {})
    by_id = {i: token for token, i in index.items()}
    if "<cls>" not in index:
        last = config.genes - 1
        index.pop(by_id.get(last, ""), None)
        index["<cls>"] = last
    if len(index) != config.genes:
        raise CheckpointError(
            f"{GENES} has {len(index)} tokens (<cls> included), the gene table of {checkpoint.weights_path.name} {config.genes} rows.",
            "Put the gene_vocab.json that belongs to the weights into the folder.",
        )
    votes = species_of(index).votes
    species = tuple(name for name, count in votes.items() if count >= LEAST_SHARE * len(index))
    return Vocabulary.from_index(
        index, ids="locus", species=species or ("arabidopsis",), special={"pad": by_id[config.pad], "cls": "<cls>"}
    )


def _card(checkpoint: Checkpoint) -> ModelCard:
    species = {"Rice_model": "rice", "Zea_model": "maize"}.get(checkpoint.weights_path.stem, "default")
    return ModelCard.read(HERE / "cards" / f"{species}.toml")
