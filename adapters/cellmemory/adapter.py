"""CellMemory (Wang et al. 2024, bioRxiv): genes of a reference, written to and read from a memory of a few slots; trained with labels.

Original code: github.com/QifeiWang4Bio/CellMemory at 98ef64a (MIT). Differs from it: cells are not padded to the longest of the data set
(``with_options(pad_to=...)`` does); a gene's score is its own, not that of the gene before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adapters.cellmemory.network import HEAD_DIM, CellMemoryConfig, CellMemoryNetwork
from scfm.adapters.cellmemory.tokenizer import ReferenceTokenizer
from scfm.adapters.cellmemory.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.cells import Data
from scfm.checkpoint import Checkpoint, KeyMap
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError
from scfm.genes import Vocabulary, id_kind

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS, GENES, LABELS, BINS = "_ckpt.pth", "_ref_gene.txt", "_idx2celltype.txt", "MaxBin.txt"
POSITIONS = ("transformer.pe.pe", "transformer.pe.pos_emb_weight")
"""In the files of both modes, added to the tokens in full mode only."""
UNASSIGNED = "UnAssigned"


class CellMemory(CellEncoder):
    """A model trained on a reference with the authors' code, in fast or full mode.

    Load options
    ------------
    passes
        How often the layer is applied (the authors' `num_layers`), which the files do not tell; 4 by default.
    topk
        Tokens that a head writes to a slot (the authors' `use_topk`, `topk`), which the files do not tell; 0, all, by default.
    """

    network: CellMemoryNetwork
    tokenizer: ReferenceTokenizer
    Config = CellMemoryConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS})
    load_options: ClassVar = frozenset({"passes", "topk"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """`<P>_ckpt.pth` beside `<P>_ref_gene.txt`."""
        return any(checkpoint.has(name + GENES) for name in _projects(checkpoint))

    @classmethod
    def build(cls, config: CellMemoryConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = ReferenceTokenizer(vocabulary, mode=config.mode, bins=config.bins)
        return cls(config=config, network=CellMemoryNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the weights, the reference's genes and cell types, and the number of bins."""
        if checkpoint.weights_file is None and len(names := _projects(checkpoint)) == 1:
            checkpoint.weights_file = names[0] + WEIGHTS
        project = checkpoint.weights_path.name.removesuffix(WEIGHTS)
        genes = _lines(checkpoint, project + GENES)
        config = _config(checkpoint, len(genes), _lines(checkpoint, project + LABELS))
        encoder = cls.build(config, reference_vocabulary(genes, config.mode), checkpoint.card or _card(project))
        unused: dict[str, str | tuple[str, ...] | None] = {}
        if config.mode == "fast":
            unused = dict.fromkeys(POSITIONS)
        checkpoint.load_into(encoder.network, KeyMap({**KEYS.names, **unused}, KEYS.strip))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """The table of genes (n_tokens, dim)."""
        return self.network.genes.weight

    def classify(self, data: Data, *, cutoff: float = 0.1, **reading: Any) -> pd.DataFrame:
        """Cell types of the reference.

        Parameters
        ----------
        data
            As for `embed`.
        cutoff
            Cells whose likeliest type has a lower probability are "UnAssigned".
        reading
            Arguments of `encode`: layer, gene_column, values, ...

        Returns
        -------
        pd.DataFrame
            (n_cells, 2): "label" str and its "probability" float32, in the order of the data.
        """
        import pandas as pd

        names = np.array(self.config.labels, dtype=object)
        logits = torch.from_numpy(self.output(data, "logits", **reading)).reshape(-1, len(names))
        shares = logits.softmax(dim=-1).numpy()
        top, label = shares.max(axis=1), names[shares.argmax(axis=1)]
        return pd.DataFrame({"label": np.where(top >= cutoff, label, UNASSIGNED), "probability": top})

    def memory_scores(self, data: Data, *, shifted: bool = False, **reading: Any) -> pd.DataFrame:
        """How strongly each gene reaches the cell's embedding through the memory in the last pass: attended[cls] @ written.

        Parameters
        ----------
        data
            As for `embed`.
        shifted
            In fast mode, give each expressed gene the score of the one before it, and the first that of the class token, as the
            original does.
        reading
            Arguments of `encode`: layer, gene_column, values, ...

        Returns
        -------
        pd.DataFrame
            (n_cells, n_genes) float32 over the genes of the reference, in the order of the data; 0 for genes without a token.
        """
        import pandas as pd

        genes = self.vocabulary.genes
        column = np.full(len(self.vocabulary), -1)
        column[genes] = np.arange(len(genes))
        rows: dict[int, np.ndarray] = {}
        for cells, tokens, out in self.encode(data, outputs=("gene_scores", "cls_score"), **reading):
            for i, cell in enumerate(cells.tolist()):
                at = column[tokens.cell(i)["ids"]]
                own = out.heads["gene_scores"][i, : len(at)].numpy()
                if shifted and self.config.mode == "fast":
                    own = np.concatenate([out.heads["cls_score"][i : i + 1].numpy(), own[:-1]])
                rows[cell] = np.zeros(len(genes), dtype=np.float32)
                rows[cell][at[at >= 0]] = own[at >= 0]
        scores = np.stack([rows[cell] for cell in sorted(rows)]) if rows else np.zeros((0, len(genes)), np.float32)
        return pd.DataFrame(scores, columns=pd.Index([self.vocabulary.tokens[i] for i in genes], dtype=object))


def reference_vocabulary(genes: list[str], mode: str) -> Vocabulary:
    """Gene j of the reference has id j + 1; id 0 is not used, and in fast mode the last one is padding."""
    tokens, special = ["<none>", *genes], {"none": "<none>"}
    if mode == "fast":
        tokens.append("<pad>")
        special["pad"] = "<pad>"
    ids: Literal["symbol", "ensembl"] = "ensembl" if id_kind(genes) == "ensembl" else "symbol"
    return Vocabulary(tuple(tokens), ids=ids, species=("any",), special=special)


def _projects(checkpoint: Checkpoint) -> list[str]:
    return [file.removesuffix(WEIGHTS) for file in checkpoint.files() if file.endswith(WEIGHTS)]


def _lines(checkpoint: Checkpoint, name: str) -> list[str]:
    return [line for line in checkpoint.path(name).read_text(encoding="utf-8").splitlines() if line]


def _config(checkpoint: Checkpoint, genes: int, labels: list[str]) -> CellMemoryConfig:
    def shape(name: str) -> tuple[int, ...]:
        tensor = checkpoint.tensor(name, KEYS.strip)
        if tensor is None:
            raise CheckpointError(f"{checkpoint.weights_path} has no {name}.")
        return tuple(tensor.shape)

    memory = "transformer.enc.self_attn.relational_memory"
    slots, dim, _ = shape(f"{memory}.memory_gate_projector.weight")
    fast = "embedding.gene_ids_embedding.weight" in checkpoint.keys(KEYS.strip)
    rows = (
        shape("embedding.gene_ids_embedding.weight")[0] - 2
        if fast
        else shape("embedding.position_embedding.weight")[0] - 1
    )
    if rows != genes or shape("mlp_head.weight")[0] != len(labels):
        raise CheckpointError(
            f"{checkpoint.weights_path} is for {rows} genes and {shape('mlp_head.weight')[0]} cell types; "
            f"the files beside it name {genes} and {len(labels)}."
        )
    return CellMemoryConfig(
        genes=genes,
        mode="fast" if fast else "full",
        dim=dim,
        hidden=shape("transformer.enc.fc1.weight")[0],
        heads=shape(f"{memory}.query_proj.weight")[0] // HEAD_DIM,
        passes=int(checkpoint.options.get("passes", 4)),
        slots=slots,
        bins=int(checkpoint.path(BINS).read_text())
        if checkpoint.has(BINS)
        else shape("embedding.token_embedding.weight")[0] - (1 if fast else 2),
        topk=int(checkpoint.options.get("topk", 0)),
        labels=tuple(labels),
    )


def _card(project: str) -> ModelCard:
    return ModelCard(
        name="cellmemory/local",
        title=f"CellMemory project {project}",
        code="https://github.com/QifeiWang4Bio/CellMemory",
        code_licence="MIT",
        species=("any",),
        input=InputContract(values="lognorm", genes="any"),
    )
