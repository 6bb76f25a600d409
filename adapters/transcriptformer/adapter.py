"""TranscriptFormer (Pearce et al. 2025, doi:10.1101/2025.04.25.650731): a generative model of genes and counts across species.

Original code: PyPI transcriptformer 0.6.1 (MIT). Differs from it: only the rows of the wanted species are read; a species that the model
was not trained on gets consistent special tokens (``scfm.load(..., upstream=True)`` gives the original's); of features that
share an id the first counts, which the original does on request and refuses otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adapters.transcriptformer.network import TranscriptFormerConfig, TranscriptFormerNetwork
from scfm.adapters.transcriptformer.tokenizer import UNKNOWN, CausalTokenizer
from scfm.adapters.transcriptformer.weights import KEYS, WITHOUT_HEADS
from scfm.cards import InputContract, ModelCard
from scfm.cells import Data
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError, SpeciesError, listing
from scfm.genes import Vocabulary
from scfm.proteins import protein_genes, protein_vectors
from scfm.species import common_name

PAD, START = "[PAD]", "[START]"
SPECIAL = (
    UNKNOWN,
    START,
    "[END]",
    "[RD]",
    "[CELL]",
    PAD,
    "[MASK]",
)  # the authors' order, where config.json has no other
_ROWS = 8192  # genes projected at a time
OF_TOKENS = ("table.weight", "counts.bias.weight", "next_gene.second.weight", "next_gene.second.bias")
"""Parameters with one row a token."""


class TranscriptFormer(CellEncoder):
    """TF-Sapiens, TF-Exemplar and TF-Metazoa.

    Load options
    ------------
    species
        One of the model's species, or several: only their genes are read. All by default. With `proteins`, the name of a new species.
    proteins
        File of protein embeddings (ESM2, as the authors make them) of a species the model was not trained on: a path, or a name in the
        folder. Such an encoder embeds; it has no count and gene heads.
    upstream
        With `proteins`: number the special tokens as the original does, which keeps the ids of the checkpoint for a table of another order.
    """

    network: TranscriptFormerNetwork
    tokenizer: CausalTokenizer
    Config = TranscriptFormerConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.EXPRESSION}
    )
    poolings = ("mean", "protein")
    gene_kinds = ("projected", "protein")
    load_options: ClassVar = frozenset({"species", "proteins", "upstream"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """config.json and vocabs/ beside a file with TranscriptFormer's tensor names."""
        if not checkpoint.has("config.json", "model_weights.pt") or not (checkpoint.folder / "vocabs").is_dir():
            return False
        return {"gene_embeddings.embedding.weight", "gene_embeddings.mlp.layers.0.weight"} <= _weights(checkpoint).keys(
            KEYS.strip
        )

    @classmethod
    def build(cls, config: TranscriptFormerConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = CausalTokenizer(
            vocabulary,
            context=config.context + len(config.aux),
            clip=config.clip,
            aux_columns=(None,) * len(config.aux),
            aux_names=((UNKNOWN,),) * len(config.aux),
        )
        return cls(config=config, network=TranscriptFormerNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read config.json, the vocabularies and the weights."""
        settings = _Settings.read(_weights(checkpoint))
        card = checkpoint.card or _card(checkpoint)
        if "proteins" in checkpoint.options:
            return cls._new_species(checkpoint, settings, card)
        if checkpoint.options.get("upstream"):
            raise InputError("upstream=True is for species the model was not trained on.", "Pass proteins=<file> too.")
        vocabulary, rows = _vocabulary(checkpoint, settings)
        encoder = cls._built(settings, vocabulary, card)
        part = {} if rows is None else {name: rows for name in OF_TOKENS}
        checkpoint.load_into(encoder.network, KEYS, rows=part)
        return encoder

    @classmethod
    def _built(cls, settings: _Settings, vocabulary: Vocabulary, card: ModelCard, **changes: Any) -> Self:
        config = replace(settings.config, tokens=settings.rows(vocabulary), pad=vocabulary.id("pad"), **changes)
        encoder = cls.build(config, vocabulary, card)
        return encoder.with_options(aux_columns=config.aux, aux_names=settings.aux_names)

    @classmethod
    def _new_species(cls, checkpoint: Checkpoint, settings: _Settings, card: ModelCard) -> Self:
        """With the protein embeddings of another species in the place of the checkpoint's."""
        name = str(checkpoint.options["proteins"])
        path = checkpoint.folder / name  # an absolute path stays what it is
        genes = protein_genes(path)
        old = list(settings.special)
        start, fill = START, False
        if checkpoint.options.get("upstream"):  # ids of the checkpoint's order, tokens of the new one
            start = SPECIAL[old.index(START)]
            fill = SPECIAL[old.index(PAD)] != PAD
        species = common_name(checkpoint.options.get("species", path.name.partition("_gene.")[0]))
        vocabulary = settings.vocabulary(SPECIAL, genes, (species,), start=start)
        own = next(key for key in checkpoint.tensors if KEYS.stripped(key) == "gene_embeddings.embedding.weight")
        kept = checkpoint.tensors[own][[old.index(token) for token in SPECIAL]]
        checkpoint.tensors[own] = torch.cat([kept, protein_vectors(path)])
        encoder = cls._built(settings, vocabulary, card, expression=False, gene_hidden=0)
        checkpoint.load_into(encoder.network, WITHOUT_HEADS)
        return encoder.with_options(fill=fill)

    def gene_vectors(self, kind: str) -> Tensor:
        """Vectors of all tokens: "projected" to the model's space (n_tokens, dim), or "protein" embeddings (n_tokens, protein_dim)."""
        table = self.network.table.weight
        return table if kind == "protein" else torch.cat([self.network.genes(part) for part in table.split(_ROWS)])

    def contextual_genes(self, data: Data, **options: Any) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Gene embeddings in the context of each cell: the state that predicts a gene, not one that has read it, as in the original.

        Parameters
        ----------
        data
            As for `embed`.
        options
            Arguments of `encode`: layer, gene_column, map_genes, hidden_layer, ...

        Yields
        ------
        cell
            Position of the cell in the data.
        genes
            (n,) its expressed genes, in the order of the columns.
        vectors
            (n, dim) float32.
        """
        names = np.array(self.vocabulary.tokens, dtype=object)
        for cells, tokens, encoded in self.encode(data, outputs=("tokens",), **options):
            assert encoded.tokens is not None
            for row, cell in enumerate(cells):
                targets = tokens.cell(row)["targets"]
                real = np.flatnonzero(targets != self.config.pad)
                yield int(cell), names[targets[real]], encoded.tokens[row].numpy()[real]


@dataclass(frozen=True)
class _Settings:
    """What config.json and the assay vocabulary say."""

    config: TranscriptFormerConfig  # but for the tokens of the loaded species
    special: tuple[str, ...]  # in the order of their ids
    files: tuple[str, ...]  # protein files, in the order of their genes' ids
    aux_names: tuple[tuple[str, ...], ...]

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> _Settings:
        parts = checkpoint.json("config.json")
        parts = parts.get("model", parts)
        try:
            model, data, loss = parts["model_config"], parts["data_config"], parts["loss_config"]
            columns = tuple(filter(None, (name.strip() for name in (data["aux_cols"] or "").split(","))))
            aux_names = tuple(_aux_names(checkpoint, column) for column in columns)
            config = TranscriptFormerConfig(
                tokens=0,
                pad=0,
                protein_dim=_table_shape(checkpoint)[1],
                dim=model["embed_dim"],
                heads=model["num_heads"],
                hidden=model["model_dim"],
                layers=model["num_layers"],
                context=model["seq_len"],
                dropout=model["dropout"],
                activation=model["activation"],
                attention_bias=model["attn_bias"],
                hidden_bias=model["fw_bias"],
                softcap=model["softcap"] or 0,
                count_eps=model["log_counts_eps"],
                link=model["mu_link_fn"],
                aux=columns,
                aux_sizes=tuple(map(len, aux_names)),
                aux_unknown=tuple(names.index(UNKNOWN) for names in aux_names),
                gene_hidden=model["gene_head_hidden_dim"] if loss["gene_id_loss_weight"] > 0 else 0,
            )
            return cls(config, tuple(data["special_tokens"] or SPECIAL), tuple(data["esm2_mappings"]), aux_names)
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.folder / 'config.json'} has no {error}.") from error

    def vocabulary(
        self,
        special: Sequence[str],
        genes: Sequence[str],
        species: tuple[str, ...],
        *,
        start: str = START,
        others: tuple[str, ...] = (),
    ) -> Vocabulary:
        """Special tokens, genes, and at the end a token for each column of `obs`, which has a table of its own."""
        roles = {token: token for token in special if token not in (PAD, start)} | {"pad": PAD, "start": start}
        aux = {f"aux {i}": f"<{column}>" for i, column in enumerate(self.config.aux)}
        return Vocabulary(
            tokens=(*special, *genes, *aux.values()),
            ids="ensembl",
            species=species,
            special=roles | aux,
            other_species=others,
        )

    def rows(self, vocabulary: Vocabulary) -> int:
        """Rows of the tables that hold a vocabulary."""
        return len(vocabulary) - len(self.config.aux)


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.weights_file is None and checkpoint.has("model_weights.pt"):
        checkpoint.weights_file = "model_weights.pt"
    return checkpoint


def _table_shape(checkpoint: Checkpoint) -> tuple[int, int]:
    """Rows and columns of the protein table."""
    tensor = checkpoint.tensor("gene_embeddings.embedding.weight", KEYS.strip)
    if tensor is None:
        raise CheckpointError(f"{checkpoint.weights_path} has no gene_embeddings.embedding.weight.")
    return tensor.shape[0], tensor.shape[1]


def _aux_names(checkpoint: Checkpoint, column: str) -> tuple[str, ...]:
    """What the model knows of a column of `obs`, in the order of its table."""
    file = f"vocabs/{column}_vocab.json"
    index: dict[str, int] = checkpoint.json(file)
    names = tuple(sorted(index, key=lambda name: index[name]))
    if UNKNOWN not in index or sorted(index.values()) != list(range(len(index))):
        raise CheckpointError(
            f"{checkpoint.folder / file} has no {UNKNOWN!r}, or ids that are not 0..{len(index) - 1}."
        )
    return names


def _vocabulary(checkpoint: Checkpoint, settings: _Settings) -> tuple[Vocabulary, np.ndarray | None]:
    """The vocabulary of the wanted species, and their rows of the checkpoint's tables; None: all."""
    genes = {_species(file): protein_genes(checkpoint.path(f"vocabs/{file}")) for file in settings.files}
    every = list(dict.fromkeys([*settings.special, *(gene for own in genes.values() for gene in own)]))  # first wins
    wanted = checkpoint.options.get("species", tuple(genes))
    species = tuple(map(common_name, (wanted,) if isinstance(wanted, str) else wanted))
    if unknown := [name for name in species if name not in genes]:
        raise SpeciesError(
            f"the model has no species {listing(unknown)}; it has {listing(genes)}.",
            "Pass species=<one of these>, or proteins=<file of protein embeddings> for a new one.",
        )
    rows = _table_shape(checkpoint)[0]
    if rows != len(every):
        raise CheckpointError(
            f"the gene table of {checkpoint.weights_path.name} has {rows} rows; the special tokens and the genes of "
            f"{listing(settings.files)} are {len(every)}."
        )
    own = {gene for name in species for gene in genes[name]}
    kept = np.array([i for i, token in enumerate(every) if i < len(settings.special) or token in own])
    tokens = [every[i] for i in kept[len(settings.special) :]]
    others = tuple(name for name in genes if name not in species)
    vocabulary = settings.vocabulary(settings.special, tokens, species, others=others)
    return vocabulary, None if len(kept) == len(every) else kept


def _species(file: str) -> str:
    """Common name of the species of a protein file, e.g. homo_sapiens_gene.h5."""
    return common_name(file.rpartition("/")[2].partition("_gene.")[0])


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="transcriptformer/local",
        title=f"TranscriptFormer checkpoint in {checkpoint.folder.name}",
        paper="10.1101/2025.04.25.650731",
        code="https://github.com/czi-ai/transcriptformer",
        code_licence="MIT",
        species=tuple(_species(file) for file in _Settings.read(checkpoint).files),
        input=InputContract(values="counts", genes="ensembl", obs=("assay",)),
    )
