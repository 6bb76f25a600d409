"""UCE (Rosen et al. 2023, doi:10.1101/2023.11.28.568918): protein embeddings of genes drawn by expression, in genomic order.

Original code: github.com/snap-stanford/UCE at 8ead6e0 (MIT). Differs from it: a cell's draws come from a hash of the cell, not from an
unseeded stream shared by all (``with_options(sampling="upstream")`` gives that); no padding is attended to, as in the original with a
batch size of 1 (``with_options(group_size=25)`` pads as its default batch size does); neither genes nor cells are filtered; of the token
table only the rows of the wanted species are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adapters.uce.network import UCEConfig, UCENetwork
from scfm.adapters.uce.tokenizer import SentenceTokenizer
from scfm.adapters.uce.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, SpeciesError, listing
from scfm.genes import Vocabulary, gene_rows
from scfm.proteins import protein_genes
from scfm.species import SCIENTIFIC, common_name
from scfm.tensors import read_tensors
from scfm.unpickle import safe_unpickle

if TYPE_CHECKING:
    import pandas as pd

SPECIAL = {"pad": "<pad>", "open": "<chromosome>", "close": "</chromosome>", "cls": "<cls>"}  # the authors' rows 0 to 3
TRAINED = ("human", "mouse", "zebrafish", "frog", "mouse lemur", "pig", "macaque", "crab-eating macaque")
_ROWS = 8192  # genes projected at a time
HEADS = 20  # a constant in the authors' evaluate.py; no file states it


class UCE(CellEncoder):
    """The 4-layer and the 33-layer model, one species at a time.

    Load options
    ------------
    species
        Whose genes to read: "human" by default, another one of the eight, or a new one with the files of the authors' recipe beside the
        model, e.g. chicken_pe_tokens.torch, chicken_offsets.pkl and chicken_to_chrom_pos.csv.
    proteins
        Name of the species' file in protein_embeddings/, where the name of the species does not tell.
    heads
        Attention heads of a model that is not the authors'.
    """

    network: UCENetwork
    tokenizer: SentenceTokenizer
    Config = UCEConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION})
    gene_kinds = ("projected", "protein")
    load_options: ClassVar = frozenset({"species", "proteins", "heads"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """Tables of species and chromosomes beside a file with UCE's tensor names."""
        if not checkpoint.has("species_chrom.csv", "species_offsets.pkl"):
            return False
        keys = _weights(checkpoint).keys(KEYS.strip)
        return {"pe_embedding.weight", "gene_embedding_layer.0.weight", "binary_decoder.3.weight"} <= keys

    @classmethod
    def build(cls, config: UCEConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = SentenceTokenizer(vocabulary, context=config.context, sample=min(1024, config.context - 3))
        return cls(config=config, network=UCENetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the weights, the species' protein file and the chromosome table."""
        _weights(checkpoint)
        vocabulary = _vocabulary(checkpoint, checkpoint.options.get("species", "human"))
        config = _config(checkpoint, len(vocabulary))
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(config))
        rows = vocabulary.columns["row"].astype(np.int64)
        checkpoint.load_into(encoder.network, KEYS, rows={"table.weight": rows})
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Vectors of all tokens: "projected" to the model's space (n_tokens, dim), or "protein" embeddings (n_tokens, token_dim)."""
        table = self.network.table.weight
        return table if kind == "protein" else torch.cat([self.network.genes(part) for part in table.split(_ROWS)])

    def predict_expressed(self, cells: np.ndarray, genes: Sequence[str]) -> np.ndarray:
        """Whether genes are expressed in cells, by the head that pre-training used.

        Parameters
        ----------
        cells
            (n_cells, dim) float32, from `embed`.
        genes
            Symbols of the loaded species.

        Returns
        -------
        np.ndarray
            (n_cells, n_genes) float32 logits.

        Raises
        ------
        GeneMatchError
            A gene is unknown.
        """
        rows = torch.from_numpy(gene_rows(self.vocabulary, genes)).to(self.device)[None]
        with torch.inference_mode():
            return self.network.predict_expressed(torch.from_numpy(cells).to(self.device), rows).float().cpu().numpy()


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """The model's file; the token files beside it are not weights."""
    if checkpoint.weights_file is None:
        found = [
            name
            for name in checkpoint.files()
            if name.endswith((".torch", ".pt", ".safetensors")) and not name.endswith("_tokens.torch")
        ]
        if len(found) == 1:
            checkpoint.weights_file = found[0]
    return checkpoint


def _config(checkpoint: Checkpoint, tokens: int) -> UCEConfig:
    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no tensor {name!r}.")
        return tensor.shape[axis]

    layers = {key.split(".")[2] for key in checkpoint.keys(KEYS.strip) if key.startswith("transformer_encoder.layers.")}
    dim, heads = size("encoder.0.weight"), checkpoint.options.get("heads", HEADS)
    if dim % heads:
        raise CheckpointError(
            f"{checkpoint.weights_path} has states of {dim} numbers, which {heads} heads do not divide.",
            "Pass heads=<number>, if the model is not one of the authors'.",
        )
    return UCEConfig(
        tokens=tokens,
        token_dim=size("encoder.0.weight", 1),
        dim=dim,
        heads=heads,
        hidden=size("transformer_encoder.layers.0.linear1.weight"),
        layers=len(layers),
        output_dim=size("decoder.3.weight"),
        decoder_hidden=size("decoder.0.0.weight"),
        expressed_hidden=tuple(size(f"binary_decoder.{i}.0.weight") for i in range(3)),
        context=size("pos_encoder.pe"),
    )


def _vocabulary(checkpoint: Checkpoint, wanted: str) -> Vocabulary:
    """Special tokens, genes in the order of the protein file, and the chromosomes they lie on.

    The column "row" says where each token is in the token table that the network's rows are taken from; for a new species that table
    is its token file, which is put in the place of the checkpoint's own.
    """
    species = common_name(wanted)
    offsets = {common_name(name): name for name in _offsets(checkpoint, "species_offsets.pkl")}
    name, prefix = offsets.get(species, wanted), "species"
    if species not in offsets:
        prefix = wanted.lower().replace(" ", "_")
        _new_species(checkpoint, wanted, prefix, sorted(offsets))
        name = prefix
        own = next(key for key in checkpoint.tensors if KEYS.stripped(key) == "pe_embedding.weight")
        checkpoint.tensors[own] = _tokens_of(checkpoint, f"{prefix}_pe_tokens.torch")
    offset = _offsets(checkpoint, f"{prefix}_offsets.pkl")[name]
    table = checkpoint.tensor("pe_embedding.weight", KEYS.strip)
    assert table is not None
    spelled: dict[str, str] = {}  # in capitals, which are matched -> as the file has it; of several spellings the first
    for gene in protein_genes(_protein_file(checkpoint, species)):
        spelled.setdefault(gene.upper(), gene)
    genes = list(spelled)
    positions, chromosomes = _positions(checkpoint, prefix, name)
    first_chromosome = len(table) - len(chromosomes)  # the last rows are chromosomes
    if not 4 <= offset <= first_chromosome - len(genes):
        raise CheckpointError(
            f"the {len(genes)} genes of {species} from row {offset} on and {len(chromosomes)} chromosomes do not fit into "
            f"the token table's {len(table)} rows.",
            "Are the protein file, the offsets and the chromosome table those of the model?",
        )
    positions = positions.reindex(genes)
    placed = positions["chromosome"].notna().to_numpy()  # the original fails at data with other genes
    used = sorted(set(positions["chromosome"][placed]))
    tokens = [
        *SPECIAL.values(),
        *(spelled[gene] for gene, p in zip(genes, placed, strict=True) if p),
        *(f"<{c}>" for c in used),
    ]
    n_genes = int(placed.sum())
    place = {chromosome: 4 + n_genes + i for i, chromosome in enumerate(used)}
    code = {chromosome: first_chromosome + i for i, chromosome in enumerate(chromosomes)}
    blank, ends = np.full(4, np.nan), np.full(len(used), np.nan)
    return Vocabulary(
        tokens=tuple(tokens),
        ids="symbol",
        species=(species,),
        special=SPECIAL | {f"<{c}>": f"<{c}>" for c in used},
        fold_case=True,
        columns={
            "row": np.concatenate([np.arange(4), offset + np.flatnonzero(placed), [code[c] for c in used]]),
            "chromosome": np.concatenate([blank, positions["chromosome"][placed].map(place), ends]),
            "start": np.concatenate([blank, positions["start"][placed], ends]),
        },
        other_species=tuple(s for s in offsets if s != species),
    )


def _offsets(checkpoint: Checkpoint, file: str) -> dict[str, int]:
    """First row of each species' genes in the token table, by the authors' name of the species."""
    offsets: Any = safe_unpickle(checkpoint.path(file))
    if not isinstance(offsets, dict):
        raise CheckpointError(f"{checkpoint.folder / file} is not a dictionary from species to rows.")
    return {str(name): int(row) for name, row in offsets.items()}


def _new_species(checkpoint: Checkpoint, wanted: str, prefix: str, known: list[str]) -> None:
    needed = [f"{prefix}_pe_tokens.torch", f"{prefix}_offsets.pkl", f"{prefix}_to_chrom_pos.csv"]
    if missing := [name for name in needed if not checkpoint.has(name)]:
        raise SpeciesError(
            f"the model has no species {wanted!r}; it has {listing(known)}. For a new one, {checkpoint.folder} lacks {listing(missing)}.",
            "Pass species=<one of these>, or make the files as the authors' README says.",
        )


def _tokens_of(checkpoint: Checkpoint, file: str) -> Tensor:
    tensors = list(read_tensors(checkpoint.path(file)).values())
    if len(tensors) != 1 or tensors[0].dim() != 2:
        raise CheckpointError(f"{checkpoint.folder / file} is not one table of token vectors.")
    return tensors[0]


def _protein_file(checkpoint: Checkpoint, species: str) -> str:
    """Path of the species' protein embeddings, of which the names are read."""
    folder = checkpoint.folder / "protein_embeddings"
    scientific = SCIENTIFIC.get(species, species).replace(" ", "_")
    chosen = checkpoint.options.get("proteins")
    found = sorted(path for path in folder.glob("*.pt") if path.name.lower().startswith(f"{scientific.lower()}."))
    if chosen is not None or len(found) == 1:
        return str(folder / chosen if chosen is not None else found[0])
    there = listing(sorted(path.name for path in folder.glob("*.pt"))) or "nothing"
    raise CheckpointError(
        f"{folder} has {len(found)} files {scientific}.*.pt, which name the genes of {species} (there: {there}).",
        "Unpack the authors' protein_embeddings.tar.gz beside the model, or pass proteins=<file name>.",
    )


def _positions(checkpoint: Checkpoint, prefix: str, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Chromosome and start of one species' genes, and all chromosomes of the file: sorted names, whose places are their codes."""
    import pandas as pd

    file = checkpoint.path("species_chrom.csv" if prefix == "species" else f"{prefix}_to_chrom_pos.csv")
    columns = ["gene_symbol", "chromosome", "start", "species"]
    try:
        frame = pd.read_csv(file, usecols=columns, dtype={"chromosome": str, "gene_symbol": str})
    except ValueError as error:
        raise CheckpointError(f"{file} is not a table with the columns {listing(columns)}: {error}") from error
    frame["chromosome"] = frame["species"] + "_" + frame["chromosome"]
    own = frame[frame["species"] == name].drop_duplicates("gene_symbol").set_index("gene_symbol")
    if own.empty:
        raise SpeciesError(f"{file} has no genes of {name!r}.", f"It has {listing(sorted(frame['species'].unique()))}.")
    return own, sorted(frame["chromosome"].dropna().unique())


def _card(config: UCEConfig) -> ModelCard:
    return ModelCard(
        name="uce/local",
        title=f"UCE checkpoint with {config.layers} layers",
        paper="10.1101/2023.11.28.568918",
        code="https://github.com/snap-stanford/UCE",
        code_licence="MIT",
        species=TRAINED,
        input=InputContract(values="counts", genes="symbol"),
    )
