"""The authors' tensor names (those of flash-attn's BERT) -> ours."""

from scfm.checkpoint import KeyMap

_LAYER = "EpiAgent_transformer.layers.{i}"

KEYS = KeyMap(
    {
        "cCRE_embedding.weight": "regions.weight",  # (n_tokens, dim); behind the regions, rows of perturbations
        "rank_embedding.weight": "ranks.weight",  # (context, dim)
        f"{_LAYER}.mixer.Wqkv.{{p}}": tuple(f"layers.{{i}}.attention.{name}.{{p}}" for name in "qkv"),  # (3 dim, dim)
        f"{_LAYER}.mixer.out_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        f"{_LAYER}.mlp.fc1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.mlp.fc2.{{p}}": "layers.{i}.ff2.{p}",
        "fc1_for_RLM.{p}": "openness.fc1.{p}",
        "layer_norm_for_RLM.{p}": "openness.norm.{p}",
        "fc2_for_RLM.{p}": "openness.fc2.{p}",
        "fc1_for_CCA.{p}": "membership.fc1.{p}",
        "layer_norm_for_CCA.{p}": "membership.norm.{p}",
        "fc2_for_CCA.{p}": "membership.fc2.{p}",
        "signal_decoder.{p}": "signal.{p}",  # (n_regions, dim)
        "criterion_SR.pos_weight": None,  # weights of training losses
        "criterion_RLM.pos_weight": None,
        "criterion_CCA.pos_weight": None,
        "classifier.fc1.{p}": "classifier.fc1.{p}",
        "classifier.layer_norm1.{p}": "classifier.norm1.{p}",
        "classifier.fc2.{p}": "classifier.fc2.{p}",
        "classifier.layer_norm2.{p}": "classifier.norm2.{p}",
        "classifier.fc3.{p}": "classifier.fc3.{p}",
        "batch_embedding.weight": "batches.weight",  # (n_batches, dim): batch correction
        "sim_layers.0.lin.{p}": "graph.linear.{p}",  # perturbation
        "layer_norm_for_GCN.{p}": "graph.norm.{p}",
    }
)
