"""scMulan (Bian et al. 2024, doi:10.1007/978-1-0716-3989-4_57): a cell as a sentence that a generative network continues by its type.

Original code: github.com/SuperBianC/scMulan at d64da5e (MIT). Differs from it: the tokens added follow with the keys and values of the
sentence kept, two short passes where the original repeats the whole sentence; listed genes that the data lack count as not expressed,
where the original refuses; a cell without any listed gene is embedded (or NaN), where the original fails.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from scfm.adapters.scmulan.network import STEPS, ScMulanConfig, ScMulanNetwork
from scfm.adapters.scmulan.tokenizer import SentenceTokenizer
from scfm.adapters.scmulan.weights import KEYS
from scfm.cards import ModelCard
from scfm.cells import Data
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary
from scfm.tensors import read_values

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
META = "meta_info.pt"
UNCLASSIFIED = "Unclassified"


class ScMulan(CellEncoder):
    """Cell embeddings and cell types of seven human organs: heart, lung, liver, bone marrow, blood, brain and thymus."""

    network: ScMulanNetwork
    config: ScMulanConfig
    Config = ScMulanConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION})
    poolings = ("generated", "prompt")

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A file of torch.save with `model_args` and scMulan's tensor names, alone or beside meta_info.pt."""
        try:
            values = _weights(checkpoint).values
        except CheckpointError:
            return False
        names = values.get("model") if isinstance(values, Mapping) else None
        return (
            isinstance(names, Mapping)
            and isinstance(values.get("model_args"), Mapping)
            and any(name.endswith("transformer.wee.weight") for name in names)
        )

    @classmethod
    def build(cls, config: ScMulanConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = SentenceTokenizer(vocabulary, levels=config.levels)
        return cls(config=config, network=ScMulanNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read ckpt_scMulan.pt and meta_info.pt (or the shipped tokens, which are those of the released model)."""
        args = _weights(checkpoint).values["model_args"]
        if args.get("ele", 1) != 1:
            raise CheckpointError(
                f"{checkpoint.weights_path} has ele={args['ele']!r}; scMulan's released code requires 1."
            )
        meta = _meta(checkpoint)
        tokens = [str(token) for token in meta["token_set"]]
        config = ScMulanConfig(
            tokens=args["vocab_size"],
            levels=args["expression_level"],
            dim=args["n_embd"],
            layers=args["n_layer"],
            heads=args["n_head"],
            bias=args["bias"],
            dropout=args["dropout"],
            cell_types=tuple(sorted(map(str, meta["cell_type"]))),
            coarse_types=tuple(sorted(map(str, meta["MCT"]))),
        )
        vocabulary = _vocabulary(tokens, [str(gene) for gene in meta["gene_set"]], config.tokens, checkpoint)
        encoder = cls.build(config, vocabulary, checkpoint.card or ModelCard.read(HERE / "cards" / "default.toml"))
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Token embeddings (n_tokens, dim), without levels."""
        return self.network.tokens.weight

    def cell_types(self, data: Data, **options: Any) -> pd.DataFrame:
        """Cell types as scMulan writes them behind a cell's sentence.

        Parameters
        ----------
        data
            AnnData, path of an `.h5ad` or `.zarr`, or a list of these.
        options
            Arguments of `encode`: layer, gene_column, batch_size, ...

        Returns
        -------
        pd.DataFrame
            A row a cell, in the order of the data: `cell_type` (the second token written, fine or coarse) and `coarse_type` (the first);
            "Unclassified" where the token is no cell type, as in the original.
        """
        import pandas as pd

        types = {*self.config.cell_types, *self.config.coarse_types}
        names = [token if token in types else UNCLASSIFIED for token in self.vocabulary.tokens]
        named = np.array([*names, UNCLASSIFIED], dtype=object)  # the last for -1, where nothing was written
        generated = self.output(data, "generated", **options).astype(np.int64).reshape(-1, STEPS)
        return pd.DataFrame({"cell_type": named[generated[:, 1]], "coarse_type": named[generated[:, 0]]}, dtype=object)


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """Of the .pt files, the one that is not meta_info.pt."""
    if checkpoint.weights_file is None and checkpoint.has(META):
        others = [name for name in checkpoint.files() if name.endswith(".pt") and name != META]
        if len(others) == 1:
            checkpoint.weights_file = others[0]
    return checkpoint


def _meta(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The folder's meta_info.pt, else the shipped one."""
    if checkpoint.has(META):
        return read_values(checkpoint.path(META))
    return json.loads(gzip.decompress((HERE / "data" / "meta_info.json.gz").read_bytes()))


def _vocabulary(tokens: list[str], genes: list[str], rows: int, checkpoint: Checkpoint) -> Vocabulary:
    """All tokens; those that are no genes are special, by their own names."""
    source = checkpoint.folder / META if checkpoint.has(META) else "the shipped list"
    if len(tokens) != rows:
        raise CheckpointError(
            f"{source} has {len(tokens)} tokens, the model {rows}.",
            "Put the meta_info.pt that belongs to the weights into the folder.",
        )
    if tokens[1 : len(genes) + 1] != genes or tokens[0] != "<E>":
        raise CheckpointError(f"the tokens of {source} do not begin with '<E>' and the genes in the order of gene_set.")
    special = {token: token for token in tokens[len(genes) + 1 :]}
    if "<PCT>" not in special:
        raise CheckpointError(f"{source} has no token '<PCT>', which asks for the cell type.")
    return Vocabulary(
        tuple(tokens), ids="symbol", species=("human",), special={"end": "<E>", "prompt": "<PCT>", **special}
    )
