"""`CellEncoder`: the one interface of every model. An adapter states three facts; everything else is here.

The facts: how a cell becomes tokens (`tokenizer`), what the network is (`network`, built from `config`), and how the authors' weights map
onto it (`from_checkpoint`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from scfm.cards import ModelCard
from scfm.cells import Data, Values
from scfm.checkpoint import SAVED, WEIGHTS, Checkpoint
from scfm.errors import CapabilityError, CheckpointError, InputError, listing
from scfm.genes import Vocabulary, gene_rows
from scfm.tokenizers.base import Batch, Tokenizer, Tokens

if TYPE_CHECKING:
    import pandas as pd

    from scfm.engine import Devices, Precision
    from scfm.reading import InputReport

__all__ = ["Capability", "CellAttention", "CellEncoder", "Encoded", "Network", "Recovery", "Request"]


class Capability(StrEnum):
    """What an encoder can do beyond embedding cells."""

    EMBED = "embed"
    GENE_EMBEDDINGS = "gene_embeddings"
    ATTENTION = "attention"
    EXPRESSION = "expression"
    ACCESSIBILITY = "accessibility"
    TEXT = "text"
    SPATIAL = "spatial"


@dataclass(frozen=True)
class Request:
    """Which outputs a run needs; a network computes nothing else.

    Parameters
    ----------
    outputs
        Among "cells", "tokens", "attention" and the names of the network's heads.
    hidden_layer
        Read the states after this many layers; None is the authors' choice.
    pooling
        How a cell's vector is made of its tokens; None is the authors' choice.
    attention_layers
        Layers whose attention is read; None is all.
    """

    outputs: frozenset[str] = frozenset({"cells"})
    hidden_layer: int | None = None
    pooling: str | None = None
    attention_layers: tuple[int, ...] | None = None

    def wants(self, *names: str) -> bool:
        """Whether any of these outputs is needed."""
        return not self.outputs.isdisjoint(names)

    def attended(self, depth: int) -> tuple[int, ...]:
        """Which of a network's `depth` layers have their attention read; none unless "attention" is wanted."""
        if "attention" not in self.outputs:
            return ()
        return tuple(range(depth)) if self.attention_layers is None else self.attention_layers

    @property
    def only_attention(self) -> bool:
        """Whether nothing but attention is wanted: layers above the last one read need not be computed."""
        return self.outputs == {"attention"}

    def depth(self, depth: int) -> int:
        """How many of a network's `depth` layers are computed; the authors read the states behind all of them."""
        return depth if self.hidden_layer is None else self.hidden_layer


@dataclass
class Encoded:
    """Outputs of a network for one batch.

    Parameters
    ----------
    cells
        (b, dim) cell embeddings.
    tokens
        (b, t, dim) states of the tokens; padded positions hold anything.
    attention
        Layer -> (b, heads, t, t) probabilities.
    heads
        Further outputs by name, e.g. "logits" (b, classes), "expression" (b, t).
    """

    cells: Tensor | None = None
    tokens: Tensor | None = None
    attention: dict[int, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)

    def as_arrays(self) -> Encoded:
        """The same with numpy arrays, which go to another process by value."""
        return self._each(lambda x: x.numpy())

    def as_tensors(self) -> Encoded:
        """What `as_arrays` made, as tensors again."""
        return self._each(lambda x: torch.from_numpy(x))

    def _each(self, change: Callable[[Any], Any]) -> Encoded:
        return Encoded(
            None if self.cells is None else change(self.cells),
            None if self.tokens is None else change(self.tokens),
            {layer: change(x) for layer, x in self.attention.items()},
            {name: change(x) for name, x in self.heads.items()},
        )

    def cpu(self) -> Encoded:
        """The same on the CPU in float32."""

        def move(x: Tensor) -> Tensor:
            return x.detach().float().cpu() if x.is_floating_point() else x.detach().cpu()

        return self._each(move)


@dataclass(frozen=True)
class Recovery:
    """The head of a network that predicts what hidden tokens say (see `Hiding`), as its authors trained it.

    Parameters
    ----------
    head
        Its name.
    layout
        "token": (b, t) numbers or (b, t, classes) logits, one for every token. "gene": (b, n_genes) numbers, by token id. "patch":
        (b, n_genes) numbers in the order of the tokens' contents; the last token has the last genes. "cell": (b,) the loss itself of
        networks that predict a cell gene by gene, so that nothing is hidden.
    counts
        The numbers are mean counts, while the tokens hold their log1p.
    from_cell
        Name of a further head that predicts the same (b, t) from the cell's embedding, trained beside it.
    """

    head: str
    layout: Literal["token", "gene", "patch", "cell"] = "token"
    counts: bool = False
    from_cell: str = ""


class Network(nn.Module, ABC):
    """A torch module that encodes a batch of tokens."""

    dim: int
    """Length of a cell embedding, as the authors make it."""
    depth: int = 0
    """Number of layers whose states and attention can be asked for."""
    heads: frozenset[str] = frozenset()
    """Names of further outputs this network can give."""
    token_embedding: str | None = None
    """Name of the module that embeds a token's value, or the token where no value is read; token adapters follow it."""
    perturbation_flags: bool = False
    """Whether a batch's field "flags" (1 at perturbed genes) and "expression" make it predict expression after a perturbation."""
    recovery: Recovery | None = None
    """The head that predicts what hidden tokens say; None: there is none, or this checkpoint lacks it."""
    token_cost: float = 1
    """Memory of a token, in those of a plain encoder: batches hold so many times fewer. Above 1 where states are kept between passes; far
    below where a token is no more than a lookup."""

    @property
    def token_width(self) -> int:
        """Length of a token's state."""
        return self.dim

    def width(self, request: Request) -> int:
        """Length of a cell embedding with this pooling and from this layer."""
        return self.dim

    @abstractmethod
    def forward(self, batch: Batch, request: Request = Request()) -> Encoded:
        """Compute what `request` asks for, and nothing else."""


@dataclass(frozen=True)
class CellAttention:
    """Attention within one cell.

    Parameters
    ----------
    genes
        (t,) token strings, special tokens included.
    weights
        (layers, heads, t, t) float32, rows are queries; a row sums to 1.
    """

    genes: np.ndarray
    weights: np.ndarray


class CellEncoder(ABC):
    """A single-cell foundation model.

    Attributes
    ----------
    card
        Facts about the model.
    config
        Sizes and switches of the network: a frozen dataclass of plain values.
    tokenizer
        How a cell becomes tokens.
    network
        The torch module.
    origin
        Where the weights came from: source, revision, sha256.
    """

    Config: ClassVar[type]
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.EMBED})
    """What the model can; `EXPRESSION` and `ACCESSIBILITY` hold for networks with a head of this name only."""
    poolings: ClassVar[tuple[str, ...]] = ()
    """Choices of `pooling`, the authors' default first."""
    gene_kinds: ClassVar[tuple[str, ...]] = ("raw",)
    """Choices of `kind` of `gene_embeddings`, the authors' default first."""
    load_options: ClassVar[frozenset[str]] = frozenset()
    """Names that `scfm.load(..., name=value)` accepts for this adapter."""

    def __init__(
        self,
        *,
        config: Any,
        network: Network,
        tokenizer: Tokenizer,
        card: ModelCard,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.card = card
        self.origin: dict[str, str] = dict(origin or {})
        heads = {Capability.EXPRESSION, Capability.ACCESSIBILITY}  # parts that not every checkpoint of a model has
        self.capabilities = self.capabilities - (heads - set(network.heads))  # type: ignore[misc]

    # The facts an adapter states

    @classmethod
    @abstractmethod
    def build(cls, config: Any, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights (works under ``torch.device("meta")``)."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the authors' files."""

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """Whether the folder holds this model's files; lets ``scfm.load("./folder")`` find its adapter."""
        return False

    def gene_vectors(self, kind: str) -> Tensor:
        """Data-independent vectors of all tokens (n_tokens, dim), of one of `gene_kinds`; only where `GENE_EMBEDDINGS` is declared."""
        raise self._lacks(Capability.GENE_EMBEDDINGS)

    def text_tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokens of descriptions in words; only where `TEXT` is declared."""
        raise self._lacks(Capability.TEXT)

    def text_vectors(self, batch: Batch) -> Tensor:
        """Vectors of a batch of `text_tokens` in the space of the cells (b, dim); only where `TEXT` is declared."""
        raise self._lacks(Capability.TEXT)

    def for_batches(self, key: str, batches: Sequence[str]) -> Self | None:
        """The same model with parts of its own for these batches of ``obs[key]``, new ones where it has none yet; None without such parts.

        Tensors of the same name and shape are those of this encoder.
        """
        return None

    # Given by the core

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.card.name

    @property
    def dim(self) -> int:
        """Length of a cell embedding."""
        return self.network.dim

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokens of the model."""
        return self.tokenizer.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        tensor = next(iter([*self.network.parameters(), *self.network.buffers()]), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device ("cpu", "cuda", "cuda:1", "mps", or "auto", which leaves float64 on the CPU where MPS lacks it)."""
        from scfm.engine import resolve_device

        target = resolve_device(device)
        if target.type == "mps" and any(tensor.dtype == torch.float64 for tensor in self.network.state_dict().values()):
            if str(device) != "auto":
                raise InputError(f"{self.name} computes in float64, which {target} lacks.", "Pass device='cpu'.")
            target = torch.device("cpu")
        self.network.to(target)
        return self

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.network.parameters())
        return f"{type(self).__name__}({self.name!r}, dim={self.dim}, parameters={size:,}, device={str(self.device)!r})"

    def with_options(self, **options: Any) -> Self:
        """The same network with other tokenizer settings, e.g. ``encoder.with_options(context=600)``; unknown names are refused."""
        known = {f.name for f in fields(self.tokenizer) if f.init} - {"vocabulary"}  # type: ignore[arg-type]
        unknown = sorted(set(options) - known)
        if unknown:
            raise InputError(
                f"{self.name} has no tokenizer option {listing(unknown)}.", f"It has {listing(sorted(known), 20)}."
            )
        other = copy(self)
        other.tokenizer = replace(self.tokenizer, **options)  # type: ignore[type-var]
        return other

    def check(self, data: Data, **options: Any) -> InputReport:
        """Report how data fit this encoder without embedding them; see `scfm.check`."""
        from scfm.reading import check

        return check(self, data, **options)

    def embed(
        self,
        data: Data,
        *,
        layer: str | None = None,
        gene_column: str | None = None,
        map_genes: bool = False,
        values: Values | None = None,
        hidden_layer: int | None = None,
        pooling: str | None = None,
        empty_cells: Literal["nan", "embed", "error"] = "nan",
        batch_size: int | Literal["auto"] = "auto",
        precision: Precision = "float32",
        compile: bool = False,
        max_tokens: int | None = None,
        devices: Devices = None,
        key_added: str | None = None,
        out: str | PathLike[str] | None = None,
        resume: bool = True,
        progress: bool | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Embed cells.

        Parameters
        ----------
        data
            AnnData, path of an `.h5ad` or `.zarr` (streamed in bounded memory), or a list of these.
        layer
            Matrix to read: None for `X`, "raw" for `adata.raw`, else a key of `layers`.
        gene_column
            Column of `var` with the gene identifiers; None reads `var_names`.
        map_genes
            Strip Ensembl versions and map symbols <-> Ensembl ids with the shipped GENCODE tables.
        values
            What the matrix holds; None is what the model reads. "any" feeds the values as they are, unchecked but for NaN.
        hidden_layer
            Read the states after this many layers; None is the authors' choice.
        pooling
            How tokens become a cell vector; one of `poolings`.
        empty_cells
            Cells without any expressed gene the model knows: "nan" (rows of NaN and a warning), "embed" (what the network gives
            for special tokens alone) or "error".
        batch_size
            Most cells in a step; "auto" fills a token budget that suits the device. Encoders whose cells see each other compute whole
            groups, whatever it says: cut them with ``with_options(group_size=...)``.
        precision
            Arithmetic of the network. "float32" is exact; "bfloat16" and "float16" (autocast) are faster on GPUs, "int8" (8-bit weights) on
            CPUs. What they cost in agreement: docs/scale.md.
        compile
            Compile the network (``torch.compile``): long runs only, the first batches take minutes.
        max_tokens
            Keep so many tokens a cell: the highest ranked, or of the highest values. Not exact.
        devices
            Compute on several devices at once, each in a process of its own with a copy of the network: "all" CUDA devices, the first n, or
            names such as ``["cuda:0", "cuda:1"]``. None is the encoder's own device. The result is the same, in the same order.
            Scripts that use it need ``if __name__ == "__main__":``.
        key_added
            Also store in ``adata.obsm[key_added]``, with provenance in ``adata.uns["scfm"]``; for data on disk, the name in `out`.
            Without it `data` is never changed.
        out
            Write to this `.npy` (returned memory-mapped), `.zarr` or `.h5ad` as it goes.
        resume
            Continue an `out` that the same run began; False overwrites it.
        progress
            Show a progress bar; None shows it on terminals.
        seed
            For models with random tokenization; the result of a cell depends on it and on the cell only.

        Returns
        -------
        np.ndarray
            (n_cells, dim) float32, rows in the order of the data.

        Raises
        ------
        InputError
            The data are not what the model reads.
        GeneMatchError
            Too few features are known to the model.
        SpeciesError
            The genes are of another species.
        ResumeError
            `out` was begun by another run.
        """
        from scfm.engine import Run
        from scfm.inference import embed

        return embed(
            self,
            data,
            Run(
                Request(hidden_layer=hidden_layer, pooling=pooling),
                batch_size,
                precision,
                empty_cells,
                compile=compile,
                max_tokens=max_tokens,
            ),
            reading=dict(layer=layer, gene_column=gene_column, map_genes=map_genes, values=values),
            devices=devices,
            key_added=key_added,
            out=out,
            resume=resume,
            progress=progress,
            seed=seed,
        )

    def tokenize(
        self,
        data: Data,
        *,
        layer: str | None = None,
        gene_column: str | None = None,
        map_genes: bool = False,
        values: Values | None = None,
        seed: int = 0,
    ) -> Iterator[Tokens]:
        """Tokens of the cells, block by block; the arguments are those of `embed`."""
        from scfm.reading import read, tokenized

        reading = read(self, data, layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)
        with closing(reading):
            for block in tokenized(self, reading, seed):
                yield block.tokens

    def encode(
        self,
        data: Data,
        *,
        outputs: Sequence[str] = ("cells", "tokens"),
        layer: str | None = None,
        gene_column: str | None = None,
        map_genes: bool = False,
        values: Values | None = None,
        hidden_layer: int | None = None,
        pooling: str | None = None,
        attention_layers: Sequence[int] | None = None,
        batch_size: int | Literal["auto"] = "auto",
        precision: Precision = "float32",
        progress: bool | None = None,
        seed: int = 0,
    ) -> Iterator[tuple[np.ndarray, Tokens, Encoded]]:
        """Any outputs of the network, batch by batch.

        Parameters
        ----------
        outputs
            Among "cells", "tokens", "attention" and `network.heads`.

        Yields
        ------
        cells
            (b,) int64 positions of the cells in the data.
        tokens
            Their tokens.
        encoded
            The outputs, on the CPU in float32, padded to the longest of the batch.
        """
        from scfm.engine import Run
        from scfm.inference import encode
        from scfm.reading import read

        wanted = frozenset(outputs)
        unknown = sorted(wanted - {"cells", "tokens", "attention"} - self.network.heads)
        if unknown:
            heads = listing(sorted(self.network.heads)) or "no heads"
            raise CapabilityError(
                f"{self.name} has no output {listing(unknown)}; it has cells, tokens, attention and {heads}."
            )
        if "attention" in wanted:
            self.require(Capability.ATTENTION)
        request = Request(wanted, hidden_layer, pooling, None if attention_layers is None else tuple(attention_layers))
        run = Run(request, batch_size, precision)
        run.check(self)
        reading = read(self, data, layer=layer, gene_column=gene_column, map_genes=map_genes, values=values)
        results = encode(self, reading, run, progress=progress, seed=seed)

        def batches() -> Iterator[tuple[np.ndarray, Tokens, Encoded]]:
            with closing(results):
                for result in results:
                    for rows, encoded in result.batches:
                        yield result.cells[rows], result.tokens.select(rows), encoded

        return batches()

    def output(self, data: Data, name: str, **options: Any) -> np.ndarray:
        """One output of the network for every cell.

        Parameters
        ----------
        name
            "cells", "tokens" or one of `network.heads`.
        options
            Arguments of `encode`: layer, gene_column, hidden_layer, batch_size, ...

        Returns
        -------
        np.ndarray
            (n_cells, ...) in the order of the data. Cells whose outputs have different lengths are refused.
        """
        from scfm.inference import output

        return output(self, data, name, **options)

    def gene_embeddings(self, genes: Sequence[str] | None = None, *, kind: str | None = None) -> pd.DataFrame:
        """Data-independent gene embeddings.

        Parameters
        ----------
        genes
            Identifiers of the model's vocabulary; all genes by default.
        kind
            One of `gene_kinds`; None is the authors' choice.

        Returns
        -------
        pd.DataFrame
            (n_genes, dim) float32, indexed by gene.

        Raises
        ------
        CapabilityError
            The model has none.
        GeneMatchError
            A gene is unknown.
        """
        import pandas as pd

        self.require(Capability.GENE_EMBEDDINGS)
        kind = kind or self.gene_kinds[0]
        if kind not in self.gene_kinds:
            raise InputError(f"kind={kind!r} is not offered by {self.name}.", f"It offers {listing(self.gene_kinds)}.")
        rows = gene_rows(self.vocabulary, genes)
        with torch.inference_mode():
            vectors = self.gene_vectors(kind)[torch.from_numpy(rows).to(self.device)].float().cpu().numpy()
        names = [self.vocabulary.tokens[row] for row in rows] if genes is None else list(genes)
        return pd.DataFrame(vectors, index=pd.Index(names, dtype=object))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embed descriptions in words, e.g. of cell types, into the space of the cells.

        Parameters
        ----------
        texts
            As the model's authors word them; see its card.

        Returns
        -------
        np.ndarray
            (n_texts, dim) float32, to be compared with `embed` by cosine.

        Raises
        ------
        CapabilityError
            The model reads no text.
        """
        from scfm.texts import embed_text

        self.require(Capability.TEXT)
        return embed_text(self, texts)

    def attention(
        self,
        data: Data,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        reduce: Literal["mean", "none"] = "mean",
        **reading: Any,
    ) -> pd.DataFrame | list[CellAttention]:
        """Attention between genes.

        Parameters
        ----------
        layers, heads
            Numbers from 0; all by default.
        reduce
            "mean": one matrix, averaged over layers, heads and the cells in which both genes have tokens.
            "none": every cell's own weights.
        reading
            Arguments of `encode`: layer, gene_column, values, seed, ...

        Returns
        -------
        pd.DataFrame or list[CellAttention]
            "mean": (n_genes, n_genes) float32 over the genes seen, rows are queries, NaN where two genes never met.
            "none": one `CellAttention` per cell, in the order of the data.

        Raises
        ------
        CapabilityError
            The architecture has no gene-gene attention.
        """
        from scfm.attention import cell_attention, mean_attention

        self.require(Capability.ATTENTION)
        if reduce not in ("mean", "none"):
            raise InputError(f"reduce={reduce!r} is not known.", "Pass 'mean' or 'none'.")
        chosen = list(range(self.network.depth)) if layers is None else [int(i) for i in layers]
        if bad := [i for i in chosen if not 0 <= i < self.network.depth]:
            raise InputError(f"layers={bad} do not exist; {self.name} has layers 0 to {self.network.depth - 1}.")
        if reduce == "mean":
            return mean_attention(self, data, chosen, heads, **reading)
        batches = self.encode(data, outputs=("attention",), attention_layers=chosen, **reading)
        return cell_attention(batches, self.vocabulary, chosen, heads)

    def require(self, *capabilities: Capability) -> None:
        """Raise `CapabilityError` unless the encoder has these capabilities."""
        for capability in capabilities:
            if capability not in self.capabilities:
                raise self._lacks(capability)

    def _lacks(self, capability: Capability) -> CapabilityError:
        from scfm.registry import able_to

        able = able_to(capability)
        return CapabilityError(
            f"{self.name} has no {capability.value}.", f"Encoders that have it: {listing(able) or 'none installed'}."
        )

    # Saving

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the encoder to a folder that `scfm.load(folder)` reads back exactly (safetensors, vocabulary, card)."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in self.network.state_dict().items()}, folder / WEIGHTS
        )
        self.vocabulary.save(folder / "vocabulary.json")
        content = {
            "adapter": self.card.family,
            "config": asdict(self.config),
            "tokenizer": self.tokenizer.settings(),
            "card": self.card.model_dump(mode="json"),
            "origin": self.origin,
        }
        (folder / SAVED).write_text(json.dumps(content, indent=1), encoding="utf-8")
        return folder

    @classmethod
    def restore(cls, checkpoint: Checkpoint) -> Self:
        """Read what `save` wrote."""
        content = checkpoint.json(SAVED)

        def tuples(settings: dict[str, Any]) -> dict[str, Any]:
            return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}

        vocabulary = Vocabulary.load(checkpoint.path("vocabulary.json"))
        card = checkpoint.card or ModelCard.model_validate(content["card"])  # an adapter's own card is the newer one
        encoder = cls.build(cls.Config(**tuples(content["config"])), vocabulary, card)
        checkpoint.weights_file = WEIGHTS
        try:
            encoder.network.load_state_dict(checkpoint.tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint.folder / WEIGHTS} does not fit its own {SAVED}: {error}") from error
        encoder.origin = content["origin"]
        return encoder.with_options(**tuples(content["tokenizer"]))
