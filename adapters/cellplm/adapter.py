"""CellPLM (Wen et al. 2024, ICLR, openreview.net/forum?id=BKXvPDekud): cells are the tokens, and those of one group attend to each other.

Original code: github.com/OmicsML/CellPLM at b59ee76 (BSD-2-Clause). Differs from it: the mixture's cluster is the likeliest one, not a new
draw in every call (``with_options(clusters="upstream")`` draws as the original does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from scfm.adapters.cellplm.network import CellPLMConfig, CellPLMNetwork
from scfm.adapters.cellplm.tokenizer import CellSetTokenizer
from scfm.adapters.cellplm.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.cells import Data
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, GeneMatchError
from scfm.genes import Vocabulary, gene_rows

CONFIG, WEIGHTS = ".config.json", ".best.ckpt"

OFF = {"dsbn": False, "input_covariate": False, "cat_pe": False}
"""Switches that no released checkpoint turns on, and that are not built here."""


class CellPLM(CellEncoder):
    """Pre-trained (gmvae, vae) and annotation checkpoints of CellPLM, with Flowformer or Performer layers.

    A folder with several pairs `<name>.config.json`, `<name>.best.ckpt`: name one, ``scfm.load(folder, weights="<name>.best.ckpt")``.
    """

    network: CellPLMNetwork
    tokenizer: CellSetTokenizer
    Config = CellPLMConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.EXPRESSION})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """`<name>.config.json` with a gene list and an encoder's kind, beside `<name>.best.ckpt`."""
        pairs = [name for name in _names(checkpoint) if checkpoint.has(name + WEIGHTS)]
        return any({"gene_list", "enc_mod", "latent_mod"} <= set(checkpoint.json(name + CONFIG)) for name in pairs)

    @classmethod
    def build(cls, config: CellPLMConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = CellSetTokenizer(vocabulary, draws=(config.clusters, config.dim))
        return cls(config=config, network=CellPLMNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the pair of configuration and weights; the parts present decide the kind of checkpoint."""
        if checkpoint.weights_file is None and len(names := _names(checkpoint)) == 1:
            checkpoint.weights_file = names[0] + WEIGHTS
        name = checkpoint.weights_path.name.removesuffix(WEIGHTS)
        settings = checkpoint.json(name + CONFIG)
        config = _config(checkpoint, settings, name)
        vocabulary = Vocabulary(tuple(settings["gene_list"]), ids="ensembl", species=("human",))
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(name))
        checkpoint.load_into(encoder.network, KEYS)
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The gene table (n_genes, hidden)."""
        return self.network.genes.weight

    def impute(self, data: Data, genes: Sequence[str] | None = None, **reading: Any) -> np.ndarray:
        """Counts the decoder expects, also of genes that were not measured (the authors' imputation).

        Parameters
        ----------
        data
            As for `embed`. Of several data sets, the genes measured in all of them are used.
        genes
            Genes to predict, of the model's vocabulary; None: the measured ones, in the order of the data.
        reading
            Arguments of `encode`: layer, gene_column, values, ...

        Returns
        -------
        np.ndarray
            (n_cells, n_genes) float32 means of the negative binomial, scaled so that those of the measured genes sum to the cell's own
            total over them. The original scales in the same way.
        """
        from scfm.reading import read

        self.require(Capability.EXPRESSION)
        how = {k: v for k, v in reading.items() if k in ("layer", "gene_column", "map_genes", "values")}
        opened = read(self, data, **how)
        opened.close()
        columns = [part.alignment.tokens[part.alignment.tokens >= 0] for part in opened.parts]
        measured = [token for token in dict.fromkeys(columns[0].tolist()) if all(token in own for own in columns[1:])]
        if not measured:
            raise GeneMatchError(f"no gene that {self.name} knows is measured in all {len(columns)} data sets.")
        wanted = np.array(measured) if genes is None else gene_rows(self.vocabulary, genes)
        out = np.empty((opened.n_cells, len(wanted)), dtype=np.float32)
        for cells, tokens, encoded in self.encode(data, outputs=("expression",), **reading):
            mean = encoded.heads["expression"].numpy()  # (n, all genes)
            scale = tokens.cells["total"] / mean[:, measured].sum(axis=1, dtype=np.float64)
            out[cells] = mean[:, wanted] * scale[:, None]
        return out


def _names(checkpoint: Checkpoint) -> list[str]:
    return [file.removesuffix(CONFIG) for file in checkpoint.files() if file.endswith(CONFIG)]


def _config(checkpoint: Checkpoint, settings: dict[str, Any], name: str) -> CellPLMConfig:
    keys = checkpoint.keys(KEYS.strip)

    def size(key: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(key, KEYS.strip)
        return 0 if tensor is None else tensor.shape[axis]

    for switch, value in OFF.items():
        if settings.get(switch, value) != value:
            raise CheckpointError(f"{name}{CONFIG} says {switch}={settings[switch]}; no released CellPLM has it.")
    for setting, known in (
        ("enc_mod", ("flowformer", "performer")),
        ("latent_mod", ("gmvae", "vae", "ae")),
        ("norm", ("groupnorm", "layernorm")),
    ):
        if settings.get(setting, "layernorm") not in known:
            raise CheckpointError(
                f"{name}{CONFIG} says {setting}={settings.get(setting)!r}; {', '.join(known)} can be built."
            )
    decoder = "decoder.out_layer.dec_1.weight" in keys
    linears = sorted(int(key.split(".")[2]) for key in keys if key.startswith("head.mlp.") and key.endswith(".weight"))
    table = "decoder.covariate_layers.0.{}.0.weight"
    return CellPLMConfig(
        genes=len(settings["gene_list"]),
        hidden=settings["enc_hid"],
        layers=settings["enc_layers"],
        heads=settings.get("enc_head", 8),
        attention=settings["enc_mod"],
        norm=settings.get("norm", "layernorm"),
        latent=settings["latent_mod"],
        dim=settings["post_latent_dim"],
        clusters=settings.get("num_clusters", 16) if settings["latent_mod"] == "gmvae" else 0,
        decoder_hidden=settings["dec_hid"] if decoder else 0,
        decoder_layers=settings["dec_layers"] if decoder else 0,
        batches=size(table.format("batch")),
        datasets=size(table.format("dataset")),
        platforms=size(table.format("platform")),
        classifier=tuple(size(f"head.mlp.{k}.weight") for k in linears),
        dropout=settings.get("model_dropout", 0.1),
    )


def _card(name: str) -> ModelCard:
    return ModelCard(
        name="cellplm/local",
        title=f"CellPLM checkpoint {name}",
        paper="openreview.net/forum?id=BKXvPDekud",
        code="https://github.com/OmicsML/CellPLM",
        code_licence="BSD-2-Clause",
        species=("human",),
        input=InputContract(values="counts", genes="ensembl", obs=("batch",), sees_other_cells=True),
    )
