"""The authors' tensor names -> ours; one layout, in the 4-layer and the 33-layer file alike."""

from scfm.checkpoint import KeyMap

_LAYER = "transformer_encoder.layers.{i}"
_QKV = ("layers.{i}.attention.q.{p}", "layers.{i}.attention.k.{p}", "layers.{i}.attention.v.{p}")

KEYS = KeyMap(
    {
        "pe_embedding.weight": "table.weight",  # (145469, token_dim); the rows of one species are kept
        "encoder.0.{p}": "project.linear.{p}",  # (dim, token_dim)
        "encoder.2.{p}": "project.norm.{p}",
        "pos_encoder.pe": "positions",  # (1536, 1, dim)
        f"{_LAYER}.self_attn.in_proj_weight": tuple(name.replace("{p}", "weight") for name in _QKV),  # (3 dim, dim)
        f"{_LAYER}.self_attn.in_proj_bias": tuple(name.replace("{p}", "bias") for name in _QKV),
        f"{_LAYER}.self_attn.out_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.linear1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.linear2.{{p}}": "layers.{i}.ff2.{p}",
        f"{_LAYER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        "decoder.{i}.{j}.{p}": "decoder.{i}.{j}.{p}",
        "decoder.3.{p}": "decoder.3.{p}",
        "binary_decoder.{i}.{j}.{p}": "expressed.{i}.{j}.{p}",
        "binary_decoder.3.{p}": "expressed.3.{p}",
        "gene_embedding_layer.0.{p}": "genes.linear.{p}",  # (dim, token_dim)
        "gene_embedding_layer.2.{p}": "genes.norm.{p}",
    },
    strip=("module.",),
)
