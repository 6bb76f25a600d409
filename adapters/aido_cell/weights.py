"""The authors' tensor names -> ours. The full model has the prefix ``bert.``; the bare encoder has none, and no head.

``.bias`` of the layers' Linears exists only where config.json says `add_linear_bias` (no released model).
"""

from scfm.checkpoint import KeyMap

_LAYER = "encoder.layer.{i}"

KEYS = KeyMap(
    {
        "gene_embedding.linear1.{p}": "values.linear1.{p}",  # (bins, 1)
        "gene_embedding.linear2.{p}": "values.linear2.{p}",  # (bins, bins)
        "gene_embedding.lookup_table.weight": "values.table.weight",  # (bins, dim)
        "gene_embedding.mask_embedding.weight": "values.mask.weight",
        "gene_embedding.pad_embedding.weight": "values.pad.weight",
        "position_embedding.weight": "positions.weight",  # (genes + 2, dim)
        f"{_LAYER}.attention.ln.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.attention.self.query.{{p}}": "layers.{i}.attention.q.{p}",
        f"{_LAYER}.attention.self.key.{{p}}": "layers.{i}.attention.k.{p}",
        f"{_LAYER}.attention.self.value.{{p}}": "layers.{i}.attention.v.{p}",
        f"{_LAYER}.attention.output.dense.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.ln.{{p}}": "layers.{i}.norm2.{p}",
        f"{_LAYER}.mlp.gate_proj.{{p}}": "layers.{i}.gate.{p}",
        f"{_LAYER}.mlp.up_proj.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.mlp.down_proj.{{p}}": "layers.{i}.ff2.{p}",
        "encoder.ln.{p}": "norm.{p}",
        "cls.predictions.transform.dense.{p}": "head.dense.{p}",
        "cls.predictions.transform.LayerNorm.{p}": "head.norm.{p}",
        "cls.predictions.decoder.weight": "head.output.weight",  # (1, dim)
        "cls.predictions.bias": "head.output.bias",
        "cls.predictions.decoder.bias": None,  # the same tensor as cls.predictions.bias; absent from safetensors
    },
    strip=("module.bert.", "bert.", "module."),
)
