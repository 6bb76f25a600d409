"""LangCell: what the adapter gives for each recorded array."""

import json
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request

TOLERANCE = {
    "kept_cells": 0,
    "n_expressed_in_vocab": 0,
    "*input_ids": 0,
    "attention_mask": 0,
    "text_names": 0,
    "pred_*": 0,
    "*_embedding": 1e-5,
    "*": 1e-4,
}
NOT_COMPARED: dict[str, str] = {}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    data = ad.read_h5ad(folder / "input.h5ad")
    encoder = scfm.load(folder / "checkpoint")
    reading = {"gene_column": "ensembl_id"}
    (tokens,) = encoder.tokenize(data, **reading)
    yield "kept_cells", np.arange(len(tokens))
    yield "n_expressed_in_vocab", tokens.expressed
    yield "input_ids", tokens.padded("ids")
    yield "attention_mask", np.arange(tokens.lengths.max()) < tokens.lengths[:, None]
    yield "cell_embedding", encoder.embed(data, empty_cells="embed", **reading)
    yield "cell_cls_state", encoder.embed(data, empty_cells="embed", pooling="cls", **reading)
    batch = tokens.collate(np.arange(len(tokens)))  # recorded with padding, whose states are recorded too
    depth = encoder.network.depth
    with torch.inference_mode():
        states = [
            encoder.network(batch, Request(frozenset({"tokens"}), hidden_layer=i)).tokens for i in range(depth + 1)
        ]
        attention = encoder.network(batch, Request(frozenset({"attention"}))).attention
    yield "cell_hidden_first4", np.stack([layer[:4].numpy() for layer in states])
    yield "cell_attentions_first2", np.stack([attention[i][:2].numpy() for i in range(depth)])
    texts = json.loads((folder / "checkpoint" / "type2text.json").read_text())
    yield "text_names", np.array(list(texts))
    yield "text_input_ids", encoder.text_tokens(list(texts.values())).padded("ids")
    yield "text_embedding", encoder.embed_text(list(texts.values()))
    logits = np.zeros((len(tokens), len(texts), 2), np.float32)
    for cells, _, encoded in encoder.with_texts(list(texts.values())).encode(data, outputs=("matching",), **reading):
        logits[cells] = encoded.heads["matching"].numpy()
    yield "ctm_logits", logits
    half, tenth, similar, matched = (encoder.type_by_text(data, texts, alpha=a, **reading) for a in (0.5, 0.1, 1, 0))
    yield "sim_logits_raw", half.similarity / 0.05
    yield "ctm_prob", half.matching
    yield "sim_softmax", similar.score
    yield "ctm_softmax", matched.score
    yield "score_half", half.score
    for name, typing in (("pred_half", half), ("pred_alpha0.1", tenth)):
        yield name, np.array([list(texts).index(label) for label in typing.labels])
