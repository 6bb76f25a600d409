"""The authors' tensor names -> ours: Lightning checkpoints, the hub's (prefix ``nicheformer.``) and fine-tuned ones (``backbone.``)."""

from scfm.checkpoint import KeyMap

_LAYER = "encoder.layers.{i}"
_QKV = ("layers.{i}.attention.q.{p}", "layers.{i}.attention.k.{p}", "layers.{i}.attention.v.{p}")

KEYS = KeyMap(
    {
        "embeddings.weight": "tokens.weight",  # (n_tokens + 5, dim)
        "positional_embedding.weight": "positions.weight",  # (context, dim)
        f"{_LAYER}.self_attn.in_proj_weight": tuple(name.replace("{p}", "weight") for name in _QKV),  # (3 dim, dim)
        f"{_LAYER}.self_attn.in_proj_bias": tuple(name.replace("{p}", "bias") for name in _QKV),
        f"{_LAYER}.self_attn.out_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.linear1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.linear2.{{p}}": "layers.{i}.ff2.{p}",
        f"{_LAYER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        "classifier_head.{p}": "masked_lm.{p}",  # (n_tokens, dim)
        "encoder_layer.{a}.{p}": None,  # the template that the layers were copied from
        "encoder_layer.{a}.{b}.{p}": None,
        "cls_head.{p}": None,  # trained by no released objective
        "pooler_head.{p}": None,  # unused in pre-training; of fine-tuned models, a part of the head
        "linear_head.{p}": None,  # head of fine-tuned models, of which none is released: how it pools layers is not in the file
        "pos": None,  # 0 .. context-1
    },
    strip=("module.", "nicheformer.", "backbone."),
)
