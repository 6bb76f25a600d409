"""Time the original scGPT (`scgpt` 0.2.4 from the index) on the CPU. Runs in its own environment: see README.md.

What is timed is the authors' code as installed: `scgpt.tasks.embed_data`, its data set, collator, binning and model.
Three of its imports are replaced by stand-ins (`install_stand_ins`); of these only the vocabulary look-up is timed.

Prints one JSON line: cells, seconds and cpu_seconds (model loading included, imports and reading the h5ad left out),
the same two `_without_loading` (embed), peak_rss_mb, torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import types
from pathlib import Path


def arguments(description: str) -> argparse.Namespace:
    """Command line of this script and of `scgpt_ours.py`; also confines the process to `--threads` cores.

    Call it before torch is imported: OpenMP reads its thread count only once.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", type=Path, required=True, help="args.json, vocab.json, best_model.pt are here")
    parser.add_argument("--data", type=Path, required=True, help="h5ad: counts in X, gene symbols as var index")
    parser.add_argument("--task", choices=["embed", "tokenize"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=None, help="only the first N cells of the file")
    parser.add_argument("--in-process", action="store_true", help="original only; see in_process()")
    parser.add_argument("--out", type=Path, default=None, help="npz to write: `embeddings` (n_cells, dim) float32")
    args = parser.parse_args()
    # The original starts one DataLoader worker a core it may use, so cores and threads are limited together.
    cores = sorted(os.sched_getaffinity(0))
    if args.threads < len(cores):
        os.sched_setaffinity(0, cores[: args.threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    return args


class Stopwatch:
    """Wall-clock and CPU seconds (user + system, of this process and of its finished children) since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), self._cpu_now()

    @staticmethod
    def _cpu_now() -> float:
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in usage)

    def read(self) -> dict[str, float]:
        return {
            "seconds": round(time.perf_counter() - self._wall, 4),
            "cpu_seconds": round(self._cpu_now() - self._cpu, 4),
        }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes); worker processes are not in it."""
    # Not getrusage: its ru_maxrss is carried over from the process that started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return round(kibibytes * 1024 / 1e6, 1)


class StandInVocab:
    """The part of `torchtext.vocab.Vocab` that scgpt calls, on a dict.

    torchtext's last release does not import with torch 2.13. A dict look-up costs no more than torchtext's call into
    C++, so the original is not slowed down by it.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.vocab = tokens
        self._index = {token: i for i, token in enumerate(tokens)}
        self._default: int | None = None

    def __len__(self) -> int:
        return len(self.vocab)

    def __contains__(self, token: str) -> bool:
        return token in self._index

    def __getitem__(self, token: str) -> int:
        index = self._index.get(token, self._default)
        if index is None:
            raise RuntimeError(f"Token {token} not found and default index is not set")
        return index

    def __call__(self, tokens: list[str]) -> list[int]:
        return [self[token] for token in tokens]

    def append_token(self, token: str) -> None:
        self.insert_token(token, len(self))

    def insert_token(self, token: str, index: int) -> None:
        if token in self or index != len(self):
            raise RuntimeError(f"cannot insert {token!r} at {index}: this stand-in only appends new tokens")
        self._index[token] = index
        self.vocab.append(token)

    def set_default_index(self, index: int) -> None:
        self._default = index

    def get_stoi(self) -> dict[str, int]:
        return dict(self._index)


def install_stand_ins() -> None:
    """Stand-ins where `import scgpt` looks for torchtext (vocabulary), datasets (scBank), IPython (a log helper)."""
    contents = {
        "torchtext": {},
        "torchtext.vocab": {"Vocab": StandInVocab, "vocab": lambda counts, min_freq: StandInVocab(list(counts))},
        "datasets": {"Dataset": object, "load_dataset": None},
        "IPython": {"get_ipython": lambda: None},
    }
    for name, attributes in contents.items():
        sys.modules[name] = module = types.ModuleType(name)
        vars(module).update(attributes)
    vars(sys.modules["torchtext"])["vocab"] = sys.modules["torchtext.vocab"]


def in_process(cell_emb: types.ModuleType) -> None:
    """Make the original tokenise in the main process instead of in DataLoader workers.

    Bins of tied counts are drawn from numpy's global stream. In workers that stream is seeded per worker, so only an
    in-process run can be compared number by number. Also for timing the tokeniser, never for timing the embedding.
    """
    loader = cell_emb.DataLoader
    cell_emb.DataLoader = lambda *args, **kwargs: loader(*args, **{**kwargs, "num_workers": 0, "pin_memory": False})


def embed(cell_emb: types.ModuleType, adata, checkpoint: Path) -> tuple:
    """The user's call. Returns the embeddings (n_cells, dim) and the seconds with and without loading the model."""
    original, inner = cell_emb.get_batch_cell_embeddings, {}

    def timed(*args, **kwargs):
        watch = Stopwatch()
        result = original(*args, **kwargs)
        inner.update({f"{name}_without_loading": value for name, value in watch.read().items()})
        return result

    cell_emb.get_batch_cell_embeddings = timed
    watch = Stopwatch()
    result = cell_emb.embed_data(
        adata,
        checkpoint,
        gene_col="index",
        max_length=1200,
        batch_size=64,
        device="cpu",
        use_fast_transformer=False,
        return_new_adata=True,
    )
    return result.X, watch.read() | inner


def tokenize(cell_emb: types.ModuleType, adata, checkpoint: Path) -> dict[str, float]:
    """The original's data set, collator and loader, with a model that does nothing and a vocabulary already loaded."""
    import numpy as np
    import torch

    class NoModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.somewhere = torch.nn.Parameter(torch.zeros(1))  # the loop asks the model's parameters for the device
            self.tokens = 0

        def _encode(self, genes, values, src_key_padding_mask, batch_labels):
            self.tokens += int((~src_key_padding_mask).sum())
            return torch.ones(len(genes), 1, 1)

    vocab = cell_emb.GeneVocab.from_file(checkpoint / "vocab.json")
    config = json.loads((checkpoint / "args.json").read_text()) | {"embsize": 1}  # width of what NoModel returns
    model = NoModel()
    watch = Stopwatch()
    index = vocab.get_stoi()
    ids = np.array([index.get(gene, -1) for gene in adata.var_names])
    cell_emb.get_batch_cell_embeddings(
        adata[:, ids >= 0],
        model=model,
        vocab=vocab,
        max_length=1200,
        batch_size=64,
        model_configs=config,
        gene_ids=ids[ids >= 0],
    )
    return watch.read() | {"tokens": model.tokens}


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    install_stand_ins()
    import anndata
    import numpy as np
    import torch
    from scgpt.tasks import cell_emb

    torch.set_num_threads(args.threads)
    adata = anndata.read_h5ad(args.data)[: args.first].copy()
    np.random.seed(args.seed)  # noqa: NPY002  the original draws from the global streams
    torch.manual_seed(args.seed)
    embeddings = None
    if args.in_process or args.task == "tokenize":
        in_process(cell_emb)
    if args.task == "embed":
        embeddings, measured = embed(cell_emb, adata, args.checkpoint)
    else:
        measured = tokenize(cell_emb, adata, args.checkpoint)
    measured = {"cells": adata.n_obs, **measured, "peak_rss_mb": peak_rss_mb(), "torch": torch.__version__}
    if args.out is not None and embeddings is not None:
        np.savez(args.out, embeddings=np.asarray(embeddings, dtype=np.float32))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
