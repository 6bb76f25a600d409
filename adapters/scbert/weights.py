"""The authors' tensor names -> ours, for pre-trained (`panglao_pretrain.pth`) and fine-tuned (`*_best.pth`) checkpoints."""

from scfm.checkpoint import KeyMap

_LAYER = "performer.net.layers.{i}"

KEYS = KeyMap(
    {
        "token_emb.weight": "levels.weight",  # (levels, dim)
        "pos_emb.emb.weight": "genes.weight",  # (genes + 1, dim), float64 in the file
        "performer.calls_since_last_redraw": None,  # counts training steps until the projections are redrawn
        f"{_LAYER}.0.norm.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.0.fn.to_q.weight": "layers.{i}.attention.q.weight",  # (heads * head_dim, dim)
        f"{_LAYER}.0.fn.to_k.weight": "layers.{i}.attention.k.weight",
        f"{_LAYER}.0.fn.to_v.weight": "layers.{i}.attention.v.weight",
        f"{_LAYER}.0.fn.to_out.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.0.fn.fast_attention.projection_matrix": "layers.{i}.attention.projection",  # (features, head_dim)
        f"{_LAYER}.1.norm.{{p}}": "layers.{i}.norm2.{p}",
        f"{_LAYER}.1.fn.fn.w1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.1.fn.fn.w2.{{p}}": "layers.{i}.ff2.{p}",
        "norm.{p}": "norm.{p}",
        "to_out.weight": "level_head.weight",  # (levels, dim): pre-trained
        "to_out.bias": "level_head.bias",
        "to_out.{part}.{p}": "classifier.{part}.{p}",  # conv1, fc1, fc2, fc3: fine-tuned
    },
    strip=("module.",),
)
