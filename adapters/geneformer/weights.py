"""The authors' tensor names -> ours: Hugging Face's BertForMaskedLM, BertForSequenceClassification and BertForTokenClassification."""

from scfm.checkpoint import KeyMap
from scfm.nn import bert_keys

KEYS = KeyMap(
    {
        **bert_keys(),
        "pooler.dense.{p}": "pooler.{p}",  # (dim, dim): cell classifiers
        "classifier.{p}": "classifier.{p}",  # (classes, dim)
        "cls.predictions.transform.dense.{p}": "masked_lm.dense.{p}",  # (dim, dim)
        "cls.predictions.transform.LayerNorm.{p}": "masked_lm.norm.{p}",
        "cls.predictions.bias": "masked_lm.bias",  # (n_tokens,)
        "cls.predictions.decoder.weight": None,  # a copy of the word embeddings
        "cls.predictions.decoder.bias": None,  # a copy of cls.predictions.bias
    },
    strip=("module.bert.", "bert.", "module."),
)
