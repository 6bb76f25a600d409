"""The authors' tensor names -> ours. Names around the encoder are scGPT's, of which the original is a fork."""

from scfm.checkpoint import KeyMap

_LAYER = "mamba_encoder.layers.{i}.mamba"

KEYS = KeyMap(
    {
        "encoder.embedding.weight": "genes.table.weight",  # (n_genes, dim)
        "encoder.enc_norm.{p}": "genes.norm.{p}",
        "value_encoder.linear1.{p}": "values.linear1.{p}",  # (dim, 1)
        "value_encoder.linear2.{p}": "values.linear2.{p}",
        "value_encoder.norm.{p}": "values.norm.{p}",
        "bn.{p}": "batch_norm.{p}",
        "dsbn.bns.{b}.{p}": "domain_norm.bns.{b}.{p}",  # after integration tuning
        "batch_encoder.embedding.weight": "batches.table.weight",  # (n_batches, dim)
        "batch_encoder.enc_norm.{p}": "batches.norm.{p}",
        f"{_LAYER}.in_proj.weight": "layers.{i}.mixer.in_proj.weight",  # (2 inner + 2 states + heads, dim): z, x, B, C, dt
        f"{_LAYER}.conv1d.{{p}}": "layers.{i}.mixer.conv.{p}",  # (inner + 2 states, 1, 4)
        f"{_LAYER}.dt_bias": "layers.{i}.mixer.dt_bias",
        f"{_LAYER}.A_log": "layers.{i}.mixer.log_a",
        f"{_LAYER}.D": "layers.{i}.mixer.skip",
        f"{_LAYER}.norm.weight": "layers.{i}.mixer.norm.weight",
        f"{_LAYER}.out_proj.weight": "layers.{i}.mixer.out_proj.weight",
        "decoder.fc.{j}.{p}": "decoder.fc.{j}.{p}",
        "decoder.zero_logit.{j}.{p}": "decoder.zero_logit.{j}.{p}",
        "mvc_decoder.gene2query.{p}": "cell_decoder.query.{p}",
        "mvc_decoder.W.weight": "cell_decoder.w.weight",
        "mvc_decoder.W_zero_logit.{p}": "cell_decoder.w_zero.{p}",
        "cls_decoder._decoder.{j}.{p}": "classifier.hidden.{j}.{p}",
        "cls_decoder.out_layer.{p}": "classifier.out.{p}",
    },
    strip=("module.",),
)
