"""The authors' tensor names -> ours, for every layout they released.

A: `self_attn.Wqkv` (flash-attn 1; the released files). B: `self_attn.in_proj_weight` (torch only). C: `self_attn._impl.*` (0.2.5 with
flash-attn). Rows of the fused projection are q, k, v in all three. Data-parallel training leaves a prefix ``module.``.
"""

from scfm.checkpoint import KeyMap

_LAYER = "transformer_encoder.layers.{i}"
_QKV = ("layers.{i}.attention.q.{p}", "layers.{i}.attention.k.{p}", "layers.{i}.attention.v.{p}")

KEYS = KeyMap(
    {
        "encoder.embedding.weight": "genes.table.weight",  # (n_genes, dim)
        "encoder.enc_norm.{p}": "genes.norm.{p}",
        "value_encoder.linear1.{p}": "values.linear1.{p}",  # (dim, 1): continuous style
        "value_encoder.linear2.{p}": "values.linear2.{p}",
        "value_encoder.norm.{p}": "values.norm.{p}",
        "value_encoder.embedding.weight": "values.table.weight",  # (n_bins, dim): category style
        "value_encoder.enc_norm.{p}": "values.norm.{p}",
        f"{_LAYER}.self_attn.Wqkv.{{p}}": _QKV,  # (3 dim, dim)
        f"{_LAYER}.self_attn._impl.Wqkv.{{p}}": _QKV,
        f"{_LAYER}.self_attn.in_proj_weight": tuple(name.replace("{p}", "weight") for name in _QKV),
        f"{_LAYER}.self_attn.in_proj_bias": tuple(name.replace("{p}", "bias") for name in _QKV),
        f"{_LAYER}.self_attn.out_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.self_attn._impl.out_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.linear1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.linear2.{{p}}": "layers.{i}.ff2.{p}",
        f"{_LAYER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        "flag_encoder.weight": None,  # pre-training's generated-gene flags; unused by the released class
        "decoder.fc.{j}.{p}": "decoder.fc.{j}.{p}",
        "decoder.zero_logit.{j}.{p}": "decoder.zero_logit.{j}.{p}",
        "decoder.coeff_decoder.fc.{j}.{p}": "decoder.coeff.fc.{j}.{p}",  # perturbation
        "decoder.bias_decoder.fc.{j}.{p}": "decoder.bias.fc.{j}.{p}",
        "mvc_decoder.gene2query.{p}": "cell_decoder.query.{p}",
        "mvc_decoder.W.weight": "cell_decoder.w.weight",
        "mvc_decoder.W_zero_logit.{p}": "cell_decoder.w_zero.{p}",
        "cls_decoder._decoder.{j}.{p}": "classifier.hidden.{j}.{p}",
        "cls_decoder.out_layer.{p}": "classifier.out.{p}",
        "grad_reverse_discriminator._decoder.{j}.{p}": "discriminator.hidden.{j}.{p}",
        "grad_reverse_discriminator.out_layer.{p}": "discriminator.out.{p}",
        "batch_encoder.embedding.weight": "batches.table.weight",  # (n_batches, dim)
        "batch_encoder.enc_norm.{p}": "batches.norm.{p}",
        "dsbn.bns.{b}.{p}": "domain_norm.bns.{b}.{p}",
        "bn.{p}": "batch_norm.{p}",
        "pert_encoder.weight": "flags.weight",  # (3, dim)
    },
    strip=("module.",),
)
