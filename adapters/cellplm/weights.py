"""The authors' tensor names -> ours, for every encoder, latent and head they release."""

from scfm.checkpoint import KeyMap

_LAYER = "encoder.layers.{i}"
_MIXTURE = "latent.layers.1.inference"
_COVARIATE = "decoder.covariate_layers.{j}.{name}"

KEYS = KeyMap(
    {
        "embedder.feat_enc.emb": "genes.weight",  # (n_genes, hidden)
        "embedder.extra_linear.0.{p}": "embed.{p}",
        "embedder.extra_linear.3.{p}": "embed_norm.{p}",
        "embedder.norm0.{p}": None,  # not used by the original's forward
        "embedder.pe_enc.{p}": None,  # positions of cells: their term is a constant 0
        "embedder.pe_enc.pe_enc.weight": None,
        f"{_LAYER}.self_attn.query_projection.{{p}}": "layers.{i}.attention.q.{p}",  # Flowformer
        f"{_LAYER}.self_attn.key_projection.{{p}}": "layers.{i}.attention.k.{p}",
        f"{_LAYER}.self_attn.value_projection.{{p}}": "layers.{i}.attention.v.{p}",
        f"{_LAYER}.self_attn.out_projection.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.self_attn.to_q.weight": "layers.{i}.attention.q.weight",  # Performer
        f"{_LAYER}.self_attn.to_k.weight": "layers.{i}.attention.k.weight",
        f"{_LAYER}.self_attn.to_v.weight": "layers.{i}.attention.v.weight",
        f"{_LAYER}.self_attn.to_out.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.self_attn.fast_attention.projection_matrix": "layers.{i}.attention.projection",  # (266, 64)
        f"{_LAYER}._ff_block.0.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}._ff_block.3.{{p}}": "layers.{i}.ff2.{p}",
        f"{_LAYER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        "pre_latent_norm.norm.{p}": "norm.{p}",
        "latent.layers.1.hid_2mu.{p}": "latent.mean.{p}",  # vae
        "latent.layers.1.hid_2sigma.{p}": "latent.log_variance.{p}",
        "latent.layers.1.lat_2lat.0.{p}": "latent.mean.{p}",  # ae
        f"{_MIXTURE}.inference_qyx.0.logits.{{p}}": "latent.logits.{p}",  # gmvae
        f"{_MIXTURE}.inference_qzyx.0.{{p}}": "latent.hidden.{p}",
        f"{_MIXTURE}.inference_qzyx.2.mu.{{p}}": "latent.mean.{p}",
        f"{_MIXTURE}.inference_qzyx.2.var.{{p}}": "latent.variance.{p}",
        f"{_MIXTURE}.y_mu.{{p}}": "latent.prior_mean.{p}",
        f"{_MIXTURE}.y_var.{{p}}": "latent.prior_variance.{p}",
        "decoder.layers.{j}.0.{p}": "decoder.layers.{j}.linear.{p}",
        "decoder.layers.{j}.1.weight": "decoder.layers.{j}.act.weight",
        "decoder.layers.{j}.3.{p}": "decoder.layers.{j}.norm.{p}",
        f"{_COVARIATE}.0.weight": "decoder.layers.{j}.tables.{name}.weight",  # (n_batches, decoder_hidden)
        f"{_COVARIATE}.1.weight": "decoder.layers.{j}.acts.{name}.weight",
        f"{_COVARIATE}.2.{{p}}": "decoder.layers.{j}.norms.{name}.{p}",
        "decoder.out_layer.dec_1.{p}": "decoder.hidden.{p}",
        "decoder.out_layer.dec_mean.0.{p}": "decoder.mean.{p}",
        "decoder.out_layer.dec_disp": "decoder.log_dispersion",  # (n_genes)
        "head.mlp.{k}.{p}": "classifier.{k}.{p}",  # annotation
    },
    strip=("module.",),
)
