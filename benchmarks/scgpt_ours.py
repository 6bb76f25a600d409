"""Time scfm's scGPT, measured exactly as `scgpt_original.py` measures the original: same arguments, same JSON line."""

from __future__ import annotations

import json

from scgpt_original import Stopwatch, arguments, peak_rss_mb  # standard library only at import; scgpt is not needed


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    import anndata
    import numpy as np
    import torch

    import scfm
    from scfm.reading import read, tokenized

    torch.set_num_threads(args.threads)
    adata = anndata.read_h5ad(args.data)[: args.first].copy()
    watch = Stopwatch()
    encoder = scfm.load(args.checkpoint, device="cpu")
    reading = read(encoder, adata) if args.task == "tokenize" else None
    loaded = Stopwatch()
    embeddings = None
    if args.task == "embed":
        upstream = encoder.with_options(ties="upstream")  # ties drawn as the original draws them
        embeddings = upstream.embed(adata, seed=args.seed)
        measured = watch.read() | {f"{name}_without_loading": value for name, value in loaded.read().items()}
    else:
        for _ in tokenized(encoder, reading, args.seed):
            pass
        measured = loaded.read()  # the original's vocabulary loading and gene matching are left out too
    measured = {"cells": adata.n_obs, **measured, "peak_rss_mb": peak_rss_mb(), "torch": torch.__version__}
    if args.out is not None and embeddings is not None:
        np.savez(args.out, embeddings=np.asarray(embeddings, dtype=np.float32))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
