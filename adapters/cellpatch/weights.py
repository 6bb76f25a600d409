"""The authors' tensor names -> ours; data-parallel training leaves a prefix ``module.``."""

from scfm.checkpoint import KeyMap


def _layer(theirs: str, ours: str, i: str) -> dict[str, str | tuple[str, ...] | None]:
    """One layer of attention and MLP; `i` is the end of the authors' names where there are several."""
    attention = f"{theirs}_attn{i}"
    return {
        f"{attention}.in_proj_weight": tuple(f"{ours}.attention.{name}.weight" for name in "qkv"),  # (3 dim, dim)
        f"{attention}.in_proj_bias": tuple(f"{ours}.attention.{name}.bias" for name in "qkv"),
        f"{attention}.out_proj.{{p}}": f"{ours}.attention.o.{{p}}",
        f"{attention}_norm.{{p}}" if not i else f"{theirs}_attn_norm{i}.{{p}}": f"{ours}.norm1.{{p}}",
        f"{theirs}_mlp{i}.0.{{p}}": f"{ours}.ff1.{{p}}",
        f"{theirs}_mlp{i}.2.{{p}}": f"{ours}.ff2.{{p}}",
        f"{theirs}_mlp_norm{i}.{{p}}": f"{ours}.norm2.{{p}}",
    }


KEYS = KeyMap(
    {
        "pathway_token": "patches",  # (1, n_patches, dim)
        "count2vector.{p}": "values.{p}",  # (dim, 1)
        "count2vector_norm.{p}": None,  # not used by the original's forward
        "gene2vector.weight": "genes.weight",  # (70000, dim)
        **_layer("cross_extract_blocks", "read", ""),
        **_layer("self_extract_blocks", "layers.{i}", ".{i}"),
        "encoder_projection.{p}": "project.{p}",
        "decoder_reverse_projection.{p}": "decoder.unproject.{p}",
        **_layer("decoder_extract_blocks", "decoder.read", ""),
        **_layer("decoder_selfattn_blocks", "decoder.layers.{i}", ".{i}"),
        "decoder_projection.{p}": "decoder.out.{p}",
        "lp_linear_probe_0.{p}": "classifier.unproject.{p}",  # fine-tuned class
        "lp_norm.{p}": "classifier.norm.{p}",
        "lp_fc1.{p}": "classifier.fc1.{p}",
        "lp_fc2.{p}": "classifier.fc2.{p}",
        "lp_fc3.{p}": "classifier.fc3.{p}",
    },
    strip=("module.",),
)
