"""The authors' tensor names -> ours; every part lies in a file of its own."""

from scfm.checkpoint import KeyMap
from scfm.nn import bert_keys

_CROSS = "encoder.layer.{i}.crossattention"

CELL_KEYS = KeyMap({**bert_keys(), "pooler.dense.{p}": None}, strip=("bert.",))  # the stock pooler, never trained
LINEAR_KEYS = KeyMap({"{p}": "{p}"})
TEXT_KEYS = KeyMap(
    {
        **bert_keys(),
        f"{_CROSS}.self.query.{{p}}": "layers.{i}.cross.q.{p}",
        f"{_CROSS}.self.key.{{p}}": "layers.{i}.cross.k.{p}",  # (text_dim, cell_dim)
        f"{_CROSS}.self.value.{{p}}": "layers.{i}.cross.v.{p}",
        f"{_CROSS}.output.dense.{{p}}": "layers.{i}.cross.o.{p}",
        f"{_CROSS}.output.LayerNorm.{{p}}": "layers.{i}.cross_norm.{p}",
        "pooler.dense.{p}": None,  # unused by the authors
    }
)
