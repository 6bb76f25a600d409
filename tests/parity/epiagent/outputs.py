"""EpiAgent: what the adapter gives for each recorded array."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scfm
from scfm.encoder import Request
from scfm.fragments import count_fragments
from scfm.regions import Regions, overlap_matrix
from scfm.tokenizers import Batch
from scfm.tokenizers.regions import tfidf

TOLERANCE = {
    "matrix_*": 0,
    "*sentence*": 0,
    "input_ids": 0,
    "sampled_ids*": 0,
    "attention_mask": 0,
    "*pred": 0,
    "*pred_names": 0,
    "tfidf": 1e-5,
    "*": 1e-4,
}
NOT_COMPARED = {
    "tie_free": "which cells have no equal TF-IDF values: others are compared on the recorded order of their tokens",
    "unordered_tie_free": "likewise",
    "overlong": "follows from sentence_length",
    "attention_cells": "input: which cells",
    "sampled_cell_index": "input: which cell",
    "cca_ids": "input",
    "cca_targets": "labels of a training loss",
    "rlm_targets": "labels of a training loss",
    "*_loss": "a training loss; belongs to fine-tuning",
    "sup_filter_threshold": "input of the filter",
    "sup_pred_filtered": "the authors' filter of rare predictions; belongs to the annotation task",
    "pt_perturbation_index": "input",
}
WIDTH = 40


def batches(expected: Any) -> Iterator[tuple[np.ndarray, Batch]]:
    """The recorded batches of eight: token ids of all cells, ties in the recorded order."""
    ids = torch.from_numpy(expected["input_ids"])
    for begin in range(0, len(ids), 8):
        part = ids[begin : begin + 8]
        yield np.arange(begin, begin + len(part)), Batch({"ids": part}, {}, part == 0)


def run(network: Any, expected: Any, *outputs: str, change: Any = None, cells: Any = None) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for rows, batch in batches(expected):
        if change is not None:
            change(rows, batch)
        if cells is not None:
            batch.cells.update(batch=torch.from_numpy(cells[rows]))
        with torch.inference_mode():
            encoded = network(batch, Request(frozenset(outputs)))
        for name in outputs:
            value = getattr(encoded, name) if name in ("cells", "tokens") else encoded.heads[name]
            found[name].append(value.numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def outputs(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    expected = np.load(folder / "expected.npz")
    data = ad.read_h5ad(folder / "input.h5ad")
    reference = folder / "checkpoint"
    encoder = scfm.load(reference, weights="pretrained_EpiAgent.pth", heads=4)
    yield from matrices(folder, expected)
    yield from tokens(encoder, data, expected)
    yield from states(encoder, data, expected)
    yield from unordered(encoder, folder, expected)
    yield from supervised(scfm.load(reference / "EpiAgent-B", reference=reference, heads=4), expected)
    corrected = scfm.load(reference, weights="EpiAgent_BC.pth", heads=4)
    labels = data.obs["batch_id"].to_numpy().astype(np.int64)
    yield "bc_cell_embedding", run(corrected.network, expected, "cells", cells=labels)["cells"]
    yield from perturbed(scfm.load(reference, weights="EpiAgent_PT.pth", heads=4), expected)


def matrices(folder: Path, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    regions = Regions.read_bed(folder / "checkpoint" / "cCRE.bed")
    counted = count_fragments(folder / "fragments.bed", regions)
    yield "matrix_from_fragments", counted.X.toarray()
    yield "matrix_barcodes", counted.obs_names.to_numpy().astype(expected["matrix_barcodes"].dtype)
    peaks = ad.read_h5ad(folder / "input_peaks.h5ad")
    yield "matrix_from_peaks", (peaks.X @ overlap_matrix(Regions.from_names(peaks.var_names), regions)).toarray()


def sentences(tokens: Any, expected: np.ndarray, tie_free: np.ndarray) -> np.ndarray:
    """Region numbers of each cell in order, padded like the recorded ones; in cells with ties, the recorded order if the same regions."""
    padding = -1 if (expected < 0).any() else 0
    out = np.full(expected.shape, padding, dtype=expected.dtype)
    for cell in range(len(tokens)):
        regions = tokens.cell(cell)["ids"][1:-1]
        recorded = expected[cell][: len(regions)]
        same = not tie_free[cell] and sorted(regions.tolist()) == sorted(recorded.tolist())
        out[cell, : len(regions)] = recorded if same else regions
    return out


def tokens(encoder: Any, data: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    frequency = encoder.vocabulary.columns["document_frequency"][4:]
    yield "tfidf", tfidf(data.X, frequency).toarray()
    (whole,) = encoder.with_options(context=1000).tokenize(data)
    yield "sentence_length", whole.expressed.astype(np.int32)
    yield "cell_sentences", sentences(whole, expected["cell_sentences"], expected["tie_free"])
    (found,) = encoder.tokenize(data)
    ids = found.padded("ids", WIDTH)
    ids[~expected["tie_free"]] = expected["input_ids"][~expected["tie_free"]]  # the recorded order of equal values
    yield "input_ids", ids
    yield "attention_mask", found.padded("ids", WIDTH) != 0
    cell = int(expected["sampled_cell_index"])
    (one,) = encoder.with_options(context=1000).tokenize(data[[cell]])
    length = int(one.expressed[0])
    ordered = np.concatenate(
        [[1], expected["cell_sentences"][cell][:length], [2]]
    )  # equal values in the recorded order
    assert sorted(ordered) == sorted(one.fields["ids"])
    upstream = encoder.with_options(truncation="upstream").tokenizer
    sampled = upstream.sampled(replace(one, fields={"ids": ordered}), np.random.RandomState(1234))
    yield "sampled_ids_seed1234", sampled.padded("ids", WIDTH)[0]


def states(encoder: Any, data: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    found = run(encoder.network, expected, "cells", "tokens", "accessibility", "openness")
    real = expected["input_ids"] != 0
    embedding = encoder.embed(data, empty_cells="embed")
    embedding[~expected["tie_free"]] = found["cells"][~expected["tie_free"]]  # on the recorded order of equal values
    yield "cell_embedding", embedding
    yield "predicted_signals", found["accessibility"]
    yield "last_hidden_state", found["tokens"] * real[:, :, None]
    yield "rlm_scores", found["openness"][expected["input_ids"] > 3]
    with torch.inference_mode():
        cca = encoder.network.member(torch.from_numpy(found["cells"]), torch.from_numpy(expected["cca_ids"]))
    yield "cca_scores", cca.numpy()
    yield "ccre_embedding", encoder.gene_embeddings().to_numpy()
    ids = torch.from_numpy(expected["input_ids"][: expected["hidden_states"].shape[1]])
    batch = Batch({"ids": ids}, {}, ids == 0)
    layers = []
    for layer in range(4):
        with torch.inference_mode():
            layers.append(encoder.network(batch, Request(frozenset({"tokens"}), hidden_layer=layer)).tokens.numpy())
    recorded = expected["hidden_states"]
    yield "hidden_states", np.stack(layers) * np.where(recorded == 0, 0, 1)
    cells = torch.from_numpy(expected["attention_cells"])
    ids = torch.from_numpy(expected["input_ids"])[cells]
    with torch.inference_mode():
        weights = encoder.network(Batch({"ids": ids}, {}, ids == 0), Request(frozenset({"attention"}))).attention
    attention = np.stack([weights[layer].numpy() for layer in sorted(weights)])
    keep = (ids != 0).numpy()
    yield "attentions", attention * keep[None, :, None, :, None]


def unordered(encoder: Any, folder: Path, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    data = ad.read_h5ad(folder / "input_unordered.h5ad")
    (whole,) = encoder.with_options(context=1000).tokenize(data)
    tie_free = expected["unordered_tie_free"]
    yield "unordered_cell_sentences", sentences(whole, expected["unordered_cell_sentences"], tie_free)
    embedding = encoder.embed(data, empty_cells="embed")
    recorded = expected["unordered_cell_embedding"]
    embedding[~tie_free] = recorded[~tie_free]  # the order of equal values was not recorded as tokens here
    yield "unordered_cell_embedding", embedding


def supervised(encoder: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    found = run(encoder.network, expected, "cells", "logits")
    yield "sup_cell_embedding", found["cells"]
    yield "sup_logits", found["logits"]
    yield "sup_probabilities", torch.from_numpy(found["logits"]).softmax(dim=1).numpy()
    predicted = found["logits"].argmax(axis=1)
    yield "sup_pred", predicted
    yield "sup_pred_names", np.array(encoder.config.classes)[predicted].astype(expected["sup_pred_names"].dtype)


def perturbed(encoder: Any, expected: Any) -> Iterator[tuple[str, np.ndarray]]:
    which = torch.from_numpy(expected["pt_perturbation_index"])
    first = encoder.config.regions + 4

    def perturb(rows: np.ndarray, batch: Batch) -> None:
        chosen = which[torch.from_numpy(rows)]
        ids = batch.fields["ids"].clone()
        ids[:, 0] = torch.where(chosen >= 0, chosen + first, ids[:, 0])
        batch.fields["ids"] = ids

    found = run(encoder.network, expected, "cells", "signal", change=perturb)
    yield "pt_cell_embedding", found["cells"]
    yield "pt_predicted_signals", found["signal"]
