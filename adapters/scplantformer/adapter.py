"""scPlantFormer (Zhang et al. 2024, doi:10.21203/rs.3.rs-5219487/v1): 128 neighbouring genes a token, one small layer, Arabidopsis.

Original code: github.com/zhanglab-wbgcas/scPlantFormer at 74e3a49 and a3a051b (no licence file). Differs from it: embeddings are those of a
forward pass with the loaded weights (the later version's); the first version hands out what it sees during its last training epoch.
Listed genes that the data lack are 0, as in the later version; the first one fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

from scfm.adapters.scplantformer.network import ScPlantFormerConfig, ScPlantFormerNetwork
from scfm.adapters.scplantformer.tokenizer import PatchTokenizer
from scfm.adapters.scplantformer.weights import KEYS
from scfm.cards import ModelCard
from scfm.cells import Source
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError
from scfm.genes import Vocabulary

HERE = Path(__file__).parent
HEAD_DIM = 4
"""Length of a head's states in the published models (32 heads of 4); the files do not tell."""


class ScPlantFormer(CellEncoder):
    """Models of whole Arabidopsis, flower, leaf, root and seed.

    Load options
    ------------
    genes
        The model's genes in their order: a list, an `.h5ad` (``var["features"]``) or a text file with one a line. By default the
        `.h5ad` or `.txt` beside the weights, of the same name or the only one.
    heads
        Attention heads; dim / 4 by default, which are the published 32.
    dtype
        "float32" computes in single precision, for devices without float64; the original is in float64.
    """

    Config = ScPlantFormerConfig
    capabilities = frozenset({Capability.EMBED, Capability.EXPRESSION})
    load_options: ClassVar = frozenset({"genes", "heads", "dtype"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A file with scPlantFormer's tensor names."""
        return {"pro.weight", "transformer.wpe.weight", "transformer.h.0.attn.bias", "lm_head.bias"} <= checkpoint.keys(
            KEYS.strip
        )

    @classmethod
    def build(cls, config: ScPlantFormerConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = PatchTokenizer(vocabulary, size=config.dim)
        return cls(config=config, network=ScPlantFormerNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the tensors, whose shapes tell the sizes, and the list of genes."""
        config = _config(checkpoint)
        genes = _genes(checkpoint)
        if len(genes) != config.genes:
            raise CheckpointError(
                f"the list of genes has {len(genes)}, the model {config.genes}.",
                "Pass genes= with the list it was trained on.",
            )
        vocabulary = Vocabulary(tuple(genes), ids="locus", species=("arabidopsis",))
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        checkpoint.load_into(encoder.network, KEYS)
        return encoder


def _config(checkpoint: Checkpoint) -> ScPlantFormerConfig:
    def shape(name: str) -> tuple[int, ...]:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no tensor {name}.")
        return tuple(tensor.shape)

    patches, dim = shape("transformer.wpe.weight")
    genes = shape("lm_head.weight")[0]
    dtype = checkpoint.options.get("dtype", "float64")
    if dtype not in ("float64", "float32"):
        raise InputError(f"dtype={dtype!r} is not known.", "Pass 'float64' (the original's) or 'float32'.")
    if patches != -(-genes // dim):
        raise CheckpointError(
            f"{checkpoint.weights_path} has {patches} positions; {genes} genes make {-(-genes // dim)} patches of {dim}."
        )
    layers = {name.split(".")[2] for name in checkpoint.keys(KEYS.strip) if name.startswith("transformer.h.")}
    return ScPlantFormerConfig(
        genes=genes,
        patches=patches,
        dim=dim,
        layers=len(layers),
        heads=checkpoint.options.get("heads", dim // HEAD_DIM),
        hidden=shape("transformer.h.0.mlp.c_fc.weight")[0],
        dtype=dtype,
    )


def _genes(checkpoint: Checkpoint) -> list[str]:
    given = checkpoint.options.get("genes")
    if given is not None and not isinstance(given, str | Path):
        return [str(gene) for gene in given] if isinstance(given, Iterable) else []
    path = Path(given) if given is not None else _list_of_genes(checkpoint)
    if path.suffix != ".h5ad":
        return path.read_text(encoding="utf-8").split()
    source = Source(path)
    try:
        if "features" not in source.var:
            raise CheckpointError(f'{path} has no var["features"], which lists the genes of the model.')
        return source.var["features"].astype(str).tolist()
    finally:
        source.close()


def _list_of_genes(checkpoint: Checkpoint) -> Path:
    """The file beside the weights that lists the genes."""
    stem = checkpoint.weights_path.stem
    lists = [name for name in checkpoint.files() if name.endswith((".h5ad", ".txt"))]
    fitting = [name for name in lists if Path(name).stem == stem] or lists
    if len(fitting) != 1:
        raise CheckpointError(
            f"{checkpoint.folder} has {len(fitting)} lists of genes for {checkpoint.weights_path.name}; the weights do not hold their own.",
            f"Put {stem}.h5ad of the authors (genes in var['features']) beside it, or pass genes=<list or text file>.",
        )
    return checkpoint.path(fitting[0])


def _card(checkpoint: Checkpoint) -> ModelCard:
    tissue = checkpoint.weights_path.stem.removesuffix("_Pretrained").lower()
    path = HERE / "cards" / f"{tissue}.toml"
    return ModelCard.read(path if path.is_file() else HERE / "cards" / "arabidopsis_all.toml")
