"""LangCell (Zhao et al. 2024, arXiv:2405.06708): ranked genes and descriptions of cells in words, in one space.

Original code: github.com/PharMolix/LangCell at 69e41ef (MIT). Differs from it: texts are compared with many cells at a time; a cell's genes
with equal scores come in the order of their token ids; no `filter_pass`, `n_counts` or label column is needed (an empty cell of the
original's dense input gets all genes of the vocabulary, here it is `<cls>` alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from scfm.adapters.langcell.network import LangCellConfig, LangCellNetwork, MatchingNetwork, TextNetwork
from scfm.adapters.langcell.weights import CELL_KEYS, LINEAR_KEYS, TEXT_KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint
from scfm.data import shared_table
from scfm.encoder import Capability, CellEncoder
from scfm.errors import CheckpointError, InputError
from scfm.files import sha256
from scfm.genes import Vocabulary
from scfm.tensors import read_tensors
from scfm.tokenizers import Batch, RankTokenizer, Tokens
from scfm.tokenizers.ranks import median_column, read_rank_table
from scfm.tokenizers.wordpiece import WordPiece
from scfm.unpickle import safe_unpickle

if TYPE_CHECKING:
    from scfm.cells import Data

PARTS = {
    "cell_bert": CELL_KEYS,
    "cell_proj.bin": LINEAR_KEYS,
    "text_bert": TEXT_KEYS,
    "text_proj.bin": LINEAR_KEYS,
    "ctm_head.bin": LINEAR_KEYS,
}
_TEXT_WEIGHTS, _TEXT_VOCABULARY = "text.safetensors", "text_vocabulary.txt"
_TEMPERATURE = 0.05


@dataclass(frozen=True)
class TextTyping:
    """How cells compare with descriptions.

    Parameters
    ----------
    names
        (n_texts,) of the descriptions.
    similarity
        (n_cells, n_texts) cosine of cell and text.
    matching
        (n_cells, n_texts) probability that the text describes the cell, read together; None where it was not asked for.
    score
        (n_cells, n_texts) the weighted mean of both, each as a softmax over the texts; rows sum to 1.
    """

    names: tuple[str, ...]
    similarity: np.ndarray
    matching: np.ndarray | None
    score: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Name of the best description of each cell (n_cells,) object."""
        return np.array(self.names, dtype=object)[self.score.argmax(axis=1)]


class LangCell(CellEncoder):
    """The released checkpoint: a cell encoder and a text encoder.

    Poolings: "projected" is the vector that texts are compared with, "cls" the state of `<cls>` before the projection.

    Load options
    ------------
    text_vocabulary
        The `vocab.txt` of PubMedBERT, where the folder has none; needed for texts only.
    """

    Config = LangCellConfig
    capabilities = frozenset({Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.TEXT})
    poolings = ("projected", "cls")
    load_options: ClassVar = frozenset({"text_vocabulary"})

    text: TextNetwork | None = None
    """The text side; None where the files have none."""
    words: WordPiece | None = None
    """How a text becomes tokens; None where no `vocab.txt` was found."""

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """cell_bert/ and cell_proj.bin, in the folder or in ckpt/."""
        return _folder(checkpoint) is not None

    @classmethod
    def build(cls, config: LangCellConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        tokenizer = RankTokenizer(vocabulary, context=config.context, prefix=("cls",), duplicates="keep")
        encoder = cls(config=config, network=LangCellNetwork(config), tokenizer=tokenizer, card=card)
        if config.words:
            encoder.text = TextNetwork(config).eval()
        else:
            encoder.capabilities = cls.capabilities - {Capability.TEXT}  # type: ignore[misc]
        return encoder

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the parts that are there: the cell encoder, and the text side if it is whole."""
        folder = _folder(checkpoint)
        if folder is None:
            raise CheckpointError(f"{checkpoint.folder} has no cell_bert/config.json and cell_proj.bin.")
        has_text = all((folder / part).exists() for part in PARTS)
        parts = {name: _part(folder, name) for name in list(PARTS)[: None if has_text else 2]}
        config = _config(folder, parts)
        encoder = cls.build(config, _vocabulary(folder, config.tokens), checkpoint.card or _card(checkpoint))
        network, text = encoder.network, encoder.text
        assert isinstance(network, LangCellNetwork)
        targets: dict[str, nn.Module] = {"cell_bert": network.bert, "cell_proj.bin": network.projection}
        if text is not None:
            targets |= {"text_bert": text.bert, "text_proj.bin": text.projection, "ctm_head.bin": text.match}
        for name, part in parts.items():
            part.load_into(targets[name], PARTS[name])
        encoder.words = _words(folder, checkpoint.options.get("text_vocabulary"), config.text_context)
        encoder.origin = {"source": str(checkpoint.folder)} | {
            f"{name}_sha256": sha256(part.weights_path) for name, part in parts.items()
        }
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Token embeddings (n_tokens, dim of the states)."""
        return self._cells.bert.embedding.words.weight

    def to(self, device: str | torch.device) -> Self:
        """Move both sides to a device."""
        super().to(device)
        if self.text is not None:
            self.text.to(self.device)
        return self

    # Texts

    def text_tokens(self, texts: Sequence[str]) -> Tokens:
        """WordPiece tokens of descriptions."""
        if self.words is None:
            raise CheckpointError(
                f"{self.name} was loaded without the vocabulary of its text side, which its authors do not ship with the weights.",
                "hf download microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext vocab.txt --local-dir <folder>/text_tokenizer, "
                "or scfm.load(folder, text_vocabulary='vocab.txt').",
            )
        return self.words.tokenize(texts)

    def text_vectors(self, batch: Batch) -> Tensor:
        """Normalised projections of the texts' [CLS] states (b, dim)."""
        return self._text(batch)

    def with_texts(self, texts: Sequence[str]) -> Self:
        """The same encoder with the outputs "similarity" (b, n_texts), cosines, and "matching" (b, n_texts, 2), logits, for `encode`."""
        tokens, vectors = self.text_tokens(texts), torch.from_numpy(self.embed_text(texts)).to(self.device)
        other = copy(self)
        other.network = MatchingNetwork(self._cells, self._text, tokens, vectors).eval()
        return other

    def type_by_text(
        self, data: Data, texts: Mapping[str, str], *, alpha: float = 0.1, matching: bool = True, **reading: Any
    ) -> TextTyping:
        """Type cells by descriptions alone, without labelled cells.

        Parameters
        ----------
        data
            As for `embed`.
        texts
            Name of a cell type -> its description, worded as in training: ``"cell type: {name}. {definition}; "``.
        alpha
            Weight of the similarity; the rest is that of the matching. 0.1 is what the authors' notebook reports.
        matching
            Read every text in the light of every cell: one pass of the text network for each pair. False compares vectors only.
        reading
            Arguments of `encode`: layer, gene_column, batch_size, ...
        """
        if not texts or not 0 <= alpha <= 1:
            raise InputError(
                f"{len(texts)} texts and alpha={alpha}; at least one text and an alpha from 0 to 1 are needed."
            )
        heads = ("similarity", "matching") if matching else ("similarity",)
        rows: list[np.ndarray] = []
        found: dict[str, list[Tensor]] = {head: [] for head in heads}
        for cells, _, encoded in self.with_texts(list(texts.values())).encode(data, outputs=heads, **reading):
            rows.append(cells)
            for head in heads:
                found[head].append(encoded.heads[head])
        order = np.argsort(np.concatenate([np.zeros(0, np.int64), *rows]))
        empty = torch.zeros(0, len(texts))
        similarity = torch.cat([empty, *found["similarity"]])[order]
        score, probability = (similarity / _TEMPERATURE).softmax(dim=1), None
        if matching:
            probability = torch.cat([empty, *(logits.softmax(dim=-1)[..., 1] for logits in found["matching"])])[order]
            score = alpha * score + (1 - alpha) * probability.softmax(dim=1)
        return TextTyping(
            tuple(texts), similarity.numpy(), None if probability is None else probability.numpy(), score.numpy()
        )

    # Saving

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write both sides to a folder that `scfm.load(folder)` reads back exactly."""
        from safetensors.torch import save_file

        plain = copy(self)
        plain.network = self._cells
        folder = super(LangCell, plain).save(folder)
        if self.text is not None:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.text.state_dict().items()}
            save_file(state, folder / _TEXT_WEIGHTS)
        if self.words is not None:
            (folder / _TEXT_VOCABULARY).write_text("\n".join(self.words.pieces) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def restore(cls, checkpoint: Checkpoint) -> Self:
        """Read what `save` wrote."""
        encoder = super().restore(checkpoint)
        if encoder.text is not None:
            encoder.text.load_state_dict(read_tensors(checkpoint.path(_TEXT_WEIGHTS)))
        if checkpoint.has(_TEXT_VOCABULARY):
            encoder.words = WordPiece.read(checkpoint.path(_TEXT_VOCABULARY), encoder.config.text_context)
        return encoder

    @property
    def _cells(self) -> LangCellNetwork:
        network = self.network.cells if isinstance(self.network, MatchingNetwork) else self.network
        assert isinstance(network, LangCellNetwork)
        return network

    @property
    def _text(self) -> TextNetwork:
        self.require(Capability.TEXT)
        assert self.text is not None
        return self.text


def _folder(checkpoint: Checkpoint) -> Path | None:
    """Where the parts are: the folder itself, or ckpt/ in it."""
    for folder in (checkpoint.folder, checkpoint.folder / "ckpt"):
        if (folder / "cell_bert" / "config.json").is_file() and (folder / "cell_proj.bin").is_file():
            return folder
    return None


def _part(folder: Path, name: str) -> Checkpoint:
    """One file of weights, or the folder of one BERT, as a checkpoint of its own."""
    return Checkpoint(folder, weights_file=name) if name.endswith(".bin") else Checkpoint(folder / name)


def _config(folder: Path, parts: Mapping[str, Checkpoint]) -> LangCellConfig:
    cell = parts["cell_bert"].json("config.json")
    shared = parts["cell_proj.bin"].tensors["weight"].shape[0]
    config = LangCellConfig(
        tokens=cell["vocab_size"],
        context=cell["max_position_embeddings"],
        dim=cell["hidden_size"],
        layers=cell["num_hidden_layers"],
        heads=cell["num_attention_heads"],
        hidden=cell["intermediate_size"],
        activation=cell["hidden_act"],
        dropout=cell.get("hidden_dropout_prob", 0.1),
        eps=cell.get("layer_norm_eps", 1e-12),
        types=cell.get("type_vocab_size", 2),
        shared=shared,
    )
    if "text_bert" not in parts:
        return config
    text = parts["text_bert"].json("config.json")
    if text.get("hidden_act", "gelu") != "gelu" or text.get("encoder_width", config.dim) != config.dim:
        raise CheckpointError(
            f"{folder / 'text_bert'} has hidden_act {text.get('hidden_act')!r} and encoder_width {text.get('encoder_width')}; "
            f"'gelu' and the cells' {config.dim} are needed."
        )
    return replace(
        config,
        words=text["vocab_size"],
        text_context=text["max_position_embeddings"],
        text_dim=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["intermediate_size"],
        text_dropout=text.get("hidden_dropout_prob", 0.1),
        text_eps=text.get("layer_norm_eps", 1e-12),
    )


def _vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The folder's dictionaries, else those shipped; `<cls>` behind the genes, as the authors add it at run time."""
    if (folder / "token_dictionary.pkl").is_file():
        tokens = {str(token): int(i) for token, i in safe_unpickle(folder / "token_dictionary.pkl").items()}
        medians = {str(gene): float(m) for gene, m in safe_unpickle(folder / "gene_median_dictionary.pkl").items()}
    else:
        medians, _ = read_rank_table(shared_table("rank_medians_25424.tsv.gz"))
        tokens = {token: i for i, token in enumerate(("<pad>", "<mask>", *medians))}
    tokens.setdefault("<cls>", len(tokens))
    if len(tokens) != rows:
        raise CheckpointError(
            f"cell_bert has {rows:,} tokens, the dictionary {len(tokens):,} with <cls>.",
            "Put the token_dictionary.pkl and gene_median_dictionary.pkl it was trained with into its folder.",
        )
    special = {"pad": "<pad>", "mask": "<mask>", "cls": "<cls>"}
    vocabulary = Vocabulary.from_index(tokens, ids="ensembl", species=("human",), special=special)
    return replace(vocabulary, columns={"median": median_column(vocabulary.tokens, medians)})


def _words(folder: Path, given: str | PathLike[str] | None, context: int) -> WordPiece | None:
    """The text side's vocabulary, where it is found."""
    places = [folder / "text_tokenizer" / "vocab.txt", folder / "text_bert" / "vocab.txt", folder / "vocab.txt"]
    path = Path(given) if given is not None else next((place for place in places if place.is_file()), None)
    if path is not None and not path.is_file():
        raise CheckpointError(f"there is no file {path}.", "Give the path of a vocab.txt.")
    return None if path is None else WordPiece.read(path, context)


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="langcell/local",
        title=f"LangCell checkpoint in {checkpoint.folder.name}",
        paper="arXiv:2405.06708",
        code="https://github.com/PharMolix/LangCell",
        code_licence="MIT",
        species=("human",),
        input=InputContract(values="counts", genes="ensembl"),
    )
