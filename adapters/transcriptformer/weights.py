"""The authors' tensor names -> ours; one layout. In an MLP, layers 0 and 4 are Linears, 2 is the LayerNorm."""

from scfm.checkpoint import KeyMap

_LAYER = "transformer_encoder.encoder_layers.{i}"
_OURS = {"0": "first", "2": "norm", "4": "second"}


def _mlp(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.layers.{number}.{{p}}": f"{ours}.{name}.{{p}}" for number, name in _OURS.items()}


KEYS = KeyMap(
    {
        "gene_embeddings.embedding.weight": "table.weight",  # (tokens, protein_dim), frozen; of some species, their rows
        **_mlp("gene_embeddings.mlp", "genes"),  # protein_dim -> dim -> dim
        "aux_embeddings.{column}.weight": "aux.{column}.weight",  # (names, dim)
        **{
            f"{_LAYER}.self_attn.linears.{number}.{{p}}": f"layers.{{i}}.attention.{name}.{{p}}"  # (dim, dim)
            for number, name in enumerate("qkvo")
        },
        f"{_LAYER}.linear1.{{p}}": "layers.{i}.ff1.{p}",
        f"{_LAYER}.linear2.{{p}}": "layers.{i}.ff2.{p}",
        f"{_LAYER}.norm1.{{p}}": "layers.{i}.norm1.{p}",
        f"{_LAYER}.norm2.{{p}}": "layers.{i}.norm2.{p}",
        **_mlp("mu.mlp", "counts.mlp"),  # 2 dim -> dim / 2 -> 1
        "mu.gene_embedding.weight": "counts.bias.weight",  # (tokens, 1)
        **_mlp("gene_id_head", "next_gene"),  # dim -> gene_hidden -> tokens
    },
    strip=("module.",),
)

WITHOUT_HEADS = KeyMap(  # of a species the model was not trained on: their rows are other species' genes
    {
        **KEYS.names,
        **dict.fromkeys(_mlp("mu.mlp", "")),
        "mu.gene_embedding.weight": None,
        **dict.fromkeys(_mlp("gene_id_head", "")),
    },
    KEYS.strip,
)
