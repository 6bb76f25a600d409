"""Time the annotation loop of the original scGPT (`scgpt.trainer.train`, 0.2.4) on the CPU. Runs in its own environment: see README.md.

Its model, tokenizer (`tokenize_and_pad_batch`), data loader, loop, loss and gradient clipping, with the settings of the authors' annotation
tutorial (Adam at 1e-4, no masking, classification only), in float32. `wandb` is replaced by a stand-in whose `log` does nothing.

Prints one JSON line: cells, steps, seconds (of the steps after the first), cpu_seconds, cells_per_second, tokens (padded), peak_rss_mb.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from pathlib import Path

from finetune_ours import CLASSES, FIRST, counted, options


def loaded(checkpoint: Path, vocab: object) -> object:
    """The authors' model with the checkpoint's weights, as their tutorial builds it for annotation."""
    import torch
    from scgpt.model import TransformerModel

    args = json.loads((checkpoint / "args.json").read_text())
    model = TransformerModel(
        len(vocab),  # type: ignore[arg-type]
        args["embsize"],
        args["nheads"],
        args["d_hid"],
        args["nlayers"],
        nlayers_cls=3,
        n_cls=CLASSES,
        vocab=vocab,
        dropout=args["dropout"],
        pad_token="<pad>",
        pad_value=-2,
        do_mvc=False,
        do_dab=False,
        use_batch_labels=False,
        domain_spec_batchnorm=False,
        input_emb_style="continuous",
        n_input_bins=51,
        cell_emb_style="cls",
        use_fast_transformer=False,
        pre_norm=False,
    )
    weights = torch.load(checkpoint / "best_model.pt", weights_only=True)
    own = model.state_dict()
    renamed = {key.replace("Wqkv.", "in_proj_"): tensor for key, tensor in weights.items()}
    model.load_state_dict({**own, **{k: v for k, v in renamed.items() if k in own and own[k].shape == v.shape}})
    return model


def main() -> None:
    args = options(__doc__.splitlines()[0])
    from scgpt_original import Stopwatch, install_stand_ins, peak_rss_mb

    install_stand_ins()
    sys.modules["wandb"] = types.ModuleType("wandb")
    sys.modules["wandb"].log = lambda metrics: None  # type: ignore[attr-defined]
    import anndata
    import numpy as np
    import torch
    from scgpt import trainer
    from scgpt.preprocess import Preprocessor
    from scgpt.tokenizer import tokenize_and_pad_batch
    from scgpt.tokenizer.gene_tokenizer import GeneVocab

    torch.set_num_threads(args.threads)
    adata = anndata.read_h5ad(args.data)[: args.cells].copy()
    vocab = GeneVocab.from_file(args.checkpoint / "vocab.json")
    vocab.set_default_index(vocab["<pad>"])
    adata = adata[:, [gene in vocab for gene in adata.var_names]].copy()
    Preprocessor(use_key="X", normalize_total=1e4, log1p=True, binning=51, result_binned_key="X_binned")(adata)
    ids = np.array(vocab(adata.var_names.tolist()), dtype=int)
    binned = adata.layers["X_binned"]
    tokens = tokenize_and_pad_batch(
        binned,
        ids,
        max_len=3001,
        vocab=vocab,
        pad_token="<pad>",
        pad_value=-2,
        append_cls=True,
        include_zero_gene=False,
    )
    labels = np.arange(len(adata)) % CLASSES
    data = {
        "gene_ids": tokens["genes"],
        "values": tokens["values"],
        "target_values": tokens["values"],
        "batch_labels": torch.zeros(len(adata), dtype=torch.long),
        "celltype_labels": torch.from_numpy(labels).long(),
    }
    config = types.SimpleNamespace(
        task="annotation",
        amp=False,
        pad_token="<pad>",
        mask_value=-1,
        use_batch_labels=False,
        DSBN=False,
        CLS=True,
        GEP=False,
        GEPC=False,
        ESC=False,
        DAR=False,
        use_mod=False,
        explicit_zero_prob=False,
        log_interval=10**6,
    )
    model = loaded(args.checkpoint, vocab)
    forward = model.forward  # the package's trainer passes an argument that only its multi-omic model has
    model.forward = lambda *given, mod_types=None, **named: forward(*given, **named)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-8)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def run(rows: slice) -> None:
        loader = trainer.prepare_dataloader({k: v[rows] for k, v in data.items()}, batch_size=args.batch_size)
        trainer.train(
            model,
            loader,
            vocab,
            None,
            None,
            torch.nn.CrossEntropyLoss(),
            scaler,
            optimizer,
            None,
            torch.device("cpu"),
            config,
            logging.getLogger("bench"),
            1,
        )

    first = FIRST * args.batch_size
    run(slice(0, first))
    watch, start = Stopwatch(), time.perf_counter()
    run(slice(first, None))
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            counted(args, len(adata), seconds, watch.read()["cpu_seconds"], peak_rss_mb(), tokens["genes"].numel())
        )
    )


if __name__ == "__main__":
    main()
