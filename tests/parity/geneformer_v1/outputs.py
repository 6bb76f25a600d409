"""Geneformer, V1 and V2: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request
from scfm.in_silico import Change, Effects, effects_of, expressed_changes
from scfm.reading import read

TOLERANCE = {
    "kept_cells": 0,
    "lengths": 0,
    "input_ids": 0,
    "attention_mask": 0,
    "n_expressed_in_vocab": 0,
    "gene_embedding_ids": 0,
    "gene_median": 0,
    "counts": 1e-4,  # counts per 10,000, from float32 counts
    "mlm_logits_first2": 1e-4,
    "isp_*_cell": 0,
    "isp_*_token": 0,
    "isp_*_affected": 0,
    "*": 1e-5,
}
NOT_COMPARED = {
    "isp_rows": "input",
    "isp_set_genes": "input",
    "isp_delete_set_cells": "input",
    "isp_overexpress_set_cells": "input",
}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    everything = ad.read_h5ad(folder / "input.h5ad")
    encoder = scfm.load(folder / "checkpoint")
    (tokens,) = encoder.with_options(keep_values=True).tokenize(everything, gene_column="ensembl_id")
    kept = np.flatnonzero(tokens.expressed > 0)  # the original drops cells without a known gene
    yield "kept_cells", kept
    tokens, data = tokens.select(kept), everything[kept].copy()
    yield "lengths", tokens.lengths
    yield "n_expressed_in_vocab", tokens.expressed
    yield "input_ids", tokens.padded("ids")
    yield "attention_mask", np.arange(tokens.lengths.max()) < tokens.lengths[:, None]
    yield "counts", tokens.padded("values") / data.obs["n_counts"].to_numpy()[:, None] * 1e4
    yield "gene_median", encoder.vocabulary.columns["median"]
    yield from embeddings(encoder, data)
    yield from genes(encoder, data, [str(name) for name in expected["gene_embedding_ids"]])
    yield from states(encoder, tokens)
    yield from in_silico(encoder, everything, expected)
    cells = scfm.load(folder / "checkpoint_cell_classifier", dictionaries=folder / "checkpoint")
    yield "cell_classifier_embedding", cells.embed(data, gene_column="ensembl_id")
    batch = tokens.collate(np.arange(len(tokens)))  # recorded with padding, whose states are recorded too
    with torch.inference_mode():
        yield "cell_classifier_logits", cells.network(batch, Request(frozenset({"logits"}))).heads["logits"].numpy()
    by_gene = scfm.load(folder / "checkpoint_gene_classifier", dictionaries=folder / "checkpoint")
    with torch.inference_mode():
        encoded = by_gene.network(batch, Request(frozenset({"class_logits"})))
    yield "gene_classifier_logits_first4", encoded.heads["class_logits"][:4].numpy()


def embeddings(encoder: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    cells = encoder.embed(data, gene_column="ensembl_id")
    yield "cell_embedding", cells
    for state in ("start", "goal", "alt"):
        yield f"state_emb_{state}", cells[(data.obs["state"] == state).to_numpy()].mean(axis=0)
    for pooling in encoder.poolings:
        name = {"mean": "cell", "cls": "cls"}[pooling]
        yield f"{name}_second_to_last", encoder.embed(data, gene_column="ensembl_id", pooling=pooling)
        depth = encoder.network.depth
        yield f"{name}_last", encoder.embed(data, gene_column="ensembl_id", pooling=pooling, hidden_layer=depth)


def genes(encoder: Any, data: Any, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Mean of a token's states over the cells that have it; rows in the recorded order."""
    for suffix, layer in (("", None), ("_last", encoder.network.depth)):
        total = np.zeros((len(encoder.vocabulary), encoder.dim))
        count = np.zeros(len(encoder.vocabulary), dtype=int)
        for _, tokens, encoded in encoder.encode(
            data, outputs=("tokens",), gene_column="ensembl_id", hidden_layer=layer
        ):
            for row, cell in enumerate(tokens):
                np.add.at(total, cell["ids"], encoded.tokens[row, : len(cell["ids"])].numpy())
                np.add.at(count, cell["ids"], 1)
        if not suffix:
            assert {encoder.vocabulary.tokens[i] for i in np.flatnonzero(count)} == set(names)
            yield "gene_embedding_ids", np.array(names)
        rows = np.array([encoder.vocabulary.index[name.upper()] for name in names])
        yield f"gene_embedding{suffix}", total[rows] / count[rows, None]


def states(encoder: Any, tokens: Any) -> Iterator[tuple[str, np.ndarray]]:
    batch = tokens.collate(np.arange(len(tokens)))
    depth = encoder.network.depth
    with torch.inference_mode():
        hidden = [
            encoder.network(batch, Request(frozenset({"tokens"}), hidden_layer=i)).tokens for i in range(depth + 1)
        ]
        yield "hidden_states_first4", np.stack([layer[:4].numpy() for layer in hidden])
        encoded = encoder.network(batch, Request(frozenset({"gene_logits", "attention"})))
    yield "mlm_logits_first2", encoded.heads["gene_logits"][:2].numpy()
    yield "attentions_first1", np.stack([encoded.attention[i][:1].numpy() for i in range(depth)])


def in_silico(encoder: Any, data: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Deletion and over-expression. The default mode compares the states of genes in V1, and of <cls> in V2."""
    by_genes = encoder.poolings[0] == "mean"

    def run(changes: list[Change], pairs: tuple[np.ndarray, np.ndarray], **options: Any) -> Effects:
        reading = read(encoder, data, gene_column="ensembl_id")
        return effects_of(encoder, reading, changes, pairs, gene_states=by_genes, level="ranks", **options)

    def each(kind: str, cells: np.ndarray, **options: Any) -> tuple[Effects, np.ndarray]:
        reading = read(encoder, data, gene_column="ensembl_id")
        changes, pairs = expressed_changes(encoder, reading, cells, level="ranks", kind=kind, factor=1)
        effects = run(changes, pairs, **options)
        return effects, np.array([change.genes[0] for change in changes])[effects.change]

    def in_order(effects: Effects, token: np.ndarray, name: str) -> np.ndarray:
        """Rows in the recorded order."""
        rows = {pair: i for i, pair in enumerate(zip(effects.cell.tolist(), token.tolist(), strict=True))}
        wanted = zip(expected[f"{name}_cell"].tolist(), expected[f"{name}_token"].tolist(), strict=True)
        return np.array([rows.pop(pair) for pair in dict.fromkeys(wanted)])

    for kind, name in (("knock-out", "isp_delete"), ("activate", "isp_overexpress")):
        effects, token = each(kind, expected["isp_rows"], affected=True)
        order = in_order(effects, token, f"{name}_all")
        assert len(order) == len(effects.cell)
        yield f"{name}_all_cell", effects.cell[order]
        yield f"{name}_all_token", token[order]
        yield f"{name}_all", (effects.gene_cosine if by_genes else effects.cosine)[order]
        yield from gene_effects(
            effects, token, in_order(effects, token, f"{name}_all_geneeffect"), f"{name}_all_geneeffect"
        )
        genes = tuple(encoder.vocabulary.lookup(expected["isp_set_genes"]).tolist())
        cells = expected[f"{name}_set_cells"]
        for suffix, layer in (("", None), ("_last", encoder.network.depth)):
            if f"{name}_set{suffix}" in expected:
                effects = run([Change(genes, kind)], (cells, np.zeros(len(cells), int)), hidden_layer=layer)
                yield f"{name}_set{suffix}", effects.gene_cosine if by_genes else effects.cosine
    states = {state: expected[f"state_emb_{state}"] for state in ("start", "goal", "alt")}
    effects, token = each("knock-out", np.unique(expected["isp_goal_cell"]), states=states)
    order = in_order(effects, token, "isp_goal")
    yield "isp_goal_cell", effects.cell[order]
    yield "isp_goal_token", token[order]
    for state in states:
        yield f"isp_goal_{state}", effects.shifts[state][order]


def gene_effects(effects: Effects, token: np.ndarray, order: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Effects on single genes. The original labels those of over-expression with the next gene's name, and loses the last one."""
    row, gene, value = effects.affected
    shift = "overexpress" in name
    of = [np.flatnonzero(row == i) for i in order]
    labels = [at[1:] if shift else at for at in of]
    values = [at[:-1] if shift else at for at in of]
    counts = [len(at) for at in labels]
    yield f"{name}_cell", np.repeat(effects.cell[order], counts)
    yield f"{name}_token", np.repeat(token[order], counts)
    yield f"{name}_affected", gene[np.concatenate(labels)]
    yield name, value[np.concatenate(values)]
