"""The authors' tensor names -> ours. Layers may be flash-attn's or torch's; data-parallel training leaves a prefix ``module.``."""

from scfm.checkpoint import KeyMap
from scfm.nn import torch_layer_keys

KEYS = KeyMap(
    {
        "encoder.embedding.weight": "genes.table.weight",  # (n_tokens, dim)
        "encoder.enc_norm.{p}": "genes.norm.{p}",
        "value_encoder.embedding.weight": "values.table.weight",  # (bins + 2, dim): padding and mask last
        "value_encoder.enc_norm.{p}": "values.norm.{p}",
        **torch_layer_keys("transformer_encoder.layers.{i}"),
        "decoder.fc.{j}.{p}": "decoder.fc.{j}.{p}",
        "cls_decoder._decoder.{j}.{p}": "classifiers.main.hidden.{j}.{p}",
        "cls_decoder.out_layer.{p}": "classifiers.main.out.{p}",
        "{species}_cls_decoder._decoder.{j}.{p}": "classifiers.{species}.hidden.{j}.{p}",  # Ara, Rice, Maize
        "{species}_cls_decoder.out_layer.{p}": "classifiers.{species}.out.{p}",
    },
    strip=("module.",),
)
