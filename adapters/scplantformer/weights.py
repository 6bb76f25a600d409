"""The authors' tensor names -> ours."""

from scfm.checkpoint import KeyMap

_LAYER = "transformer.h.{i}"

KEYS = KeyMap(
    {
        "pro.{p}": None,  # a projection of the patches that no version's forward pass calls
        "transformer.wpe.weight": "positions.weight",  # (patches, dim)
        f"{_LAYER}.ln_1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.ln_2.{{p}}": "layers.{i}.norm2.{p}",
        f"{_LAYER}.attn.bias": None,  # the causal mask: ones below the diagonal
        f"{_LAYER}.attn.c_attn.{{p}}": tuple(f"layers.{{i}}.attention.{name}.{{p}}" for name in "qkv"),  # (3 dim, dim)
        f"{_LAYER}.attn.c_proj.{{p}}": "layers.{i}.attention.o.{p}",
        f"{_LAYER}.mlp.c_fc.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.mlp.c_proj.{{p}}": "layers.{i}.ff2.{p}",
        "transformer.ln_f.{p}": "norm.{p}",
        "lm_head.{p}": "decoder.{p}",  # (genes, dim)
    },
    strip=("module.",),
)
