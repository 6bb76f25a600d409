"""The authors' tensor names -> ours, for both modes; unused ones of one mode are added to these by the adapter."""

from scfm.checkpoint import KeyMap

_MEMORY = "transformer.enc.self_attn.relational_memory"

KEYS = KeyMap(
    {
        "cls_token": "cls",  # (1, 1, dim)
        "embedding.token_embedding.weight": "bins.weight",  # (bins + 1 or 2, dim)
        "embedding.gene_ids_embedding.weight": "genes.weight",  # (n_genes + 2, dim): fast mode
        "embedding.position_embedding.weight": "genes.weight",  # (n_genes + 1, dim): full mode
        "embedding.layer_norm.{p}": "norm.{p}",
        f"{_MEMORY}.query_proj.{{p}}": "memory.q.{p}",  # (heads 32, dim)
        f"{_MEMORY}.key_proj.{{p}}": "memory.k.{p}",
        f"{_MEMORY}.value_proj.{{p}}": "memory.v.{p}",  # (dim, dim)
        f"{_MEMORY}.attention_mlp.0.{{p}}": "memory.mlp.{p}",
        f"{_MEMORY}.attended_memory_layernorm.{{p}}": "memory.norm1.{p}",
        f"{_MEMORY}.attended_memory_layernorm2.{{p}}": "memory.norm2.{p}",
        f"{_MEMORY}.input_projector.{{p}}": "memory.project.{p}",
        f"{_MEMORY}.input_gate_projector.w": "memory.gate_weight",  # (dim)
        f"{_MEMORY}.input_gate_projector.linear.{{p}}": "memory.gate.{p}",  # (2 dim, dim)
        f"{_MEMORY}.memory_gate_projector.weight": "memory.slot_gate.weight",  # (slots, dim, 2 dim)
        f"{_MEMORY}.memory_gate_projector.bias": "memory.slot_gate.bias",  # (slots, 2 dim)
        f"{_MEMORY}.forget_bias": "memory.forget_bias",
        f"{_MEMORY}.input_bias": "memory.input_bias",
        f"{_MEMORY}.input_gate_projector.pe.{{p}}": None,  # not used by the original's forward
        "transformer.pe.pe": "positions.table",  # (1, n_genes + 1, dim): full mode
        "transformer.pe.pos_emb_weight": "positions.weight",
        "transformer.enc.self_attn_layer_norm.{p}": "norm_memory.{p}",
        "transformer.enc.final_layer_norm.{p}": "norm_ff.{p}",
        "transformer.enc.fc1.{p}": "ff1.{p}",
        "transformer.enc.fc2.{p}": "ff2.{p}",
        "mlp_head.{p}": "classifier.{p}",
        "memory_mlp.{p}": "memory_mlp.{p}",  # computed and not used by the original
    },
    strip=("module.",),
)
