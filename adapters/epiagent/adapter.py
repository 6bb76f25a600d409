"""EpiAgent (Chen et al. 2025, doi:10.1038/s41592-025-02822-z): a cell is the sentence of its open cCREs, ranked by TF-IDF.

Original code: github.com/xy-chen16/EpiAgent at e5d0e6f (MIT). Differs from it: own attention (no flash-attn, any device); equal TF-IDF
values come in genome order; float32, not fp16 autocast; peaks of another set are counted in the cCREs they overlap (`map_genes=True`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adapters.epiagent.network import FIRST_REGION, EpiAgentConfig, EpiAgentNetwork
from scfm.adapters.epiagent.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError
from scfm.genes import Vocabulary
from scfm.regions import Regions
from scfm.tokenizers.base import batch_options
from scfm.tokenizers.regions import RegionTokenizer

SPECIAL = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "reserved": "[RESERVED]"}
BED, FREQUENCY = "cCRE.bed", "cCRE_document_frequency.npy"


class EpiAgent(CellEncoder):
    """Pre-trained, supervised (B, NT), batch-correcting (BC) and perturbation (PT) checkpoints of EpiAgent.

    Load options
    ------------
    reference
        Folder with the authors' `cCRE.bed` and `cCRE_document_frequency.npy` (in `data/` of their repository), where they do not lie
        beside the weights.
    heads
        Attention heads; 8 in every release, and not in the file.
    batches
        Names of the batches of a BC checkpoint, in the order of its labels (the file holds numbers only).
    document_frequency
        "file" (the default) reads the authors' `cCRE_document_frequency.npy`; "data" loads without it: count it in your cells with
        `scfm.document_frequency.counted_in` before you embed.
    """

    network: EpiAgentNetwork
    tokenizer: RegionTokenizer
    Config = EpiAgentConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.ACCESSIBILITY}
    )
    load_options: ClassVar = frozenset({"reference", "heads", "batches", "document_frequency"})

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """A file with EpiAgent's tensor names."""
        return {"cCRE_embedding.weight", "rank_embedding.weight"} <= checkpoint.keys()

    @classmethod
    def build(cls, config: EpiAgentConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = RegionTokenizer(vocabulary, context=config.context)
        return cls(config=config, network=EpiAgentNetwork(config), tokenizer=tokenizer, card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the weights, the regions and their document frequency; the parts present decide the kind of checkpoint."""
        reference = Path(checkpoint.options.get("reference", checkpoint.folder))
        counted = checkpoint.options.get("document_frequency", "file")
        if counted not in ("file", "data"):
            raise InputError(f"document_frequency={counted!r} is not known.", "Pass 'file' or 'data'.")
        for name, what, needed in (
            (BED, "says what the tokens are", True),
            (FREQUENCY, "ranks the regions of a cell", counted == "file"),
        ):
            if needed and not (reference / name).is_file():
                raise CheckpointError(
                    f"{reference} has no {name}, which {what}.",
                    "It is in data/ of the authors' repository: scfm.load(folder, reference='./that_folder')."
                    + ("" if name == BED else " Or pass document_frequency='data' to count it in your own cells."),
                )
        regions = Regions.read_bed(reference / BED)
        perturbs = checkpoint.tensor("sim_layers.0.lin.weight") is not None
        perturbations = checkpoint.json("perturbations.json") if perturbs else []
        graph = [np.load(checkpoint.path(name)) for name in ("G_go.npy", "G_go_weight.npy")] if perturbations else []
        config = _config(checkpoint, len(regions), len(perturbations), graph[0].shape[1] if graph else 0)
        frequency = np.load(reference / FREQUENCY) if counted == "file" else None
        vocabulary = _vocabulary(regions, frequency, perturbations)
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        checkpoint.load_into(encoder.network, KEYS, optional=("graph.edges", "graph.weights"))
        if encoder.network.graph is not None:
            encoder.network.graph.edges.copy_(torch.from_numpy(graph[0]))
            encoder.network.graph.weights.copy_(torch.from_numpy(graph[1]))
        if config.batches:
            encoder = encoder.with_options(**batch_options(checkpoint.options.get("batches"), config.batches))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Embeddings of all tokens, the regions among them (n_tokens, dim)."""
        return self.network.regions.weight


def _config(checkpoint: Checkpoint, regions: int, perturbations: int, edges: int) -> EpiAgentConfig:
    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name)
        return 0 if tensor is None else tensor.shape[axis]

    tokens, dim = size("cCRE_embedding.weight"), size("cCRE_embedding.weight", 1)
    if tokens != FIRST_REGION + regions + perturbations:
        raise CheckpointError(
            f"{checkpoint.weights_path.name} has {tokens} tokens; {BED} has {regions} regions, with 4 special tokens"
            + (f" and {perturbations} perturbations." if perturbations else "."),
            "Use the cCRE.bed that belongs to these weights.",
        )
    layers = {key.split(".")[2] for key in checkpoint.tensors if key.startswith("EpiAgent_transformer.layers.")}
    return EpiAgentConfig(
        tokens=tokens,
        regions=regions,
        dim=dim,
        heads=checkpoint.options.get("heads", 8),
        hidden=size("EpiAgent_transformer.layers.0.mlp.fc1.weight"),
        layers=len(layers),
        context=size("rank_embedding.weight"),
        signals=size("signal_decoder.weight"),
        openness=size("fc1_for_RLM.weight"),
        membership=size("fc1_for_CCA.weight"),
        classes=_classes(checkpoint, size("classifier.fc3.weight")),
        batches=size("batch_embedding.weight"),
        edges=edges,
    )


def _vocabulary(regions: Regions, frequency: np.ndarray | None, perturbations: list[str]) -> Vocabulary:
    column = np.full(FIRST_REGION + len(regions) + len(perturbations), np.nan)
    if frequency is not None:
        if len(frequency) != len(regions):
            raise CheckpointError(f"{FREQUENCY} has {len(frequency)} values, {BED} {len(regions)} regions.")
        positive = frequency[frequency > 0]
        if not len(positive):
            raise CheckpointError(f"{FREQUENCY} has no positive value.")
        # a region closed in every cell of the corpus would have infinite weight; it gets that of the rarest one
        column[FIRST_REGION : FIRST_REGION + len(regions)] = np.where(frequency > 0, frequency, positive.min())
    special = {**SPECIAL, **{name: f"[PERTURBED {name}]" for name in perturbations}}
    names = [*SPECIAL.values(), *regions.names, *(special[name] for name in perturbations)]
    return Vocabulary(
        tuple(names),
        ids="region",
        species=("human",),
        special=special,
        columns={"document_frequency": column},
        build="hg38",
    )


def _classes(checkpoint: Checkpoint, count: int) -> tuple[str, ...]:
    """Sorted names of the cell types: the authors' label encoder, not the order of their json."""
    if not count:
        return ()
    lists = [name for name in checkpoint.files() if name.endswith("cell_types.json")]
    if not lists:
        return tuple(str(i) for i in range(count))
    names = tuple(sorted(checkpoint.json(lists[0])))
    if len(names) != count:
        raise InputError(f"{lists[0]} names {len(names)} cell types, the classifier has {count} classes.")
    return names


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="epiagent/local",
        title=f"EpiAgent checkpoint in {checkpoint.folder.name}",
        paper="10.1038/s41592-025-02822-z",
        code="https://github.com/xy-chen16/EpiAgent",
        code_licence="MIT",
        species=("human",),
        modality=("atac",),
        input=InputContract(values="counts", genes="region"),
    )
