"""Nicheformer (Schaar, Tejada-Lapuerta et al. 2024, doi:10.1101/2024.04.15.589472): ranked genes of dissociated and spatial cells.

Original code: github.com/theislab/nicheformer at 485cadb (BSD-3-Clause). Differs from it: equal scores, of which rounded means make many,
come in the order of the token ids (``with_options(ties="upstream")`` gives the authors' order); the means go by each cell's assay; NaN
means are 1, as for the training tokens (the authors' embedding notebook gives every gene with such a mean to every cell); a cell whose
species, assay or modality is missing or unknown is refused (the original leaves the token out and still takes three positions off).
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from scfm.adapters.nicheformer.network import NicheformerConfig, NicheformerNetwork
from scfm.adapters.nicheformer.tokenizer import MEANS, NicheformerTokenizer
from scfm.adapters.nicheformer.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.cells import Source
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary

_CONTEXT_TOKENS = (
    *("mask", "pad", "cls", "dissociated", "spatial", "human", "mouse", "merfish", "cosmx", "xenium"),
    *("10x 5' v2", "10x 3' v3", "10x 3' v2", "10x 5' v1", "10x 3' v1", "10x 3'", "10x 5'", "cite-seq", "smart-seq v4"),
    *(f"unused {i}" for i in range(19, 30)),
)


class Nicheformer(CellEncoder):
    """Pre-trained checkpoints of Nicheformer (Lightning's and the hub's), and the backbones of fine-tuned ones.

    Poolings: "mean" is the authors', over all positions behind the three context tokens, padding included, so that it depends on the
    context; "all" takes the context tokens too (their `with_context`); "genes" leaves out the padding, and is the faster the shorter cells
    are. `hidden_layer=k` is their `layer=k-1`.

    Load options
    ------------
    heads
        Number of attention heads, where no hyper-parameters tell; 16 for the released size.
    """

    Config = NicheformerConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.SPATIAL})
    poolings = ("mean", "all", "genes")
    load_options: ClassVar = frozenset({"heads"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A file with Nicheformer's tensor names."""
        keys = checkpoint.keys(KEYS.strip)
        return {
            "embeddings.weight",
            "positional_embedding.weight",
            "encoder.layers.0.self_attn.in_proj_weight",
        } <= keys

    @classmethod
    def build(cls, config: NicheformerConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = NicheformerTokenizer(vocabulary, context=config.context)
        return cls(config=config, network=NicheformerNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the weights and hyper-parameters, and the genes and means of the folder, or those shipped."""
        config = _config(checkpoint)
        encoder = cls.build(config, _vocabulary(checkpoint, config.tokens), checkpoint.card or _card(checkpoint))
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Token embeddings (n_tokens, dim)."""
        return self.network.tokens.weight  # type: ignore[union-attr,return-value]


def _config(checkpoint: Checkpoint) -> NicheformerConfig:
    stated = _hyper_parameters(checkpoint)
    if stated.get("autoregressive") or stated.get("pool") == "cls" or not stated.get("learnable_pe", True):
        raise CheckpointError(
            f"{checkpoint.weights_path} was trained with autoregressive={stated.get('autoregressive')}, pool={stated.get('pool')!r}, "
            f"learnable_pe={stated.get('learnable_pe')}; the released model, and this adapter, with False, None, True."
        )

    def shape(name: str) -> tuple[int, ...]:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no tensor {name}.")
        return tuple(tensor.shape)

    keys = checkpoint.keys(KEYS.strip)
    rows, dim = shape("embeddings.weight")
    heads = checkpoint.options.get("heads") or stated.get("nheads") or (16 if dim == 512 else None)
    if heads is None:
        raise CheckpointError(
            f"nothing in {checkpoint.folder} tells the number of attention heads.",
            "Pass it: scfm.load(folder, heads=...).",
        )
    return NicheformerConfig(
        tokens=stated.get("n_tokens", rows - 5),
        context=shape("positional_embedding.weight")[0],
        dim=dim,
        layers=len({key.split(".")[2] for key in keys if key.startswith("encoder.layers.")}),
        heads=heads,
        hidden=shape("encoder.layers.0.linear1.weight")[0],
        dropout=stated.get("dropout", 0.0),
        spare=rows - stated.get("n_tokens", rows - 5),
        masked_lm="classifier_head.weight" in keys,
    )


def _hyper_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of a Lightning checkpoint, or the hub's config.json."""
    if checkpoint.weights_path.suffix != ".safetensors":
        values = checkpoint.values
        return dict(values.get("hyper_parameters") or {}) if isinstance(values, dict) else {}
    return checkpoint.json("config.json") if checkpoint.has("config.json") else {}


def _vocabulary(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    shipped = _shipped()
    genes = _genes(checkpoint.path("model.h5ad")) if checkpoint.has("model.h5ad") else tuple(shipped["gene"])
    first = len(_CONTEXT_TOKENS)
    if len(genes) != rows - first:
        raise CheckpointError(
            f"the token table has {rows:,} rows, {first} of them for the context; there are {len(genes):,} genes in "
            f"{checkpoint.folder / 'model.h5ad' if checkpoint.has('model.h5ad') else 'the shipped list'}.",
            "Put the model.h5ad it was trained with, whose var_names are its genes, into its folder.",
        )
    columns = {}
    for name in MEANS:
        if checkpoint.has(file := f"{name}_mean_script.npy"):
            mean = np.load(checkpoint.path(file), allow_pickle=False).astype(np.float64).reshape(-1)
        elif genes == tuple(shipped["gene"]):
            mean = np.array([float(text or "nan") for text in shipped[name]])
        else:
            continue
        if len(mean) != len(genes):
            raise CheckpointError(f"{file} of {checkpoint.folder} has {len(mean):,} means for {len(genes):,} genes.")
        columns[name] = np.concatenate([np.full(first, np.nan), mean])
    special = {name: f"<{name}>" for name in _CONTEXT_TOKENS}
    # mouse data are read by their human orthologues; only genes without one have mouse ids
    return Vocabulary((*special.values(), *genes), "ensembl", species=("human",), special=special, columns=columns)


def _genes(path: Path) -> tuple[str, ...]:
    source = Source(path)
    try:
        return tuple(source.var.index.astype(str))
    finally:
        source.close()


def _shipped() -> dict[str, tuple[str, ...]]:
    """Columns of the shipped table."""
    text = gzip.decompress((Path(__file__).parent / "data" / "genes.tsv.gz").read_bytes()).decode()
    header, *lines = (line.split("\t") for line in text.splitlines())
    return dict(zip(header, zip(*lines, strict=True), strict=True))


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="nicheformer/local",
        title=f"Nicheformer checkpoint in {checkpoint.folder.name}",
        paper="10.1101/2024.04.15.589472",
        code="https://github.com/theislab/nicheformer",
        code_licence="BSD-3-Clause",
        species=("human", "mouse"),
        input=InputContract(values="counts", genes="ensembl", obs=("specie", "assay", "modality")),
    )
