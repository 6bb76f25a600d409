"""Make what the scGPT benchmark reads: a checkpoint of the released size with random weights, and cells.

    python benchmarks/make_inputs.py --shared ../shared --out /tmp/scfm-bench --cells 64 8192

writes OUT/checkpoint/{args.json, vocab.json, best_model.pt} in the authors' format (layout A) and, for each N,
OUT/cells_N.h5ad (float32 counts, gene symbols as var index).
Speed, and equality of two implementations, do not depend on what the weights were trained on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

DIM, LAYERS, HEADS, HIDDEN = 512, 12, 8, 512
VOCABULARY = 60_697  # 60,694 genes + <pad>, <cls>, <eoc>
TENSORS, PARAMETERS = 163, 51_330_049  # of the released whole-human file
FEWEST_GENES, MOST_GENES = 450, 1_600  # detected genes of a cell that is kept

# Only what the original or a reader of the format looks at; the rest of a real args.json is training history.
ARGS = {
    "embsize": DIM,
    "nheads": HEADS,
    "d_hid": HIDDEN,
    "nlayers": LAYERS,
    "n_layers_cls": 3,
    "dropout": 0.2,
    "pad_token": "<pad>",
    "pad_value": -2,
    "mask_value": -1,
    "n_bins": 51,
    "input_style": "binned",
    "input_emb_style": "continuous",
    "max_seq_len": 1200,
    "fast_transformer": True,
    "MVC": True,
    "no_cls": True,
    "no_cce": True,
    "training_tasks": "both",
    "USE_GENERATIVE_TRAINING": True,
}


def vocabulary(shared: Path) -> dict[str, int]:
    """Gene symbol -> token id of the whole-human model, with the special tokens at the end as in its vocab.json."""
    with gzip.open(shared / "models/data/scgpt_vocab.json.gz", "rt") as file:
        tokens = json.load(file)
    for special in ("<pad>", "<cls>", "<eoc>"):
        tokens.setdefault(special, len(tokens))
    if len(tokens) != VOCABULARY:
        raise SystemExit(f"the vocabulary has {len(tokens):,} tokens, not {VOCABULARY:,}; is --shared right?")
    return tokens


def random_weights(seed: int) -> dict[str, Tensor]:
    """Tensors under the authors' names. Variance is kept from layer to layer, norms and biases are not trivial."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator) * std + mean

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}weight", normal(outputs, inputs, std=1 / math.sqrt(inputs))
        if bias:
            yield f"{name}bias", normal(outputs, std=0.05)

    def norm(name: str) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}weight", normal(DIM, std=0.1, mean=1.0)
        yield f"{name}bias", normal(DIM, std=0.05)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "encoder.embedding.weight", normal(VOCABULARY, DIM, std=0.5)
        yield from norm("encoder.enc_norm.")
        yield "flag_encoder.weight", normal(2, DIM, std=1.0)
        # Kinks of the ReLU spread over the bins 1..50, so that every bin has its own value embedding.
        yield "value_encoder.linear1.weight", normal(DIM, 1, std=0.3)
        yield "value_encoder.linear1.bias", normal(DIM, std=4.0)
        yield from linear("value_encoder.linear2.", DIM, DIM)
        yield from norm("value_encoder.norm.")
        for i in range(LAYERS):
            layer = f"transformer_encoder.layers.{i}."
            yield from linear(layer + "self_attn.Wqkv.", DIM, 3 * DIM)
            yield from linear(layer + "self_attn.out_proj.", DIM, DIM)
            yield from linear(layer + "linear1.", DIM, HIDDEN)
            yield from linear(layer + "linear2.", HIDDEN, DIM)
            yield from norm(layer + "norm1.")
            yield from norm(layer + "norm2.")
        yield from linear("decoder.fc.0.", DIM, DIM)
        yield from linear("decoder.fc.2.", DIM, DIM)
        yield from linear("decoder.fc.4.", DIM, 1)
        yield from linear("mvc_decoder.gene2query.", DIM, DIM)
        yield from linear("mvc_decoder.W.", DIM, DIM, bias=False)

    weights = dict(tensors())
    found = len(weights), sum(tensor.numel() for tensor in weights.values())
    if found != (TENSORS, PARAMETERS):
        raise SystemExit(f"{found} tensors and parameters, but the released file has {(TENSORS, PARAMETERS)}")
    return weights


def write_checkpoint(folder: Path, shared: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(ARGS, indent=2))
    (folder / "vocab.json").write_text(json.dumps(vocabulary(shared)))
    torch.save(random_weights(seed), folder / "best_model.pt")


def real_cells(shared: Path) -> ad.AnnData:
    """Human PBMC of two studies (Kang 2018, pbmc3k) on the union of their genes; a gene a study lacks counts 0."""
    studies = {
        "kang": ad.read_h5ad(shared / "data/kang_ifnb_pbmc/kang_2000.h5ad"),
        "pbmc3k": ad.read_h5ad(shared / "data/pbmc3k/pbmc3k_1000.h5ad"),
    }
    cells = ad.concat(studies, join="outer", fill_value=0, label="study")
    counts = sp.csr_matrix(cells.X, dtype=np.float32)
    counts.sort_indices()  # as in a file from a pipeline; joining on the union of genes leaves them out of order
    detected = counts.getnnz(axis=1)
    kept = (detected >= FEWEST_GENES) & (detected <= MOST_GENES)
    return ad.AnnData(counts[kept], obs=cells.obs.loc[kept, ["study"]], var=cells.var[[]])


def sample_cells(cells: ad.AnnData, n: int, seed: int) -> ad.AnnData:
    """`n` different cells in random order; past all: draws with replacement, thinned to 80-100 % of them."""
    rng = np.random.default_rng(seed)
    if n <= cells.n_obs:
        return cells[rng.permutation(cells.n_obs)[:n]].copy()
    rows = rng.integers(cells.n_obs, size=n)
    counts = cells.X[rows]
    kept = np.repeat(rng.uniform(0.8, 1.0, size=n), counts.getnnz(axis=1))
    counts.data = rng.binomial(counts.data.astype(np.int64), kept).astype(np.float32)
    counts.eliminate_zeros()
    obs = cells.obs.iloc[rows].copy()
    obs.index = [f"{name}-{i}" for i, name in enumerate(obs.index)]
    return ad.AnnData(counts, obs=obs, var=cells.var)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/data/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, nargs="+", default=[64, 8192])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_checkpoint(args.out / "checkpoint", args.shared, args.seed)
    print(f"{args.out / 'checkpoint'}: {TENSORS} tensors, {PARAMETERS:,} parameters")
    cells = real_cells(args.shared)
    for n in args.cells:
        sample = sample_cells(cells, n, args.seed)
        detected = sample.X.getnnz(axis=1)
        path = args.out / f"cells_{n}.h5ad"
        sample.write_h5ad(path)
        genes = f"{sample.n_vars} genes, {detected.mean():.0f} detected (max {detected.max()})"
        print(f"{path}: {n} cells from {cells.n_obs} real ones x {genes}")


if __name__ == "__main__":
    main()
