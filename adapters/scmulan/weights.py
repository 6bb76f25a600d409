"""The authors' tensor names -> ours. A trained copy that was compiled carries the prefix ``_orig_mod.``."""

from scfm.checkpoint import KeyMap

_LAYER = "transformer.h.{i}"

KEYS = KeyMap(
    {
        "transformer.wte.weight": "tokens.weight",  # (n_tokens, dim)
        "transformer.wee.weight": "levels.weight",  # (levels + 1, dim)
        f"{_LAYER}.ln_1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.ln_2.{{p}}": "layers.{i}.norm2.{p}",
        f"{_LAYER}.attn.c_attn.{{p}}": tuple(f"layers.{{i}}.attention.{name}.{{p}}" for name in "qkv"),  # (3 dim, dim)
        f"{_LAYER}.attn.c_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.mlp.c_fc.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.mlp.c_proj.{{p}}": "layers.{i}.ff2.{p}",
        "transformer.ln_f.{p}": "norm.{p}",
        "lm_head.weight": "next_token.weight",  # (n_tokens, dim)
        "epx_head.weight": "next_expression.weight",  # (n_tokens, dim)
    },
    strip=("_orig_mod.", "module."),
)
