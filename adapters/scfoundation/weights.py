"""The authors' tensor names -> ours. All carry the prefix ``model.``, left by their training framework."""

from scfm.checkpoint import KeyMap

_ENCODER = "encoder.transformer_encoder.{i}"
_DECODER = "decoder.performer.net.layers.{i}"
_QKV = ("layers.{i}.attention.q", "layers.{i}.attention.k", "layers.{i}.attention.v")

KEYS = KeyMap(
    {
        "token_emb.mlp.{p}": "values.linear1.{p}",  # (bins, 1)
        "token_emb.mlp2.{p}": "values.linear2.{p}",  # (bins, bins)
        "token_emb.emb.weight": "values.table.weight",  # (bins, dim)
        "token_emb.emb_mask.weight": "values.mask.weight",
        "token_emb.emb_pad.weight": "values.pad.weight",
        "pos_emb.weight": "positions.weight",  # (genes + 3, dim)
        f"{_ENCODER}.self_attn.in_proj_weight": tuple(f"{name}.weight" for name in _QKV),  # (3 dim, dim)
        f"{_ENCODER}.self_attn.in_proj_bias": tuple(f"{name}.bias" for name in _QKV),
        f"{_ENCODER}.self_attn.out_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_ENCODER}.linear1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_ENCODER}.linear2.{{p}}": "layers.{i}.ff2.{p}",
        f"{_ENCODER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_ENCODER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        "encoder.norm.{p}": "norm.{p}",
        "decoder_embed.{p}": "decoder_input.{p}",
        "decoder.performer.calls_since_last_redraw": None,  # counts training steps until the projections are redrawn
        f"{_DECODER}.0.norm.{{p}}": "decoder.{i}.norm1.{p}",
        f"{_DECODER}.0.fn.fast_attention.projection_matrix": "decoder.{i}.attention.projection",  # (features, head_dim)
        f"{_DECODER}.0.fn.to_q.{{p}}": "decoder.{i}.attention.q.{p}",
        f"{_DECODER}.0.fn.to_k.{{p}}": "decoder.{i}.attention.k.{p}",
        f"{_DECODER}.0.fn.to_v.{{p}}": "decoder.{i}.attention.v.{p}",
        f"{_DECODER}.0.fn.to_out.{{p}}": "decoder.{i}.attention.o.{p}",
        f"{_DECODER}.1.norm.{{p}}": "decoder.{i}.norm2.{p}",
        f"{_DECODER}.1.fn.fn.w1.{{p}}": "decoder.{i}.ff1.{p}",
        f"{_DECODER}.1.fn.fn.w2.{{p}}": "decoder.{i}.ff2.{p}",
        "decoder.norm.{p}": "decoder_norm.{p}",
        "norm.{p}": "output_norm.{p}",
        "to_final.{p}": "output.{p}",
    },
    strip=("module.model.", "model.", "module."),
)
