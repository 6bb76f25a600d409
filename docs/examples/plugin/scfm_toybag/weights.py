"""The authors' tensor names -> ours."""

from scfm.checkpoint import KeyMap

KEYS = KeyMap(
    {
        "gene_emb.weight": "genes.weight",  # (n_genes, hidden)
        "mlp.0.{p}": "inner.{p}",  # {p} is weight or bias
        "mlp.2.{p}": "out.{p}",
        "decoder.{p}": None,  # predicts counts in pre-training; no output of ours needs it
    },
    strip=("module.",),  # left by data-parallel training
)
