"""scGPT (Cui et al. 2024, doi:10.1038/s41592-024-02201-0): expressed genes with binned values, one ``<cls>`` token.

Original code: github.com/bowang-lab/scGPT at cebd6fa (MIT). Differs from it: own attention with separate projections; a cell's bins do
not depend on the cells around it (``with_options(ties="upstream")`` gives the original's random stream); the ``bn`` of older organ
checkpoints, which the current original ignores, is applied (``scfm.load(..., batch_norm=False)`` ignores it too).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from scfm.adapters.scgpt.network import ScGPTConfig, ScGPTNetwork
from scfm.adapters.scgpt.weights import KEYS
from scfm.cards import InputContract, ModelCard
from scfm.checkpoint import Checkpoint
from scfm.encoder import Capability, CellEncoder, Request
from scfm.errors import CheckpointError, InputError
from scfm.genes import Vocabulary
from scfm.tokenizers import Batch, BinTokenizer
from scfm.tokenizers.base import batch_options

SPECIAL = ("<pad>", "<cls>", "<eoc>")


class ScGPT(CellEncoder):
    """Pre-trained, annotation, integration (DSBN) and perturbation checkpoints of scGPT.

    Load options
    ------------
    batch_norm
        False ignores the `bn` tensors of older organ checkpoints, as the current original code does.
    batches
        Names of the batches of an integration checkpoint, in the order of its labels (the files hold numbers only).
    """

    network: ScGPTNetwork
    Config = ScGPTConfig
    capabilities = frozenset(
        {Capability.EMBED, Capability.GENE_EMBEDDINGS, Capability.ATTENTION, Capability.EXPRESSION}
    )
    poolings = ("cls", "mean", "weighted")
    gene_kinds = ("normed", "raw")
    load_options: ClassVar = frozenset({"batch_norm", "batches"})

    FINE_TUNING: ClassVar[dict[str, Any]] = {"cls_value": 0.0, "target_sum": 1e4, "log1p": True, "context": 3001}
    """Tokenizer options of the authors' annotation workflow: ``encoder.with_options(**ScGPT.FINE_TUNING)``."""

    @classmethod
    def recognizes(cls, checkpoint: Checkpoint) -> bool:
        """args.json and vocab.json beside a file with scGPT's tensor names."""
        if not checkpoint.has("args.json", "vocab.json"):
            return False
        keys = _weights(checkpoint).keys(KEYS.strip)
        return {
            "encoder.embedding.weight",
            "encoder.enc_norm.weight",
            "transformer_encoder.layers.0.linear1.weight",
        } <= keys

    @classmethod
    def build(cls, config: ScGPTConfig, vocabulary: Vocabulary, card: ModelCard) -> Self:
        """An encoder of these sizes with fresh weights."""
        return cls(config=config, network=ScGPTNetwork(config), tokenizer=BinTokenizer(vocabulary), card=card)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read args.json, vocab.json and the weights; the parts present decide the kind of checkpoint."""
        _weights(checkpoint)
        args = checkpoint.json("args.json")
        config = _config(checkpoint, args)
        vocabulary = _vocabulary(checkpoint, config.genes)
        encoder = cls.build(config, vocabulary, checkpoint.card or _card(checkpoint))
        encoder = encoder.with_options(torch_draws=_draws_of_embed_data(config, args.get("n_layers_cls", 3)))
        skip = {} if config.batch_norm else {"bn.{p}": None}
        checkpoint.load_into(encoder.network, type(KEYS)({**KEYS.names, **skip}, KEYS.strip), optional=())
        if labels := max(config.batches, config.domains):
            encoder = encoder.with_options(**batch_options(checkpoint.options.get("batches"), labels))
        return encoder

    def gene_vectors(self, kind: str) -> Tensor:
        """Gene embeddings of all tokens (n_tokens, dim): "normed" as the network sees them (LayerNorm), "raw" as stored."""
        table = self.network.genes.table.weight
        return table if kind == "raw" else self.network.genes.norm(table)

    def for_batches(self, key: str, batches: Sequence[str]) -> Self | None:
        """With batch labels, domain-specific batch normalisation and a discriminator, as the authors' integration workflow adds them.

        The decoders also see the batch's label; weights that read it start at 0, so that a decoder begins as it was pre-trained. (The
        authors' loader leaves out the decoder's first layer, whose shape has changed, and begins with a random one.)
        """
        old = self.network.config
        assert isinstance(self.tokenizer, BinTokenizer)
        if self.tokenizer.batch_key == key and self.tokenizer.batches == tuple(batches) and old.discriminated:
            return self
        count = len(batches)
        config = replace(old, batches=count, domains=count, discriminated=count, batch_norm=False)
        other = self.build(config, self.vocabulary, self.card)
        own, new = self.network.state_dict(), other.network.state_dict()
        for name, tensor in new.items():
            if name not in own:
                continue
            if own[name].shape == tensor.shape:
                new[name] = own[name]
            elif not old.batches and name in ("decoder.fc.0.weight", "decoder.zero_logit.0.weight"):
                new[name] = torch.cat([own[name], torch.zeros_like(own[name])], dim=1)  # (dim, 2 dim)
            elif not old.batches and name in ("cell_decoder.w.weight", "cell_decoder.w_zero.weight"):
                new[name] = torch.cat([own[name], torch.zeros_like(own[name])], dim=0)  # (2 dim, dim)
        other.network.load_state_dict(new)
        other.network.to(self.device)
        other.origin = dict(self.origin)
        other.tokenizer = replace(self.tokenizer, batch_key=key, batches=tuple(batches))
        return other

    def predict_perturbation(
        self, expression: np.ndarray, flags: np.ndarray, tokens: np.ndarray, *, genes: str = "all"
    ) -> np.ndarray:
        """Expression after a perturbation, by a perturbation checkpoint (the authors' `pred_perturb`).

        Parameters
        ----------
        expression
            (n_cells, n_genes) float32, log1p-normalised control expression.
        flags
            (n_cells, n_genes) int, 1 where the gene is perturbed.
        tokens
            (n_genes,) int64 token ids; unknown genes as the id of ``<pad>``.
        genes
            "all", or "expressed": only genes that are not zero in some of these cells take part, others are predicted 0
            (the authors' "batch-wise").

        Returns
        -------
        np.ndarray
            (n_cells, n_genes) float32.
        """
        self.require(Capability.EXPRESSION)
        if genes not in ("all", "expressed"):
            raise InputError(f"genes={genes!r} is not known.", "Pass 'all' or 'expressed'.")
        columns = np.arange(expression.shape[1]) if genes == "all" else np.flatnonzero((expression != 0).any(axis=0))
        fields = {
            "ids": torch.from_numpy(np.tile(tokens[columns].astype(np.int64), (len(expression), 1))),
            "values": torch.from_numpy(np.ascontiguousarray(expression[:, columns], dtype=np.float32)),
            "flags": torch.from_numpy(np.ascontiguousarray(flags[:, columns], dtype=np.int64)),
        }
        out = np.zeros(expression.shape, dtype=np.float32)
        with torch.inference_mode():
            encoded = self.network(Batch(fields, {}, None).to(self.device), Request(frozenset({"expression"})))
        out[:, columns] = encoded.heads["expression"].float().cpu().numpy()
        return out


def _weights(checkpoint: Checkpoint) -> Checkpoint:
    """Of several weight files, the authors' best_model.pt."""
    if checkpoint.weights_file is None and checkpoint.has("best_model.pt"):
        checkpoint.weights_file = "best_model.pt"
    return checkpoint


def _config(checkpoint: Checkpoint, args: dict[str, Any]) -> ScGPTConfig:
    keys = checkpoint.keys(KEYS.strip)
    if args.get("pre_norm"):
        raise CheckpointError(
            f"{checkpoint.folder / 'args.json'} says pre_norm; no released scGPT has it and its residual is not defined here."
        )

    def size(name: str, axis: int = 0) -> int:
        tensor = checkpoint.tensor(name, KEYS.strip)
        return 0 if tensor is None else tensor.shape[axis]

    def count(prefix: str) -> int:
        """How many numbered parts follow the prefix."""
        return len({key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)})

    style = args.get("input_emb_style", "continuous")
    affine = "decoder.coeff_decoder.fc.0.weight" in keys
    return ScGPTConfig(
        genes=size("encoder.embedding.weight"),
        dim=args["embsize"],
        heads=args["nheads"],
        hidden=args["d_hid"],
        layers=args["nlayers"],
        dropout=args.get("dropout", 0.2),
        pad=checkpoint.json("vocab.json").get(args.get("pad_token", "<pad>"), 0),
        value_style=style,
        value_bins=size("value_encoder.embedding.weight") if style == "category" else 0,
        decoder="affine" if affine else ("expression" if "decoder.fc.0.weight" in keys else "none"),
        zero_prob="decoder.zero_logit.0.weight" in keys,
        cell_decoder="mvc_decoder.gene2query.weight" in keys,
        classes=size("cls_decoder.out_layer.weight"),
        class_layers=count("cls_decoder._decoder.") // 2 + 1,
        batches=size("batch_encoder.embedding.weight"),
        domains=count("dsbn.bns."),
        batch_norm="bn.weight" in keys and checkpoint.options.get("batch_norm", True),
        discriminated=size("grad_reverse_discriminator.out_layer.weight"),
        flags=size("pert_encoder.weight"),
    )


def _vocabulary(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    """vocab.json, with missing special tokens appended in the authors' order; must be as long as the gene table."""
    index = dict(checkpoint.json("vocab.json"))
    for token in SPECIAL:
        if token not in index and len(index) < rows:
            index[token] = len(index)
    if len(index) != rows:
        raise CheckpointError(
            f"vocab.json has {len(index)} tokens, the gene table of {checkpoint.weights_path.name} {rows} rows."
        )
    missing = [token for token in ("<pad>", "<cls>") if token not in index]
    if missing:
        raise CheckpointError(f"vocab.json has no {missing} token.")
    special = {"pad": "<pad>", "cls": "<cls>", **({"eoc": "<eoc>"} if "<eoc>" in index else {})}
    return Vocabulary.from_index(index, ids="symbol", species=("human",), special=special)


def _draws_of_embed_data(c: ScGPTConfig, class_layers: int) -> int:
    """32-bit numbers that the original's `embed_data` draws from torch's stream before the first cell: one for every value it
    initialises (the gene table twice; one transformer layer, of which the others are copies), and two for the data loader's seed."""

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    table = 2 * c.genes * c.dim
    values = linear(1, c.dim) + linear(c.dim, c.dim)
    layer = 3 * c.dim * c.dim + linear(c.dim, c.dim) + linear(c.dim, c.hidden) + linear(c.hidden, c.dim)
    decoder = 2 * linear(c.dim, c.dim) + linear(c.dim, 1)
    classifier = (class_layers - 1) * linear(c.dim, c.dim) + linear(c.dim, 1)
    cell_decoder = linear(c.dim, c.dim) + c.dim * c.dim
    return table + values + layer + decoder + classifier + cell_decoder + 2


def _card(checkpoint: Checkpoint) -> ModelCard:
    return ModelCard(
        name="scgpt/local",
        title=f"scGPT checkpoint in {checkpoint.folder.name}",
        paper="10.1038/s41592-024-02201-0",
        code="https://github.com/bowang-lab/scGPT",
        code_licence="MIT",
        species=("human",),
        input=InputContract(values="counts", genes="symbol"),
    )
