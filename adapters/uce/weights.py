"""The authors' tensor names -> ours; one layout, in the 4-layer and the 33-layer file alike."""

from scfm.checkpoint import KeyMap
from scfm.nn import torch_layer_keys

KEYS = KeyMap(
    {
        "pe_embedding.weight": "table.weight",  # (145469, token_dim); the rows of one species are kept
        "encoder.0.{p}": "project.linear.{p}",  # (dim, token_dim)
        "encoder.2.{p}": "project.norm.{p}",
        "pos_encoder.pe": "positions",  # (1536, 1, dim)
        **torch_layer_keys("transformer_encoder.layers.{i}"),
        "decoder.{i}.{j}.{p}": "decoder.{i}.{j}.{p}",
        "decoder.3.{p}": "decoder.3.{p}",
        "binary_decoder.{i}.{j}.{p}": "expressed.{i}.{j}.{p}",
        "binary_decoder.3.{p}": "expressed.3.{p}",
        "gene_embedding_layer.0.{p}": "genes.linear.{p}",  # (dim, token_dim)
        "gene_embedding_layer.2.{p}": "genes.norm.{p}",
    },
    strip=("module.",),
)
